"""An inference surge as it happened: who held the GPUs, what was asked of the endpoint, how long answers took.

Everything comes from the pool's own events (leases, notices, replicas) and from what each request got; nothing is
smoothed but the rates and latencies, which are of whole seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from moorage.runtime.telemetry import figure, palette

SERVING, TRAINING = palette.HUES[0], palette.mix(palette.HUES[1], palette.PAPER, 0.45)
P50, P99 = palette.HUES[2], palette.HUES[3]
Steps = list[tuple[float, float]]
"""(second, value from then on), in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """Seconds are since `origin` (wall time, seconds). `requests`: (when, seconds it took, status), in order sent."""

    origin: float
    end: float
    gpus: Mapping[str, Steps]
    """`serving` and `training`: GPUs that each had leased."""
    replicas: Steps
    notices: Sequence[float]
    marks: Mapping[str, float]
    """`surge` and `calm`: when more requests came, and when fewer."""
    requests: Sequence[tuple[float, float, int]]
    moments: Mapping[str, float] = field(default_factory=dict)
    """First times, after the surge or the calm began: `wanted`, `notice`, `checkpointed`, `released`, `granted`,
    `serving`, `all`, `drained`, `back`, `resumed`."""

    @classmethod
    def of(cls, run: Mapping[str, Any]) -> Story:
        """From `marks`, `events` of the jobs `endpoint` and `training`, and `requests`."""
        events = sorted(run["events"], key=lambda one: int(one["seq"]))
        sent = sorted(tuple(one) for one in run["requests"])
        origin = min(one["wall_ns"] for one in events if one["kind"] == "lease.granted") / 1e9
        marks = {name: at - origin for name, at in run["marks"].items()}
        jobs = {run["endpoint"]: "serving", run["training"]: "training"}
        told = [(one["wall_ns"] / 1e9 - origin, jobs.get(one["job_id"], ""), one) for one in events]
        replicas = [
            (at, float(one["payload"]["serving"])) for at, _, one in told if one["kind"] == "endpoint.scaled"
        ]
        return cls(
            origin=origin,
            end=marks.get("end", told[-1][0]),
            gpus=_held(told),
            replicas=replicas,
            notices=[at for at, _, one in told if one["kind"] == "preemption.notice"],
            marks=marks,
            requests=[(at - origin, took, status) for at, took, status in sent],
            moments=_moments(told, marks),
        )

    def figures(self) -> dict[str, Any]:
        """What is worth a line in a table; seconds, milliseconds and counts."""
        begun, over, m = self.marks["surge"], self.marks["calm"], self.moments
        since = {
            name: round(m[name] - begun, 1)
            for name in ("wanted", "notice", "checkpointed", "released", "granted", "serving", "all")
            if name in m
        }
        back = {name: round(m[name] - over, 1) for name in ("drained", "back", "resumed") if name in m}
        phases = {"calm": (0.0, begun), "surge": (begun, over), "after": (over, self.end)}
        phases["all replicas"] = (m.get("all", over) + 5, over)
        return {
            "after_surge_s": since,
            "after_calm_s": back,
            "requests": len(self.requests),
            "failed": sum(status != 200 for *_, status in self.requests),
            "latency_ms": {
                name: {
                    f"p{q}": _ms([took for at, took, _ in self.requests if low <= at < high], q)
                    for q in (50, 99)
                }
                for name, (low, high) in phases.items()
                if high > low
            },
        }


def _held(told: Sequence[tuple[float, str, Mapping[str, Any]]]) -> dict[str, Steps]:
    found: dict[str, Steps] = {"serving": [(0.0, 0.0)], "training": [(0.0, 0.0)]}
    sizes: dict[str, float] = {}
    for at, who, one in told:
        kind, lease = one["kind"], one["lease_id"]
        if kind not in ("lease.granted", "lease.resized", "lease.released") or not who:
            continue
        before = sizes.get(lease, 0.0)
        sizes[lease] = 0.0 if kind == "lease.released" else one["payload"]["milli_gpu"] / 1000
        found[who].append((at, found[who][-1][1] + sizes[lease] - before))
    return found


