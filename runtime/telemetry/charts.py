"""The report's charts other than the timeline. Each takes plain lists and gives SVG text, wide or narrow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from moorage.runtime.telemetry import figure, palette, shift


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A named line; `x` and `y` have the same length. `detail` stands behind the name in the legend."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Amount:
    """One bar: `value` of `job` of `team`, with `text` at its end."""

    team: str
    job: str
    value: float
    text: str


def shift_map(
    rows: Sequence[Mapping[str, object]], columns: Sequence[str], *, top: int = 12, width: float = figure.WIDE
) -> str:
    """A heat map of PSI: the `top` rows of `shift.shift_table` by the named samples (months), figures in the cells."""
    from matplotlib.colors import LinearSegmentedColormap

    narrow = width < figure.WIDE
    shown = list(rows)[:top]
    cells = [[float(row["psi"][column]) for column in columns] for row in shown]  # type: ignore[index]
    canvas = figure.Canvas(width, 40 + 27 * len(shown))
    axes = canvas.axes(left=124 if narrow else 210, right=8, top=30, bottom=6)
    # the scale's steps are the reading's: paper, some at 0.10, strong from 0.25 on
    colours = LinearSegmentedColormap.from_list("shift", ["#F4F7FA", "#F6D9A8", "#D55E00", "#7A2E00"])
    for y, line in enumerate(cells):
        for x, value in enumerate(line):
            colour = _hex(colours(_scaled(value)))
            figure.box(axes, x, y, 1, 1, colour)
            figure.label(axes, x + 0.5, y + 0.5, f"{value:.2f}", palette.ink_on(colour), size=10)
    axes.set_xlim(0, len(columns))
    axes.set_ylim(len(shown), 0)
    axes.xaxis.tick_top()
    axes.set_xticks(
        [x + 0.5 for x in range(len(columns))], [c[:3] for c in columns] if narrow else list(columns)
    )
    names = [_short(str(row["name"]), 20 if narrow else 34) for row in shown]
    axes.set_yticks(
        [y + 0.5 for y in range(len(shown))], names, parse_math=False, fontsize=10 if narrow else 11
    )
    axes.spines["bottom"].set_visible(False)
    worst = f"{shown[0]['name']} {shown[0]['max']:.2f}" if shown else "none"
    return canvas.svg(f"Population stability index by feature and month; the largest is {worst}", "shift")


def _scaled(value: float) -> float:
    if value <= shift.SOME:
        return value / shift.SOME * 0.33
    if value <= shift.LARGE:
        return 0.33 + (value - shift.SOME) / (shift.LARGE - shift.SOME) * 0.33
    return min(0.66 + (value - shift.LARGE) * 0.34, 1.0)


def _hex(rgba: Sequence[float]) -> str:
    return "#" + "".join(f"{round(channel * 255):02X}" for channel in rgba[:3])


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def roc(curves: Sequence[Curve], *, width: float = figure.WIDE) -> str:
    """ROC curves; the diagonal is chance."""
    canvas = figure.Canvas(width, min(width, 420.0))
    axes = canvas.axes(left=48, right=12, top=10, bottom=46)
    axes.plot([0, 1], [0, 1], color=palette.GRID, linewidth=1.5)
    for index, curve in enumerate(curves):
        axes.plot(curve.x, curve.y, **_line(index), label=_legend(curve))
    axes.set(xlim=(0, 1), ylim=(0, 1.005), xlabel="false positive rate", ylabel="true positive rate")
    _finish(axes)
    return canvas.svg("ROC curves: " + _listed(curves), "roc")


def calibration(curves: Sequence[Curve], *, width: float = figure.WIDE) -> str:
    """Observed rate against predicted probability, by bins of the prediction; the diagonal is perfect."""
    canvas = figure.Canvas(width, min(width, 420.0))
    axes = canvas.axes(left=48, right=12, top=10, bottom=46)
    top = max([0.1, *(v for c in curves for v in (*c.x, *c.y))]) * 1.05
    axes.plot([0, top], [0, top], color=palette.GRID, linewidth=1.5)
    for index, curve in enumerate(curves):
        axes.plot(curve.x, curve.y, marker="o", markersize=4, **_line(index), label=_legend(curve))
    axes.set(
        xlim=(0, top), ylim=(0, top), xlabel="predicted probability of delay", ylabel="share that was late"
    )
    _finish(axes)
    return canvas.svg("Calibration: " + _listed(curves), "calibration")


def lines(
    curves: Sequence[Curve], ticks: Sequence[str], *, ylabel: str, name: str, width: float = figure.WIDE
) -> str:
    """Lines over named positions 0..n-1 (months)."""
    canvas = figure.Canvas(width, 250.0)
    axes = canvas.axes(left=54, right=12, top=10, bottom=28)
    for index, curve in enumerate(curves):
        axes.plot(curve.x, curve.y, marker="o", markersize=4, **_line(index), label=_legend(curve))
    axes.set_xticks(range(len(ticks)), [t[:3] for t in ticks] if width < figure.WIDE else list(ticks))
    axes.set_ylabel(ylabel, fontsize=10)
    axes.margins(y=0.25)
    _finish(axes)
    return canvas.svg(f"{ylabel} by month: " + _listed(curves), name)


def progress(curves: Sequence[Curve], *, at: float, width: float = figure.WIDE) -> str:
    """Steps over seconds, a line per process; a dashed line at second `at`."""
    canvas = figure.Canvas(width, 260.0)
    axes = canvas.axes(left=54, right=12, top=14, bottom=44)
    for index, curve in enumerate(curves):
        axes.plot(curve.x, curve.y, **_line(index), label=_legend(curve))
    figure.vertical(axes, at, palette.BAD)
    axes.set(xlabel="seconds since the first step", ylabel="optimiser step")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    _finish(axes)
    return canvas.svg("Training progress: " + _listed(curves), "progress")


def latency(
    milliseconds: Sequence[float], marks: Sequence[tuple[str, float]], *, width: float = figure.WIDE
) -> str:
    """The distribution of request latencies as a cumulative line on a logarithmic axis, with the given percentiles."""
    ordered = sorted(milliseconds)
    canvas = figure.Canvas(width, 240.0)
    axes = canvas.axes(left=48, right=14, top=26, bottom=44)
    axes.plot(
        ordered, [(i + 1) / len(ordered) for i in range(len(ordered))], color=palette.HUES[0], linewidth=2
    )
    for text, value in marks:
        figure.vertical(axes, value, palette.MUTED)
        figure.label(axes, value, 1.03, text, palette.INK, size=10, vertical="bottom")
    axes.set_xscale("log")
    axes.set(ylim=(0, 1.0), xlabel="milliseconds (logarithmic)", ylabel="share of requests")
    low, high = ordered[0], ordered[-1]
    ticks = [
        t for t in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000) if low * 0.8 <= t <= high * 1.2
    ]
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.minorticks_off()
    axes.grid(color=palette.GRID, linewidth=0.8)
    return canvas.svg("Latency of requests: " + ", ".join(f"{t} {v:.1f} ms" for t, v in marks), "latency")


def amounts(
    bars: Sequence[Amount],
    *,
    name: str,
    unit: str,
    order: Sequence[tuple[str, str]] = (),
    width: float = figure.WIDE,
) -> str:
    """Horizontal bars, one per job. `order` is the (team, job) order that gives another picture's colours."""
    narrow = width < figure.WIDE
    colours = palette.job_colours([*order, *((bar.team, bar.job) for bar in bars)])
    canvas = figure.Canvas(width, 16 + 26 * len(bars))
    axes = canvas.axes(left=140 if narrow else 220, right=84 if narrow else 130, top=4, bottom=10)
    for row, bar in enumerate(bars):
        figure.box(axes, 0, row + 0.12, bar.value, 0.76, colours[bar.team, bar.job])
        figure.label(axes, bar.value, row + 0.5, f" {bar.text}", palette.INK, size=10, anchor="left")
    axes.set_xlim(0, max([bar.value for bar in bars] + [1e-9]))
    axes.set_ylim(max(len(bars), 1), 0)
    axes.set_xticks([])
    names = [_short(f"{bar.team} · {bar.job}", 22 if narrow else 36) for bar in bars]
    axes.set_yticks(
        [row + 0.5 for row in range(len(bars))], names, parse_math=False, fontsize=10 if narrow else 11
    )
    axes.spines["bottom"].set_visible(False)
    return canvas.svg(f"{unit} per job: " + ", ".join(f"{b.team} {b.job} {b.text}" for b in bars), name)


_DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))


def _line(index: int) -> dict[str, object]:
    """Lines differ by dash as well as colour: they must stay apart on paper too."""
    return {
        "color": palette.HUES[index % len(palette.HUES)],
        "linestyle": _DASHES[index % len(_DASHES)],
        "linewidth": 2.0,
    }


def _legend(curve: Curve) -> str:
    return curve.name + (f"  {curve.detail}" if curve.detail else "")


def _listed(curves: Sequence[Curve]) -> str:
    return ", ".join(_legend(curve) for curve in curves)


def _finish(axes: object) -> None:
    axes.grid(color=palette.GRID, linewidth=0.8)  # type: ignore[attr-defined]
    axes.legend(frameon=False, fontsize=10, labelcolor=palette.INK)  # type: ignore[attr-defined]
