"""`moorage simulate`: recorded workloads through the same planner as production, several policies beside each other."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from moorage.errors import InvalidRequest
from moorage.runtime.commands import shared
from moorage.runtime.commands.serving import serving

if TYPE_CHECKING:
    from moorage.scheduling.simulator.elastic import Elastic

F = TypeVar("F", bound=Callable[..., Any])
MOST_SEEDS = 1000
MOST_DEMAND = 10.0
_LEFT_OUT_SHOWN = 5


@click.group()
def simulate() -> None:
    """Replay a recorded workload through the planner, and compare policies."""


simulate.add_command(serving)


def common_options(command: F) -> F:
    """--policy, --compare, --out, --format and --json."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else."),
        click.option(
            "--format",
            "form",
            type=click.Choice(["svg", "png"]),
            default="svg",
            show_default=True,
            help="Of the pictures.",
        ),
        click.option(
            "--out",
            type=click.Path(path_type=Path, file_okay=False),
            help="Write report.json and the pictures into this folder.",
        ),
        click.option(
            "--compare",
            metavar="A,B,C",
            help="Run these policies on the same jobs, after --policy if that is given.",
        ),
        click.option(
            "--policy", metavar="NAME", help="What decides [default: Moorage's own]. See --policies."
        ),
        click.option("--policies", is_flag=True, help="List the policies and stop."),
    ):
        command = option(command)
    return command


@simulate.command(
    epilog="""\b
Examples:
  moorage simulate openb --nodes nodes.csv --jobs jobs.csv
  moorage simulate openb --nodes nodes.csv --jobs jobs.csv --demand 1.3 --seeds 42..51 --json
  moorage simulate openb --nodes nodes.csv --jobs jobs.csv --seeds 42,43 --compare potential,fgd --out report
"""
)
@click.option("--nodes", "nodes_file", type=click.Path(path_type=Path), metavar="CSV", help="The node list.")
@click.option("--jobs", "jobs_file", type=click.Path(path_type=Path), metavar="CSV", help="The job list.")
@click.option(
    "--demand",
    type=float,
    default=1.3,
    show_default=True,
    help="Jobs arrive until they ask for this share of the GPUs.",
)
@click.option(
    "--seeds", default="42..51", show_default=True, metavar="A..B", help="Orders of arrival: 42..51 or 1,2,3."
)
@click.option(
    "--migrate",
    type=float,
    default=0.0,
    show_default=True,
    help="Share of the placed tasks that may move so that an arrival fits.",
)
@click.option(
    "--device-rule",
    type=click.Choice(["free", "raylet"]),
    default="free",
    show_default=True,
    help="Who picks the device on a node: the planner, or Ray's raylet.",
)
@common_options
def openb(
    nodes_file: Path | None,
    jobs_file: Path | None,
    demand: float,
    seeds: str,
    migrate: float,
    device_rule: str,
    policies: bool,
    policy: str | None,
    compare: str | None,
    out: Path | None,
    form: str,
    as_json: bool,
) -> None:
    """How full a cluster gets: jobs of the openb lists arrive one by one and never leave (the protocol of FGD)."""
    from moorage.runtime.history import openb as reader
    from moorage.runtime.history import runs
    from moorage.scheduling.model import DeviceRule
    from moorage.scheduling.simulator import replay

    if policies:
        list_policies(replay.POLICIES, as_json)
        return
    chosen = choose(policy, compare, replay.POLICIES)
    if not 0 < demand <= MOST_DEMAND:
        raise InvalidRequest(
            f"--demand {demand:g} is not above 0 and at most {MOST_DEMAND:g}", code="bad-demand"
        )
    if not 0 <= migrate <= 1:
        raise InvalidRequest(f"--migrate {migrate:g} is no share from 0 to 1", code="bad-migrate")
    numbers = parse_seeds(seeds)
    prepare(out)
    nodes = reader.read_nodes(given(nodes_file, "--nodes"))
    trace = reader.read_jobs(given(jobs_file, "--jobs"))
    with progress_bar() as progress:
        report = runs.fill(
            nodes,
            trace,
            demand=demand,
            seeds=numbers,
            policies=chosen,
            rule=DeviceRule(device_rule),
            migrate=migrate,
            progress=progress,
        )
    finish(report, out, form, as_json, show_openb)