def _moments(
    told: Sequence[tuple[float, str, Mapping[str, Any]]], marks: Mapping[str, float]
) -> dict[str, float]:
    begun, over, found = marks.get("surge", 0.0), marks.get("calm", float("inf")), dict[str, float]()
    most = max(
        (one["payload"]["serving"] for _, _, one in told if one["kind"] == "endpoint.scaled"), default=0
    )

    def first(name: str, at: float, since: float) -> None:
        if at >= since:
            found.setdefault(name, at)

    for at, who, one in told:
        kind, said = one["kind"], one["payload"]
        if kind == "endpoint.scaled":
            for name, there in (("wanted", said["wanted"] > 1), ("serving", said["serving"] > 1)):
                if there:
                    first(name, at, begun)
            if said["serving"] == most > 1:
                first("all", at, begun)
            if said["draining"]:
                first("drained", at, over)
        elif kind.startswith("preemption.") and who == "training":
            first(kind.partition(".")[2], at, begun)
        elif kind == "lease.released":
            first("released" if who == "training" else "back", at, begun if who == "training" else over)
        elif kind == "lease.granted" and who == "serving":
            first("granted", at, begun)
        elif kind == "job.running" and who == "training":
            first("resumed", at, over)
    return found


def _ms(seconds: Sequence[float], percent: int) -> float | None:
    ordered = sorted(seconds)
    return round(1000 * ordered[min(len(ordered) - 1, len(ordered) * percent // 100)], 1) if ordered else None


def draw(story: Story, *, width: float = figure.WIDE) -> str:
    """Three charts over one time axis, as SVG text: GPUs, requests a second, latency."""
    narrow = width < figure.WIDE
    heights, gap, top, bottom = (170.0, 92.0, 120.0), 46.0, 60.0, 40.0
    tall = top + sum(heights) + gap * 2 + bottom
    canvas = figure.Canvas(width, tall)
    at, drawn = top, []
    for height, paint in zip(heights, (_gpus, _rates, _latencies), strict=True):
        axes = canvas.axes(left=54, right=12, top=at, bottom=tall - at - height)
        axes.set_xlim(0, story.end)
        paint(axes, story, narrow)
        figure.seconds_axis(axes, story.end, narrow)
        drawn.append(axes)
        at += height + gap
    for axes in drawn[:-1]:
        axes.set_xlabel("")
        axes.tick_params(labelbottom=False)
    drawn[-1].set_xlabel(
        "minutes:seconds since the endpoint's lease" if not narrow else "min:s", fontsize=10, loc="left"
    )
    for axes in drawn:
        for when in story.notices:
            figure.vertical(axes, when, palette.BAD)
    _named(drawn[0], story, narrow)
    f = story.figures()
    spoken = (
        f"An inference surge: the first new replica serves {f['after_surge_s'].get('serving', 0)} s after it began, "
        f"training runs again {f['after_calm_s'].get('resumed', 0)} s after its end; "
        f"{f['failed']} of {f['requests']} requests failed"
    )
    return canvas.svg(spoken, "surge" if not narrow else "surge-narrow")


def _gpus(axes: Any, story: Story, narrow: bool) -> None:
    times = sorted({0.0, story.end, *(at for steps in story.gpus.values() for at, _ in steps)})
    serving = [_value(story.gpus["serving"], at) for at in times]
    both = [_value(story.gpus["training"], at) + low for at, low in zip(times, serving, strict=True)]
    axes.fill_between(times, 0, serving, step="post", color=SERVING, linewidth=0)
    axes.fill_between(times, serving, both, step="post", color=TRAINING, linewidth=0)
    if story.replicas:
        line = [*story.replicas, (story.end, story.replicas[-1][1])]
        axes.step(
            *zip(*line, strict=True), where="post", color=palette.PAPER, linewidth=2, linestyle=(0, (3, 1.5))
        )
    high = max([1.0, *both])
    axes.set_ylim(0, high)
    axes.set_yticks(range(int(high) + 1))
    axes.set_ylabel("GPUs leased", fontsize=10)
    colours = {"endpoint": SERVING, "training": TRAINING}
    figure.key(axes, colours if narrow else colours | {"(dashed: replicas that serve)": palette.PAPER})


def _rates(axes: Any, story: Story, narrow: bool) -> None:
    seconds = int(story.end) + 1
    counts = [0] * seconds
    failed = [0] * seconds
    for at, _, status in story.requests:
        if 0 <= at < seconds:
            counts[int(at)] += 1
            failed[int(at)] += status != 200
    axes.fill_between(range(seconds), counts, step="post", color=palette.MUTED, alpha=0.35, linewidth=0)
    axes.fill_between(range(seconds), failed, step="post", color=palette.BAD, linewidth=0)
    axes.set_ylim(bottom=0)
    _title(axes, f"Requests a second ({sum(failed)} of {len(story.requests)} failed)")


def _latencies(axes: Any, story: Story, narrow: bool) -> None:
    span = max(1, round(story.end / 60))  # seconds that share a point: calm phases have few requests a second
    groups: dict[int, list[float]] = {}
    for at, took, status in story.requests:
        if status == 200 and at >= 0:
            groups.setdefault(int(at) // span, []).append(took)
    times = sorted(groups)
    for percent, colour, dash in ((99, P99, (0, (4, 1.5))), (50, P50, "-")):
        axes.plot(
            [(at + 0.5) * span for at in times],
            [_ms(groups[at], percent) for at in times],
            color=colour,
            linestyle=dash,
            linewidth=1.8,
            label=f"p{percent}",
        )
    axes.set_yscale("log")
    axes.margins(y=0.12)  # the lowest label stays clear of the time axis
    ticks = [t for t in (10, 30, 100, 300, 1000, 3000, 10_000, 30_000) if _near(groups, t)]
    axes.set_yticks(ticks, [f"{t:g} ms" if t < 1000 else f"{t / 1000:g} s" for t in ticks])
    axes.minorticks_off()
    axes.grid(axis="y", color=palette.GRID, linewidth=0.8)
    axes.legend(frameon=False, fontsize=10, labelcolor=palette.INK, loc="upper right", ncols=2)
    _title(
        axes,
        "Latency, by when it was sent"
        if narrow
        else f"Latency of requests, by when they were sent ({span} s)",
    )


def _near(groups: Mapping[int, Sequence[float]], tick: float) -> bool:
    every = [1000 * took for group in groups.values() for took in group] or [100.0]
    return min(every) * 0.5 <= tick <= max(every) * 2


def _title(axes: Any, text: str) -> None:
    axes.set_title(text, loc="left", fontsize=11, color=palette.INK, pad=6)


def _named(axes: Any, story: Story, narrow: bool) -> None:
    """What the vertical lines are, above the first chart."""
    top = axes.get_ylim()[1]
    texts = {"surge": ("more requests", "right"), "calm": ("fewer requests", "left")}
    for name, (text, anchor) in texts.items():
        if name in story.marks:
            axes.axvline(story.marks[name], color=palette.INK, linewidth=1)
            text = text.partition(" ")[0] if narrow else text
            figure.label(axes, story.marks[name], top * 1.09, text, palette.INK, size=10, anchor=anchor)
    for when in story.notices[:1]:
        text = "notice" if narrow else "notice to training"
        figure.label(axes, when, top * 1.25, text, palette.BAD, size=10, anchor="left", weight="bold")


def _value(steps: Steps, at: float) -> float:
    return next((value for when, value in reversed(steps) if when <= at), 0.0)
