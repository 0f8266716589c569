"""The sections of the page, one function each: from report.json's content to text, tables and pictures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from demo_steps import ledger
from demo_steps.evaluating import BOOSTING, CHAMPION, MAJORITY
from moorage.runtime.telemetry import charts, figure, timeline
from moorage.runtime.telemetry.charts import Amount, Curve
from moorage.runtime.telemetry.report import Pair, Picture, Section, Table

Facts = dict[str, Any]


def picture(draw: Callable[..., str], *arguments: Any, caption: str = "", **named: Any) -> Picture:
    """The same drawing for wide and for narrow screens."""
    return Picture(
        wide=draw(*arguments, **named), narrow=draw(*arguments, **named, width=figure.NARROW), caption=caption
    )


def half(draw: Callable[..., str], *arguments: Any, caption: str = "", **named: Any) -> Picture:
    """A drawing that stands beside another on wide screens."""
    drawn = draw(*arguments, **named, width=figure.HALF)
    return Picture(wide=drawn, narrow=draw(*arguments, **named, width=figure.NARROW), caption=caption)


def devices(found: Facts) -> Section:
    drawn = ledger.drawn(found)
    return Section(
        title="Who held which device when",
        parts=[
            picture(
                timeline.draw,
                **drawn,
                caption="One row per logical GPU, one hue per team, one tint per job; a job that holds a part of a "
                "device takes that part of the row. From the leases in the audit record. Hatched: a job in the queue. "
                "The numbers are those of the decisions below.",
            )
        ],
    )


def decided(found: Facts) -> Section:
    made = found["decisions"]
    told = sum(bool(one.get("suggestions")) for one in made)
    waiting = sum(one["decision"] == "waits" for one in made)
    return Section(
        title="What the scheduler decided, and by which rule",
        parts=[
            f"Admissions: {len(made) - waiting}, waits: {waiting}, as the audit record has them; the numbers are "
            "those in the picture above. What would start a waiting job is what `moorage why` said while it waited: "
            f"each change was tried on a copy of the pool and planned again (asked in time: {told} of {waiting}).",
            Table(
                head=["decision", "no.", "at", "team", "job", "the rule"],
                rows=[_decision(one) for one in made],
                numbers=frozenset({1, 2}),
                tones=["warn" if one["decision"] == "waits" else "good" for one in made],
            ),
        ],
    )


def _decision(one: Facts) -> list[str]:
    at = max(0, round(one["at_s"]))
    head = [one["decision"], str(one["number"]), f"{at // 60}:{at % 60:02d}", one["team"]]
    job = one["job"].removeprefix("flights-") + (
        f", attempt {one['attempt']}" if one.get("attempt", 1) > 1 else ""
    )
    if one["decision"] == "waits":
        text = f"`{one['rule']}`: {one['text']}."
        if one["suggestions"]:
            text += f" It would start now with one of these: {'; '.join(one['suggestions'])}."
        return [*head, job, f"{text} {one['earliest']}".rstrip()]
    gpus = (
        f"{one['milli_gpu'] / 1000:g} GPU{'s' * (one['milli_gpu'] != 1000)} on "
        if one["milli_gpu"]
        else "on "
    )
    return [
        *head,
        job,
        f"`{one['rule']}`: {one['text']}. Placed {gpus}{', '.join(one['places']) or 'the head node'}.",
    ]


def queue(found: Facts) -> Section:
    waited = found["queue"]
    gpus, reason = waited["ray_gpus_before"], waited["reason"]
    parts: list[Any] = [
        f"Team {reason.get('team')} holds {reason.get('held_milli_gpu', 0) / 1000:g} of the "
        f"{reason.get('allowed_milli_gpu', 0) / 1000:g} GPUs it may have when it submits a second sweep, "
        f"so that one waits"
        f" ({waited.get('waited_s', float('nan')):.1f} s in all), though Ray itself had "
        f"{gpus['total'] - gpus['booked']:g} of"
        f" {gpus['total']:g} GPUs free and {gpus['booked']:g} booked at that moment. What `ray job status` said:",
        Table(head=["job", "reason"], rows=[[waited["job"], waited["message"]]]),
    ]
    return Section(title="A job over quota waits, and says why", parts=parts)


def features(found: Facts) -> Section:
    made = found["features"]
    rows = []
    for name, account in made["accounts"].items():
        reasons = (
            "; ".join(f"{reason}: {count:,}" for reason, count in sorted(account["reasons"].items()))
            or "none"
        )
        rows.append(
            [name, f"{account['in']:,}", f"{account['good']:,}", f"{account['quarantined']:,}", reasons]
        )
    excluded = made["accounts"]["flights"]["excluded"]
    without = ", ".join(f"{count:,} {why}" for why, count in excluded.items())
    split = ", ".join(f"{name} {count:,} ({made['splits'][name]})" for name, count in made["rows"].items())
    return Section(
        title="Data: nothing dropped in silence",
        parts=[
            Table(
                head=["file", "rows in", "good", "quarantined", "why"],
                rows=rows,
                numbers=frozenset({1, 2, 3}),
            ),
            f"Flights without an arrival have no label: {without}. Labelled rows by time: {split}. "
            f"{made['features']} numeric features and {len(made['categoricals'])} categorical ones; weather is "
            f"joined as of the scheduled departure ({made['weather_found']:.1%} of the rows found an observation), "
            "and what other flights did counts "
            "only from the moment it was known.",
            f"Version {made['version']}, content {made['digest'][:16]}.",
        ],
    )


def training(found: Facts) -> Section:
    made = found["train"]
    killed, curves = made["killed"], []
    began = min(point["time"] for points in made["trace"].values() for point in points)
    for rank, points in sorted(made["trace"].items()):
        for pid in dict.fromkeys(point["pid"] for point in points):
            mine = [point for point in points if point["pid"] == pid]
            curves.append(
                Curve(
                    name=f"rank {rank}, process {pid}",
                    x=[p["time"] - began for p in mine],
                    y=[p["step"] for p in mine],
                )
            )
    zero = found.get("deepspeed")
    also = (
        [
            f"The same model through DeepSpeed ZeRO-2: {zero['steps']} steps, loss from "
            f"{zero['first_loss']:.4f} (first tenth) to {zero['last_loss']:.4f} (last tenth)."
        ]
        if zero
        else []
    )
    return Section(
        title="Training survives the death of a worker",
        parts=[
            f"Two workers, one model. At step {killed['step']} of {made['steps']} the process of rank {killed['rank']} "
            f"got a SIGKILL. {recovery(made)}",
            picture(
                charts.progress,
                curves,
                at=killed["at"] - began,
                caption="Optimiser steps over seconds, as each process logged them. Dashed: the kill.",
            ),
            *also,
        ],
    )


def recovery(made: Facts) -> str:
    """What came after the kill, in the words that the step files allow."""
    if made["resumed_from"] is None:
        return "No other process went on."
    missing = made["missing_steps"]
    lost = "none was lost" if missing == 0 else f"{missing:,} were never logged"
    return (
        f"{made['seconds_until_back']:.1f} s later a new one took the next step, from the checkpoint of "
        f"step {made['resumed_from']}: {made['repeated_steps']} steps were done twice, {lost}."
    )


def sweeps(found: Facts) -> Section:
    parts: list[Any] = []
    for job, sweep in found["sweeps"].items():
        rows = [
            [
                str(t["trial"]),
                str(t["rungs"]),
                f"{t['log_loss']:.5f}",
                f"{t['auc']:.4f}",
                "-".join(map(str, t["hidden"])),
                f"{t['lr']:.2g}",
                f"{t['dropout']:.2f}",
            ]
            for t in sweep["trials"]
        ]
        parts.append(
            Table(
                head=["trial", "rungs", "log-loss", "AUC", "layers", "lr", "dropout"],
                rows=rows,
                numbers=frozenset({0, 1, 2, 3, 5, 6}),
                strong=frozenset({0}),
                caption=f"{job}, validated on June. ASHA stopped {sweep['stopped_early']} of {len(rows)} trials early.",
            )
        )
    return Section(title="Sweeps", parts=parts)


def registry(found: Facts) -> Section:
    made = found["registry"]
    champion = made["champion"]
    rows = [
        [
            "champion" if d["version"] == champion["version"] else "passed" if d["passed"] else "refused",
            str(d["version"]),
            d["source"],
            f"{d['log_loss']:.5f}",
            f"{d['auc']:.4f}",
            "; ".join(d["reasons"]),
        ]
        for d in made["decisions"]
    ]
    tones = ["good" if d["passed"] else "bad" for d in made["decisions"]]
    return Section(
        title="Registry: the gate on July",
        parts=[
            Table(
                head=["", "version", "from", "log-loss", "AUC", "why"],
                rows=rows,
                numbers=frozenset({1, 3, 4}),
                tones=tones,  # type: ignore[arg-type]
            ),
            f"Version {champion['version']} is the champion. Data {champion['data_version']}, code "
            f"{champion['code_version'][:16]}, environment {champion['environment'][:16]}, "
            f"artifact SHA-256 {champion['sha256'][:16]}.",
        ],
    )


def serving(found: Facts) -> Section:
    made, latency = found["requests"], found["requests"]["latency_ms"]
    served = found["serve"]
    marks = [(name, latency[name]) for name in ("p50", "p95", "p99")]
    parts: list[Any] = [
        f"Two models share {served['device']}, as the raylet's own book says. {made['sent']:,} requests with the "
        f"flights of July went through the front door: {made['errors']} errors, "
        f"{made['requests_per_s']:.0f} per second, {made['batching']['mean']:.1f} to a batch. "
        f"Each answer was compared with the offline prediction of the same version: at most "
        f"{made['parity']['max_abs_diff']:.0e} apart.",
    ]
    if made.get("latencies_ms"):
        parts.append(
            picture(
                charts.latency,
                made["latencies_ms"],
                marks,
                caption="The share of requests answered within so many milliseconds.",
            )
        )
    row = ["milliseconds", *(f"{value:.1f}" for value in latency.values())]
    parts.append(Table(head=["latency", *latency], rows=[row], numbers=frozenset(range(1, len(row)))))
    return Section(title="The endpoint", parts=parts)


def quality(found: Facts) -> Section:
    made = found["evaluation"]
    metrics, months, pair = made["metrics"], made["test_months"], made["against_boosting"]
    models = (CHAMPION, BOOSTING, MAJORITY)
    roc = [Curve(name=n, **c, detail=f"AUC {metrics[n]['all']['auc']:.3f}") for n, c in made["roc"].items()]
    reliable = [Curve(name=n, x=c["x"], y=c["y"]) for n, c in made["calibration"].items()]

    def monthly(key: str) -> list[Curve]:
        return [
            Curve(name=n, x=range(len(months)), y=[metrics[n]["by_month"][m][key] for m in months])
            for n in models
            if key != "auc" or n != MAJORITY
        ]

    rows = [
        [n, *(f"{metrics[n]['all'][key]:.4f}" for key in ("auc", "log_loss", "brier", "accuracy"))]
        for n in models
    ]
    table = Table(
        head=["model", "ROC-AUC", "log-loss", "Brier", "accuracy"],
        rows=rows,
        numbers=frozenset({1, 2, 3, 4}),
        strong=frozenset({0}),
        caption=f"{made['test_rows']:,} flights of {months[0]} to {months[-1]}, which nothing was selected on; "
        f"all trained on the same {made['train_rows']:,} rows. Majority: the training base rate for everyone.",
    )
    return Section(
        title="How good it is, beside baselines in the same run",
        parts=[
            table,
            f"The champion against {BOOSTING}: {verdict_of(pair)}. In brackets: 95% of {pair['resamples']:,} "
            f"bootstrap draws of {pair['groups']} whole days, both models on the same flights; a difference whose "
            "bracket holds 0 cannot be told from noise.",
            Pair(
                left=half(charts.roc, roc, caption="ROC curve, August to December."),
                right=half(
                    charts.calibration,
                    reliable,
                    caption="Calibration in ten equally filled bins; on the line is right.",
                ),
            ),
            Pair(
                left=half(charts.lines, monthly("auc"), months, ylabel="ROC-AUC", name="auc"),
                right=half(charts.lines, monthly("log_loss"), months, ylabel="log-loss", name="loss"),
            ),
        ],
    )


def verdict_of(pair: Facts) -> str:
    """The paired differences in words: better, worse, or equal within noise when the interval holds 0."""
    told = []
    for name, label, sign in (("auc", "ROC-AUC", 1), ("log_loss", "log-loss", -1)):
        one = pair[name]
        better = "better" if sign * one["difference"] > 0 else "worse"
        word = "equal within noise" if one["low"] <= 0 <= one["high"] else better
        told.append(f"{label} {word}: {one['difference']:+.4f} [{one['low']:+.4f}, {one['high']:+.4f}]")
    return "; ".join(told)


def shifted(found: Facts) -> Section:
    moved = found["evaluation"]["shift"]
    table = [{**moved["prediction"], "name": "the prediction"}, *moved["features"]]
    moved_much = sum(row["reading"] == "large shift" for row in moved["features"])
    rates = moved["label_rate"]
    return Section(
        title="How far later months moved from training",
        parts=[
            f"{moved_much} of {len(moved['features'])} features shifted a lot (index above 0.25) in some month of "
            f"{moved['months'][0]} to {moved['months'][-1]}, most of all {moved['features'][0]['name']} "
            f"({moved['features'][0]['max']:.2f}). The prediction itself moved by "
            f"at most {moved['prediction']['max']:.2f}.",
            picture(
                charts.shift_map,
                table,
                moved["months"],
                top=14,
                caption=f"Population stability index against the training rows: {moved['rule']}; categoricals: "
                f"{moved['categoricals']}. {moved['source']}: {moved['expected_without_shift']:.4f} for ten bins.",
            ),
            Table(
                head=["late arrivals", *(m[:3] for m in moved["months"]), "training"],
                rows=[["share", *(f"{rates[m]:.1%}" for m in moved["months"]), f"{rates['train']:.1%}"]],
                numbers=frozenset(range(1, len(moved["months"]) + 2)),
            ),
        ],
    )


def cost(found: Facts) -> Section:
    bill = found["cost"]
    paid = sorted(
        (j for j in bill["jobs"] if j["gpu_seconds"] > 0), key=lambda j: (j["team"], -j["gpu_seconds"])
    )
    order = [(h["team"], h["job"]) for h in sorted(found["timeline"]["holdings"], key=lambda h: h["start_s"])]
    bars = [
        Amount(
            team=j["team"],
            job=j["job"].removeprefix("flights-"),
            value=j["gpu_seconds"],
            text=f"{j['gpu_seconds']:.1f} · ${j['micro_dollars'] / 1e6:.4f}",
        )
        for j in paid
    ]
    rows = [[t["team"], f"{t['gpu_seconds']:.1f}", f"${t['micro_dollars'] / 1e6:.4f}"] for t in bill["teams"]]
    return Section(
        title="What it cost",
        parts=[
            picture(
                charts.amounts,
                bars,
                name="cost",
                unit="GPU-seconds",
                order=[(team, job.removeprefix("flights-")) for team, job in order],
                caption="GPU-seconds and dollars per job. Billed from the same lease events as the first "
                f"picture: their areas sum to {bill['drawn_gpu_seconds']:.1f} GPU-seconds.",
            ),
            Table(head=["team", "GPU-seconds", "cost"], rows=rows, numbers=frozenset({1, 2})),
        ],
    )
