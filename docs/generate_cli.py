"""Write `docs/cli.md` from the commands themselves: `python docs/generate_cli.py`. A test asserts it is current."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from moorage.cli import COMMANDS, cli

PAGE = Path(__file__).with_name("cli.md")
HEAD = """# The command line

Written from the commands' own help by `python docs/generate_cli.py`. Every command takes `--help`; those that show
something take `--json`. A refusal is one line on stderr and exit code 2.
"""


def walk(
    command: click.Command, path: tuple[str, ...], parent: click.Context | None
) -> Iterator[tuple[str, str]]:
    """(command line, its help text) for a command and everything below it."""
    context = click.Context(
        command,
        info_name=path[-1],
        parent=parent,
        terminal_width=100,
        max_content_width=100,
        **command.context_settings,
    )
    yield " ".join(path), command.get_help(context)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None, name
            yield from walk(child, (*path, name), context)


def render() -> str:
    """The whole page."""
    parts = [HEAD]
    for line, text in walk(cli, ("moorage",), None):
        parts.append(f"\n## `{line}`\n\n```text\n{text.rstrip()}\n```\n")
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(render())
    print(f"{PAGE.name}: {len(COMMANDS)} commands")
