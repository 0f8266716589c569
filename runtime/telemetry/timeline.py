"""Who held which device when: intervals of leases laid out as bars, one row per device.

A fraction takes its share of the row's height. `lay_out` is geometry only; `draw` makes the picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from moorage.runtime.telemetry import figure, palette

WHOLE = 1000
"""Milli-GPU of a device: the height of a row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """`milli_gpu` (1..1000) of device `device` of `node`, held by `job` from `start_s` to `end_s` (common origin)."""

    node: str
    device: int
    team: str
    job: str
    milli_gpu: int
    start_s: float
    end_s: float
    number: int = 0
    """Of the decision that granted it, to be looked up in a table; 0 = none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """A job that waited in the queue. `reason` is a short sentence."""

    team: str
    job: str
    start_s: float
    end_s: float
    reason: str = ""
    number: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A moment worth a line across the picture."""

    at_s: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One rectangle of a holding: `low` and `high` are milli-GPU within its device's row."""

    holding: Holding
    low: int
    high: int


def lay_out(holdings: Sequence[Holding]) -> list[Bar]:
    """Rectangles that never overlap within a device, in start order.

    A holding gets the lowest gap that fits it whole; without one it is cut into the gaps there are. Raises
    ValueError when a device is held beyond 1000 milli-GPU: a picture that hides an over-commit would lie.
    """
    bars: list[Bar] = []
    active: dict[tuple[str, int], list[Bar]] = {}
    # at equal times the longer comes first, so that what stays lies below what goes
    for held in sorted(holdings, key=lambda h: (h.start_s, -h.end_s, h.team, h.job, h.node, h.device)):
        if not 0 < held.milli_gpu <= WHOLE or held.end_s < held.start_s:
            raise ValueError(f"not a holding of one device: {held}")
        row = [bar for bar in active.get((held.node, held.device), ()) if bar.holding.end_s > held.start_s]
        pieces = [Bar(holding=held, low=low, high=high) for low, high in _room(row, held)]
        active[held.node, held.device] = row + pieces
        bars += pieces
    return bars


def _room(row: Sequence[Bar], held: Holding) -> list[tuple[int, int]]:
    gaps, at = [], 0
    for bar in sorted(row, key=lambda b: b.low):
        gaps.append((at, bar.low))
        at = bar.high
    gaps = [(low, high) for low, high in [*gaps, (at, WHOLE)] if high > low]
    for low, high in gaps:
        if high - low >= held.milli_gpu:
            return [(low, low + held.milli_gpu)]
    pieces, left = [], held.milli_gpu
    for low, high in gaps:
        take = min(left, high - low)
        if take:
            pieces.append((low, low + take))
            left -= take
    if left:
        raise ValueError(
            f"device {held.device} of {held.node} is held {WHOLE + left} milli-GPU "
            f"at {held.start_s:.3f} s, by {held.job} among others"
        )
    return pieces


def device_seconds(holdings: Sequence[Holding]) -> float:
    """GPU-seconds of all holdings: what the picture's area stands for."""
    return sum((h.end_s - h.start_s) * h.milli_gpu for h in holdings) / WHOLE


def draw(
    holdings: Sequence[Holding],
    devices: Sequence[tuple[str, int]],
    *,
    waits: Sequence[Wait] = (),
    marks: Sequence[Mark] = (),
    names: Mapping[str, str] | None = None,
    width: float = figure.WIDE,
) -> str:
    """The picture as SVG text. `devices` are all rows, held or not, top to bottom; `names` are short job labels."""
    names = names or {}
    bars = lay_out(holdings)
    every = [(h.team, h.job) for h in sorted(holdings, key=lambda h: h.start_s)] + [
        (w.team, w.job) for w in waits
    ]
    colours = palette.job_colours(every)
    end = max([*(h.end_s for h in holdings), *(w.end_s for w in waits), *(m.at_s for m in marks), 1.0])
    narrow = width < figure.WIDE
    rows = len(devices) + len(waits)
    canvas = figure.Canvas(width, 78 + (30 if narrow else 34) * rows + (24 if waits else 0))
    axes = canvas.axes(left=78 if narrow else 92, right=14, top=30, bottom=40)
    place = {device: index for index, device in enumerate(devices)}
    for index in range(len(devices)):
        figure.box(axes, 0, index, end * 1.01, 0.9, palette.TRACK)
    for bar in bars:
        _bar(axes, bar, place[bar.holding.node, bar.holding.device], colours, names, end, width)
    first_wait = len(devices) + 0.7
    for index, wait in enumerate(waits):
        _wait(axes, wait, first_wait + index, colours[wait.team, wait.job], names, end, width)
    bottom = first_wait + len(waits) - 0.2 if waits else len(devices) - 0.05
    axes.set_xlim(0, end * 1.01)
    axes.set_ylim(bottom, -0.3)
    ticks = [i + 0.45 for i in range(len(devices))] + [first_wait + i + 0.4 for i in range(len(waits))]
    labels = [_device_label(node, device, narrow) for node, device in devices] + ["waiting"] * len(waits)
    axes.set_yticks(ticks, labels, parse_math=False)
    nodes = [node for node, _ in devices]
    for index in range(1, len(nodes)):
        if nodes[index] != nodes[index - 1]:
            axes.axhline(index - 0.05, color=palette.MUTED, linewidth=0.8)
    figure.seconds_axis(axes, end, narrow)
    figure.key(axes, {team: palette.job_colours([(t, "") for t, _ in every])[team, ""] for team, _ in every})
    for mark in marks:
        _mark(axes, mark, end)
    return canvas.svg(_spoken(holdings, waits, end), "timeline")


