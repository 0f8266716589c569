"""A report as one self-contained HTML page: no script, no request to anywhere, every text escaped.

`Report` is data; `render` writes it. Figures come twice, wide and narrow, and the style sheet shows the one that fits.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal, TypeAlias

from moorage.runtime.telemetry.style import CSS

LONG_CELL = 40
"""Letters in a last cell from which a narrow screen gives it a line of its own."""

Tone = Literal["", "good", "bad", "warn"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """SVG text of our own drawing (trusted, put in as it is) with a caption."""

    wide: str
    narrow: str
    caption: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two pictures side by side where there is room, one below the other where there is not."""

    left: Picture
    right: Picture


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows of text; `numbers` are the indexes of right-aligned columns; `tones` colours a row's first cell."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: frozenset[int] = frozenset()
    tones: Sequence[Tone] = ()
    caption: str = ""
    strong: frozenset[int] = frozenset()


Part: TypeAlias = str | Picture | Pair | Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """One headline figure."""

    figure: str
    text: str
    tone: Tone = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """`parts` are shown in order: a paragraph (str), one or two pictures, or a table."""

    title: str
    parts: Sequence[Part]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    title: str
    lead: str
    verdict: str
    held: bool
    tiles: Sequence[Tile]
    sections: Sequence[Section]
    foot: str = ""


def render(report: Report) -> str:
    """The page. The policy in its head forbids it to load or run anything, whatever text it was given."""
    tone = "good" if report.held else "bad"
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">",
        f"<title>{escape(report.title)}</title>",
        f"<style>{CSS}</style></head><body><main>",
        f"<header><h1>{escape(report.title)}</h1><p class=lead>{_prose(report.lead)}</p>",
        f'<p class="verdict {tone}">{escape(report.verdict)}</p></header>',
        '<div class="tiles">' + "".join(_tile(tile) for tile in report.tiles) + "</div>",
        *(_section(section, number) for number, section in enumerate(report.sections, 1)),
        f"<footer>{escape(report.foot)}</footer></main></body></html>",
    ]
    return "\n".join(parts) + "\n"


def _prose(text: str) -> str:
    """Escaped text in which `this` is code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _tile(tile: Tile) -> str:
    return f'<div class="tile {tile.tone}"><b>{escape(tile.figure)}</b><span>{escape(tile.text)}</span></div>'


def _section(section: Section, number: int) -> str:
    body = "\n".join(_part(part) for part in section.parts)
    return f"<section><h2><i>{number}</i>{escape(section.title)}</h2>\n{body}</section>"


def _part(part: Part) -> str:
    if isinstance(part, str):
        return f"<p>{_prose(part)}</p>"
    if isinstance(part, Picture):
        caption = f"<figcaption>{_prose(part.caption)}</figcaption>" if part.caption else ""
        return f'<figure><div class="wide">{part.wide}</div><div class="narrow">{part.narrow}</div>{caption}</figure>'
    if isinstance(part, Pair):
        return f'<div class="pair">{_part(part.left)}{_part(part.right)}</div>'
    return _table(part)


def _table(table: Table) -> str:
    def cell(tag: str, index: int, text: str, tone: str = "") -> str:
        classes = " ".join(c for c in ("n" if index in table.numbers else "", tone) if c)
        kind = f' class="{classes}"' if classes else ""
        return f"<{tag}{kind}>{_prose(text)}</{tag}>"

    head = "".join(cell("th", i, text) for i, text in enumerate(table.head))
    rows = []
    for number, row in enumerate(table.rows):
        tone = table.tones[number] if number < len(table.tones) else ""
        cells = "".join(cell("td", i, text, tone if i == 0 else "") for i, text in enumerate(row))
        rows.append(f"<tr{' class=strong' if number in table.strong else ''}>{cells}</tr>")
    caption = f"<p class=caption>{_prose(table.caption)}</p>" if table.caption else ""
    prose = " class=prose" if any(row and len(row[-1]) > LONG_CELL for row in table.rows) else ""
    return (
        f'<div class="scroll"><table{prose}><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>{caption}"
    )
