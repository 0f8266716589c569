"""The `moorage` command: a table of lazily imported commands, so that `--help` and each command start fast.

A `MoorageError` is one line on stderr and exit code 2. Anything else is a bug and shows its traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module

import click

from moorage import __version__
from moorage.errors import MoorageError

COMMANDS: dict[str, tuple[str, str]] = {
    "up": (
        "moorage.runtime.commands.pool:up",
        "Start a pool on this machine, or beside an existing Ray cluster.",
    ),
    "down": ("moorage.runtime.commands.pool:down", "Stop exactly what `up` started."),
    "status": (
        "moorage.runtime.commands.status:status",
        "Nodes, devices and their holders, the queue, the teams.",
    ),
    "top": ("moorage.runtime.commands.top:top", "Watch teams, nodes, and what runs and waits."),
    "metrics": (
        "moorage.runtime.commands.metrics:metrics",
        "Write what Prometheus and Grafana need to watch the pool.",
    ),
    "page": ("moorage.runtime.commands.page:page", "The address of the pool's web page."),
    "submit": ("moorage.runtime.commands.jobs:submit", "Submit the job a YAML file describes."),
    "jobs": ("moorage.runtime.commands.jobs:jobs", "List jobs."),
    "why": ("moorage.runtime.commands.why:why", "Say why a job waits, and what would start it now."),
    "logs": ("moorage.runtime.commands.jobs:logs", "Print a job's log."),
    "stop": ("moorage.runtime.commands.jobs:stop", "Stop a job."),
    "events": ("moorage.runtime.commands.events:events", "The audit record: who did what, when."),
    "cost": ("moorage.runtime.commands.jobs:cost", "GPU time and money per team and job."),
    "endpoints": (
        "moorage.runtime.commands.endpoints:endpoints",
        "What is served, by which replicas, and what more of them waits for.",
    ),
    "guard": (
        "moorage.runtime.commands.guard:guard",
        "GPUs held without a lease or beyond it, and what is done about it.",
    ),
    "quota": ("moorage.runtime.commands.quota:quota", "Show, set and apply the quotas of the teams."),
    "drain": ("moorage.runtime.commands.drain:drain", "Let a node take nothing new."),
    "undrain": ("moorage.runtime.commands.drain:undrain", "Let a drained node take work again."),
    "simulate": (
        "moorage.runtime.commands.simulate:simulate",
        "Replay a recorded workload and compare policies.",
    ),
    "plan": (
        "moorage.runtime.commands.plan:plan",
        "Say what other quotas would have done to last week's waits.",
    ),
    "features": ("moorage.runtime.commands.features:features", "Versions of the feature views."),
    "models": ("moorage.runtime.commands.models:models", "Registered models, their aliases and gates."),
}
"""Command name -> (where it is defined, its line in `moorage --help`)."""

EPILOG = """\b
Examples:
  moorage up --nodes 2 --logical-gpus 4
  moorage status
  moorage submit job.yaml
  moorage why JOB
"""


class LazyGroup(click.Group):
    """Imports a command's module when the command is used; `--help` of the group imports none."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command = getattr(import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = get_close_matches(args[0], COMMANDS, n=1) if "Did you mean" not in error.message else []
            if not near:
                raise
            raise click.UsageError(f"{error.message} Did you mean '{near[0]}'?", ctx) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(cls=LazyGroup, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="moorage")
def cli() -> None:
    """Many teams, one Ray cluster: quotas, leases and the life of a model.

    The commands find the pool through MOORAGE_URL and MOORAGE_TOKEN, else through the pool's folder (MOORAGE_HOME,
    default ~/.moorage).
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 the command's own "no", 2 refused or misused, 130 interrupted."""
    try:
        outcome = cli.main(arguments, prog_name="moorage", standalone_mode=False)
        code = outcome if isinstance(outcome, int) else 0
    except MoorageError as error:
        click.echo(f"moorage: {' '.join(str(error).split())}", err=True)
        code = 2
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except click.Abort:
        code = 130
    except BrokenPipeError:
        sys.stderr.close()
        code = 0
    sys.exit(code)


if __name__ == "__main__":
    main()
