"""A report drawn: one question per picture, as SVG or PNG. Needs matplotlib (`moorage[plots]`)."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from moorage.errors import InvalidRequest
from moorage.runtime.history.runs import Report

FORMATS = ("svg", "png")
_COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#000000",
    "#882255",
    "#999933",
)
"""Okabe and Ito's, and two of Tol's: apart for the colour-blind too."""
_TEAMS_SHOWN = 20
_BESIDE = 3
"""Policies that the legend has room for beside a title."""
_CLOSE_UP = 75
"""Percent of demand from which policies differ."""


def library() -> Any:
    """matplotlib, without a screen; InvalidRequest says what to install."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise InvalidRequest(
            "the pictures need the package matplotlib",
            todo="install it: pip install 'moorage[plots]', or leave --out away",
            code="extra-missing",
        ) from None
    matplotlib.rcParams["svg.hashsalt"] = "moorage"  # the same report is the same file
    return SimpleNamespace(Figure=Figure)


def draw(report: Report, folder: Path, form: str) -> list[Path]:
    """The pictures of a report, written into `folder`; their paths."""
    plots = library()
    drawn = [
        ("allocation", _allocation),
        ("fragmentation", _fragmentation),
        ("acceptance", _acceptance),
        ("jct", _jct),
        ("queued", _queued),
        ("fairness", _fairness),
    ]
    made = []
    for name, picture in drawn:
        figure = plots.Figure(figsize=(7.2, 4.2), layout="constrained")
        axes = figure.add_subplot()
        if not picture(axes, report):
            continue
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
        path = folder / f"{name}.{form}"
        figure.savefig(path, dpi=150, metadata={"Date": None} if form == "svg" else None)
        made.append(path)
    return made


def _policies(report: Report) -> list[tuple[str, str, dict[str, Any]]]:
    """(policy, colour, figures)."""
    found: dict[str, dict[str, Any]] = report.data["policies"]
    return [(name, _COLOURS[at % len(_COLOURS)], one) for at, (name, one) in enumerate(found.items())]


def _legend(axes: Any) -> None:
    """Beside the title, so that it covers no figure; below it all when there are many."""
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > _BESIDE:
        axes.figure.legend(handles, labels, frameon=False, loc="outside lower center", ncols=3, fontsize=8)
        return
    axes.legend(
        frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=3, borderaxespad=0.1, fontsize=8
    )


def _over_demand(axes: Any, report: Report, column: str) -> bool:
    if report.data["trace"] != "openb":
        return False
    for name, colour, found in _policies(report):
        axes.plot(range(len(found[column])), found[column], color=colour, label=name, linewidth=1.6)
    axes.set_xlabel("GPU demand that arrived (% of the GPUs)")
    axes.grid(alpha=0.25)
    _legend(axes)
    return True


def _allocation(axes: Any, report: Report) -> bool:
    if not _over_demand(axes, report, "allocation_by_demand"):
        return False
    last = round(100 * report.data["demand"])
    axes.plot([0, min(last, 100)], [0, min(last, 100)], color="#999999", linestyle=":", linewidth=1)
    if last > 100:  # below that the lines are one
        axes.set(xlim=(_CLOSE_UP, last), ylim=(_CLOSE_UP, 100))
    axes.set_ylabel("GPUs held (%)")
    axes.set_title(f"Allocation, mean of {len(report.data['seeds'])} seeds", loc="left")
    return True


def _fragmentation(axes: Any, report: Report) -> bool:
    if not _over_demand(axes, report, "idle_though_asked_by_demand"):
        return False
    axes.set_ylabel("GPUs idle though asked for (%)")
    axes.set_title("What fragmentation costs", loc="left")
    axes.set_ylim(bottom=0)
    return True


def _acceptance(axes: Any, report: Report) -> bool:
    if report.data["trace"] != "openb":
        return False
    classes = list(report.data["acceptance_by_class"])
    policies = _policies(report)
    width = 0.8 / len(policies)
    for at, (name, colour, found) in enumerate(policies):
        values = [found["acceptance_by_class"][one] for one in classes]
        axes.bar(np.arange(len(classes)) + (at + 0.5) * width - 0.4, values, width, color=colour, label=name)
    axes.set_xticks(range(len(classes)), classes)
    axes.set_ylabel("jobs placed when they came (%)")
    axes.set_title(f"Acceptance at {round(100 * report.data['demand'])}% demand", loc="left")
    _legend(axes)
    return True


def _jct(axes: Any, report: Report) -> bool:
    if not report.jct_hours:
        return False
    for name, colour, found in _policies(report):
        hours = report.jct_hours[name]
        if not len(hours):
            continue
        # a million steps are no more to the eye than two thousand
        at = np.unique(np.linspace(0, len(hours) - 1, min(len(hours), 2000)).astype(np.int64))
        mean = found["avg_jct_hours"]
        axes.step(
            np.maximum(hours[at], 1e-3),
            100 * (at + 1) / len(hours),
            where="post",
            color=colour,
            label=f"{name} (mean {mean:.1f} h)",
        )
    axes.set_xscale("log")
    axes.set_xlabel("completion time from submission (hours)")
    axes.set_ylabel("jobs (%)")
    axes.set_title("Job completion time", loc="left")
    axes.grid(alpha=0.25)
    _legend(axes)
    return True


def _queued(axes: Any, report: Report) -> bool:
    if not report.jct_hours:
        return False
    policies = _policies(report)
    values = [found["max_queued_stint_hours"] or 0.0 for _, _, found in policies]
    axes.barh(range(len(policies)), values, color=[colour for _, colour, _ in policies])
    axes.set_yticks(range(len(policies)), [name for name, _, _ in policies])
    axes.invert_yaxis()
    axes.set_xlabel("hours")
    axes.set_title("Longest time one job was queued at a stretch", loc="left")
    return True


def _fairness(axes: Any, report: Report) -> bool:
    """Mean JCT of each team. Of several policies, against the static partition if it is there, else the first."""
    if not report.jct_hours:
        return False
    policies = _policies(report)
    base = next((one for one in policies if one[0].startswith("static")), policies[0])
    mean = {
        name: {team: one["avg_jct_hours"] for team, one in f["by_team"].items()} for name, _, f in policies
    }
    share = {team: one["gpu_share"] for team, one in base[2]["by_team"].items()}
    teams = [t for t in sorted(share, key=lambda t: -share[t]) if all(mean[name][t] for name in mean)]
    teams = teams[:_TEAMS_SHOWN]
    compared = len(policies) > 1
    for name, colour, _ in policies:
        if compared and name == base[0]:
            continue
        values = [mean[name][team] / (mean[base[0]][team] if compared else 1) for team in teams]
        axes.plot(range(len(teams)), values, "o", color=colour, label=name)
    if compared:
        axes.axhline(1, color="#999999", linestyle=":", linewidth=1)
        _legend(axes)
    axes.set_ylabel(f"mean JCT / that under {base[0]}" if compared else "mean JCT (hours)")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    # of the steps between powers of ten some, or their numbers run into each other
    axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
    labels = [f"{team}\n{100 * share[team]:.0f}%" for team in teams]
    axes.set_xticks(range(len(teams)), labels, fontsize=6)
    axes.set_xlabel("team, and its share of the GPU time")
    axes.set_title("Fairness: completion time by team", loc="left")
    return True
