"""The one place that knows matplotlib: axes in a page's look, written as SVG to put straight into HTML.

Sizes are in points that equal CSS pixels when the figure is shown at its natural width: a figure is drawn once
`WIDE` and once `NARROW`, and the page shows the one that fits, so that text keeps its size on a phone.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Mapping
from html import escape
from typing import Any

from moorage.runtime.telemetry import palette

WIDE, HALF, NARROW = 860.0, 418.0, 350.0
_POINTS_PER_INCH = 72.0
_STYLE = {
    # text stays text: selectable, read aloud, in the page's own font
    "svg.fonttype": "none",
    "font.size": 11,
    "axes.edgecolor": palette.MUTED,
    "axes.labelcolor": palette.MUTED,
    "xtick.color": palette.MUTED,
    "ytick.color": palette.INK,
    "hatch.linewidth": 0.7,
}


class Canvas:
    """A figure of `width` x `height` points."""

    def __init__(self, width: float, height: float) -> None:
        import matplotlib as mpl
        from matplotlib.figure import Figure

        self.width, self.height = width, height
        with mpl.rc_context(_STYLE):
            self.figure = Figure(figsize=(width / _POINTS_PER_INCH, height / _POINTS_PER_INCH))

    def axes(self, *, left: float, right: float, top: float, bottom: float) -> Any:
        """Axes with these margins in points."""
        import matplotlib as mpl

        box = (
            left / self.width,
            bottom / self.height,
            (self.width - left - right) / self.width,
            (self.height - top - bottom) / self.height,
        )
        with mpl.rc_context(_STYLE):
            axes = self.figure.add_axes(box)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.spines["bottom"].set_color(palette.GRID)
        axes.tick_params(length=0, labelsize=11)
        axes.set_axisbelow(True)
        return axes

    def svg(self, spoken: str, name: str) -> str:
        """SVG for inline use: no XML prologue, no fixed size, ids of its own, `spoken` for screen readers."""
        import matplotlib as mpl

        out = io.StringIO()
        with mpl.rc_context(_STYLE | {"svg.hashsalt": name}):
            self.figure.savefig(
                out,
                format="svg",
                transparent=True,
                metadata={"Creator": None, "Date": None, "Format": None, "Type": None},
            )
        return _inline(out.getvalue(), spoken, name)


def _inline(text: str, spoken: str, name: str) -> str:
    body = text[text.index("<svg") :]
    body = re.sub(r"<style[^>]*>.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r"<!--.*?-->\s*", "", body, flags=re.DOTALL)
    body = re.sub(r"<metadata>.*?</metadata>\s*", "", body, flags=re.DOTALL)
    prefix = hashlib.sha256((name + body).encode()).hexdigest()[:6]
    body = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', body)
    body = re.sub(r"url\(#", f"url(#{prefix}-", body)
    body = re.sub(r'href="#', f'href="#{prefix}-', body)
    head, rest = body.split(">", 1)
    view = re.search(r'viewBox="[^"]+"', head)
    assert view is not None
    opening = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'{view.group()} role="img" aria-label="{escape(spoken, quote=True)}">'
    )
    return opening + rest.strip()


def box(
    axes: Any,
    x: float,
    y: float,
    width: float,
    height: float,
    colour: str,
    *,
    edge: str = "",
    hatched: bool = False,
) -> None:
    """A rectangle in data coordinates with a thin gap around it."""
    from matplotlib.patches import Rectangle

    axes.add_patch(
        Rectangle(
            (x, y),
            width,
            height,
            facecolor=colour,
            edgecolor=edge or palette.PAPER,
            linewidth=1.0,
            hatch="////" if hatched else None,
        )
    )


def label(
    axes: Any,
    x: float,
    y: float,
    text: str,
    colour: str,
    *,
    size: float = 11,
    anchor: str = "center",
    vertical: str = "center",
    weight: str = "normal",
    ground: str = "",
) -> None:
    """Text in data coordinates. Never read as math: job names may hold a dollar sign."""
    behind = {"facecolor": ground, "edgecolor": "none", "pad": 1.5} if ground else None
    axes.text(
        x,
        y,
        text,
        color=colour,
        fontsize=size,
        ha=anchor,
        va=vertical,
        fontweight=weight,
        bbox=behind,
        parse_math=False,
    )


def vertical(axes: Any, x: float, colour: str) -> None:
    axes.axvline(x, color=colour, linewidth=1.2, linestyle=(0, (4, 2)))


def key(axes: Any, names: Mapping[str, str]) -> None:
    """A legend of coloured squares below the axis, at its right end: name -> colour."""
    from matplotlib.patches import Patch

    handles = [Patch(color=colour, label=name.replace("$", r"\$")) for name, colour in names.items()]
    axes.legend(
        handles=handles,
        loc="upper right",
        bbox_to_anchor=(1, 0),
        bbox_transform=axes.transAxes,
        borderaxespad=1.55,
        borderpad=0,
        ncols=len(handles) or 1,
        frameon=False,
        fontsize=10,
        handlelength=0.9,
        handleheight=0.9,
        columnspacing=1.2,
        labelcolor=palette.INK,
    )


def seconds_axis(axes: Any, end: float, narrow: bool) -> None:
    """Ticks at round times, written m:ss."""
    steps = (5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600)
    step = next((s for s in steps if end / s <= (6 if narrow else 12)), 7200)
    ticks = [float(t) for t in range(0, int(end) + 1, step)]
    axes.set_xticks(ticks, [f"{int(t) // 60}:{int(t) % 60:02d}" for t in ticks])
    axes.grid(axis="x", color=palette.GRID, linewidth=0.8)
    axes.set_xlabel(
        "minutes:seconds since the first submission" if not narrow else "min:s", fontsize=10, loc="left"
    )