@simulate.command(
    epilog="""\b
Examples:
  moorage simulate philly --jobs philly.csv --gpus 448
  moorage simulate philly --jobs philly.csv --gpus 448 --nodes 56 --json
  moorage simulate philly --jobs philly.csv --gpus 448 --compare las,fifo,backfill --out report
  moorage simulate philly --jobs million.csv --gpus 100000 --every 60
  moorage simulate philly --jobs philly.csv --elastic 0.5 --efficiency 60
"""
)
@click.option("--jobs", "jobs_file", type=click.Path(path_type=Path), metavar="CSV", help="The trace.")
@click.option("--gpus", type=int, default=448, show_default=True, help="GPUs of the pool.")
@click.option("--nodes", "count", type=int, help="Equal nodes they stand in [default: 8 GPUs each].")
@click.option(
    "--every",
    "every_s",
    type=click.FloatRange(0, 86_400),
    metavar="SECONDS",
    help="Decide at most so often, as schedulers with a cycle do [default: whenever a job comes or ends; "
    "every 60 s beyond 250,000 jobs].",
)
@click.option(
    "--elastic",
    "least",
    type=float,
    metavar="SHARE",
    help="Jobs of several GPUs may run with this share of their workers, and grow and shrink [default: they do not].",
)
@click.option(
    "--efficiency",
    type=click.IntRange(1, 100),
    metavar="PERCENT",
    help="With --elastic: what a worker above that share adds, of what one of the share does [default: 100].",
)
@common_options
def philly(
    jobs_file: Path | None,
    gpus: int,
    count: int | None,
    every_s: float | None,
    least: float | None,
    efficiency: int | None,
    policies: bool,
    policy: str | None,
    compare: str | None,
    out: Path | None,
    form: str,
    as_json: bool,
) -> None:
    """How long jobs take: the jobs of the Philly trace are queued, run, preempted and end."""
    from moorage.runtime.history import philly as reader
    from moorage.runtime.history import runs
    from moorage.scheduling.simulator import engine

    if policies:
        list_policies(engine.POLICIES, as_json)
        return
    chosen = choose(policy, compare, engine.POLICIES)
    elastic = parse_elastic(least, efficiency)
    nodes = reader.nodes(gpus, -(-gpus // 8) if count is None else count)
    prepare(out)
    trace = reader.read_jobs(given(jobs_file, "--jobs"), nodes[0].devices)
    with progress_bar() as progress:
        report = runs.run(nodes, trace, policies=chosen, every_s=every_s, elastic=elastic, progress=progress)
    finish(report, out, form, as_json, show_philly)


def given(path: Path | None, option: str) -> Path:
    if path is None:
        raise InvalidRequest(
            f"{option} is missing", todo=f"name the CSV file: {option} FILE", code="missing-option"
        )
    return path


def parse_elastic(least: float | None, efficiency: int | None) -> tuple[int, Elastic] | None:
    """(least size in percent, how fast gangs are); None where they are not elastic."""
    from moorage.scheduling.simulator.elastic import Elastic

    if least is None:
        if efficiency is not None:
            raise InvalidRequest("--efficiency goes with --elastic", code="bad-elastic")
        return None
    percent = round(100 * least) if 0 < least <= 1 else 0
    if not percent:
        raise InvalidRequest(
            f"--elastic {least:g} is no share of a job's workers",
            todo="say 0.01 to 1, as 0.5",
            code="bad-elastic",
        )
    return percent, Elastic(efficiency_percent=efficiency or 100)


def parse_seeds(text: str) -> list[int]:
    """`42..51`, `1,2,3` or both; in order, each once."""
    found: dict[int, None] = {}
    for part in text.split(","):
        first, dots, last = part.strip().partition("..")
        if not first.isdecimal() or (dots and not last.isdecimal()):
            raise InvalidRequest(f"--seeds {text!r} is not like 42..51 or 1,2,3", code="bad-seeds")
        begin, end = int(first), int(last) if dots else int(first)
        if end < begin or end - begin >= MOST_SEEDS or end >= 2**31 - 1:
            raise InvalidRequest(
                f"--seeds {text!r} is no range",
                why=f"up to {MOST_SEEDS} seeds below 2^31 - 1, lowest first",
                code="bad-seeds",
            )
        found.update(dict.fromkeys(range(begin, end + 1)))
    if len(found) > MOST_SEEDS:
        raise InvalidRequest(f"--seeds {text!r} are more than {MOST_SEEDS}", code="bad-seeds")
    return list(found)


def choose(policy: str | None, compare: str | None, known: Mapping[str, str]) -> list[str]:
    """The policies to run, the first one's figures at the top of the report."""
    asked = [name.strip() for name in [policy or next(iter(known), ""), *(compare or "").split(",")]]
    if policy is None and compare:
        asked = asked[1:]
    for name in filter(None, asked):
        if name not in known:
            near = get_close_matches(name, known, n=1)
            raise InvalidRequest(
                f"there is no policy {name!r}",
                why=f"there are {', '.join(known)}",
                todo=f"did you mean {near[0]!r}?" if near else "",
                code="unknown-policy",
            )
    chosen = list(dict.fromkeys(filter(None, asked)))
    if not chosen:
        raise InvalidRequest("no policy is named", why=f"there are {', '.join(known)}", code="unknown-policy")
    return chosen


def list_policies(known: Mapping[str, str], as_json: bool) -> None:
    if as_json:
        shared.print_json(dict(known))
        return
    made = shared.table("policy", "what it does")
    for number, (name, line) in enumerate(known.items()):
        made.add_row(name, line + (" (the default)" if number == 0 else ""))
    shared.console().print(made)


def prepare(out: Path | None) -> None:
    """Refuse before the work what would be refused after it."""
    if out is None:
        return
    from moorage.runtime.history import pictures

    pictures.library()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidRequest(
            f"cannot make the folder {out}", why=str(error.strerror), code="bad-out"
        ) from None


@contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int], None] | None]:
    """A bar on stderr while it is a terminal; None otherwise."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    screen = Console(stderr=True)
    if not screen.is_terminal:
        yield None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=screen, transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)


def finish(
    report: Any, out: Path | None, form: str, as_json: bool, show: Callable[[dict[str, Any]], None]
) -> None:
    """Write what --out asks for, then print."""
    if out is not None:
        from moorage.runtime.history import pictures

        (out / "report.json").write_text(json.dumps(report.data, indent=2, ensure_ascii=False) + "\n")
        made = pictures.draw(report, out, form)
        click.echo(f"wrote report.json and {len(made)} pictures to {out}", err=True)
    if as_json:
        shared.print_json(report.data)
    else:
        show(report.data)


def show_openb(found: dict[str, Any]) -> None:
    screen = shared.console()
    who = "planner" if found["device_rule"] == "free" else "raylet"
    screen.print(
        f"{found['jobs_file']}: {found['jobs']} jobs on {found['nodes']} nodes with {found['gpus']} GPUs, "
        f"{len(found['seeds'])} seeds, devices picked by the {who}"
    )
    demands = list(found["curve"])
    made = shared.table(
        "policy",
        *(f"at {d}%" for d in demands),
        "placements/s",
        "moves",
        title="GPUs held (%) by demand, mean over the seeds",
        right=(*(f"at {d}%" for d in demands), "placements/s", "moves"),
    )
    for name, one in found["policies"].items():
        cells = [number(one["curve"][d], 2) for d in demands]
        made.add_row(name, *cells, number(one["placements_per_second"], 0), str(one["moves"]))
    screen.print(made)
    screen.print()
    classes = list(found["acceptance_by_class"])
    made = shared.table(
        "policy",
        *classes,
        title=f"Jobs placed when they came (%), at {100 * found['demand']:g}% demand",
        right=tuple(classes),
    )
    for name, one in found["policies"].items():
        made.add_row(name, *(number(one["acceptance_by_class"][c], 2) for c in classes))
    screen.print(made)
    show_rest(found)


def show_philly(found: dict[str, Any]) -> None:
    screen = shared.console()
    screen.print(
        f"{found['jobs_file']}: {found['jobs']} jobs on {found['nodes']} nodes with {found['gpus']} GPUs"
    )
    numbers = ["mean JCT h", "95% h", "longest queued h", "makespan d", "preemptions", "GPU time lost %"]
    elastic = found["elastic"]
    if elastic:
        numbers.insert(5, "resizes")
        screen.print(
            f"jobs of several GPUs run with {elastic['least_percent']}% of their workers or more; "
            f"each beyond that adds {elastic['efficiency_percent']}% of one"
        )
    sharing = "worst_over_partition" in found
    if sharing:
        numbers.append("worst team / own partition")
    made = shared.table("policy", *numbers, right=tuple(numbers))
    for name, one in found["policies"].items():
        worst = [f"{number(one['worst_over_partition'], 3)} {one['worst_team'] or ''}"] if sharing else []
        made.add_row(
            name,
            number(one["avg_jct_hours"], 2),
            number(one["p95_jct_hours"], 2),
            number(one["max_queued_stint_hours"], 1),
            number(one["makespan_days"], 1),
            str(one["preemptions"]),
            *([str(one["resizes"])] if elastic else []),
            number(one["lost_gpu_percent"], 2),
            *worst,
        )
    screen.print(made)
    screen.print()
    names = list(found["policies"])
    alone = ["own partition"] if sharing and "static" not in names else []
    made = shared.table(
        "team",
        "jobs",
        "GPU share %",
        *alone,
        *names,
        title="Mean JCT (hours) by team",
        right=("jobs", "GPU share %", *alone, *names),
    )
    for team, one in sorted(found["by_team"].items(), key=lambda item: -item[1]["gpu_share"]):
        figures = [number(one["partition_avg_jct_hours"], 2)] if alone else []
        figures += [number(found["policies"][name]["by_team"][team]["avg_jct_hours"], 2) for name in names]
        made.add_row(team, str(one["jobs"]), number(100 * one["gpu_share"], 1), *figures)
    screen.print(made)
    show_rest(found)


def show_rest(found: dict[str, Any]) -> None:
    """The notes, and what was left out."""
    screen = shared.console()
    for note in found["notes"]:
        screen.print(f"note: {note}")
    if not found["left_out"]:
        return
    counts = ", ".join(f"{count} {code}" for code, count in found["left_out_by_code"].items())
    made = shared.table("row", "job", "code", "why", title=f"Left out: {counts}", right=("row",))
    for one in found["left_out"][:_LEFT_OUT_SHOWN]:
        made.add_row(str(one["row"]), one["name"], one["code"], one["text"])
    screen.print()
    screen.print(made)
    if len(found["left_out"]) > _LEFT_OUT_SHOWN:
        screen.print(f"... {len(found['left_out']) - _LEFT_OUT_SHOWN} more with --json or in report.json")


def number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"