def _device_label(node: str, device: int, narrow: bool) -> str:
    return f"{node.replace('node-', 'n')}·{device}" if narrow else f"{node} · {device}"


def _bar(
    axes: object,
    bar: Bar,
    row: int,
    colours: Mapping[tuple[str, str], str],
    names: Mapping[str, str],
    end: float,
    width: float,
) -> None:
    held, tall = bar.holding, (bar.high - bar.low) / WHOLE * 0.9
    colour = colours[held.team, held.job]
    top = row + 0.9 - bar.high / WHOLE * 0.9
    figure.box(axes, held.start_s, top, held.end_s - held.start_s, tall, colour)
    share = "" if held.milli_gpu == WHOLE else f" {held.milli_gpu / WHOLE:g}"
    text = _numbered(held.number, names.get(held.job, held.job) + share)
    room = (held.end_s - held.start_s) / end * (width - 110)
    if held.number and room <= 6.2 * len(text):
        text = str(held.number)
    if tall > 0.34 and room > 6.2 * len(text):
        middle = held.start_s + (held.end_s - held.start_s) / 2
        figure.label(axes, middle, top + tall / 2, text, palette.ink_on(colour), size=10 if tall > 0.5 else 9)


def _numbered(number: int, text: str) -> str:
    return f"{number} · {text}" if number else text


def _wait(
    axes: object, wait: Wait, top: float, colour: str, names: Mapping[str, str], end: float, width: float
) -> None:
    figure.box(
        axes, wait.start_s, top, wait.end_s - wait.start_s, 0.8, palette.PAPER, edge=colour, hatched=True
    )
    text = _numbered(wait.number, names.get(wait.job, wait.job) + (f": {wait.reason}" if wait.reason else ""))
    per_second = (width - 110) / end
    if (wait.end_s - wait.start_s) * per_second > 6.2 * len(text) + 12:
        middle = (wait.start_s + wait.end_s) / 2
        figure.label(axes, middle, top + 0.4, text, palette.INK, size=10, ground=palette.PAPER)
        return
    if max(end - wait.end_s, wait.start_s) * per_second < 5.5 * len(text):
        text = _numbered(wait.number, names.get(wait.job, wait.job))
    right = (end - wait.end_s) * per_second > 5.5 * len(text) or wait.start_s < end - wait.end_s
    at = wait.end_s + end * 0.01 if right else wait.start_s - end * 0.01
    figure.label(axes, at, top + 0.4, text, palette.INK, size=10, anchor="left" if right else "right")


def _mark(axes: object, mark: Mark, end: float) -> None:
    figure.vertical(axes, mark.at_s, palette.BAD)
    left = mark.at_s < end * 0.7
    figure.label(
        axes,
        mark.at_s + (0.006 if left else -0.006) * end,
        -0.2,
        mark.text,
        palette.BAD,
        size=10,
        anchor="left" if left else "right",
        vertical="bottom",
        weight="bold",
    )


def _spoken(holdings: Sequence[Holding], waits: Sequence[Wait], end: float) -> str:
    jobs = sorted({f"{h.job} of {h.team}" for h in holdings})
    queue = f"; waited: {', '.join(w.job for w in waits)}" if waits else ""
    return f"Devices over {end:.0f} seconds, held by {', '.join(jobs) or 'nobody'}{queue}"
