"""The pieces of the demo's report: geometry of the timeline, distribution shift, the page.

Mission rows: L2 (pictures beside the numbers), L5 (GPU-seconds per team and job), D6 (shift), S2 and S8 (who waits and
why, in the page). No Ray and no pool here; the demo's own checks have
tests/unit/test_demo_checks.py, the whole demo is `make demo`.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moorage.runtime.telemetry import charts, figure, palette, shift, timeline
from moorage.runtime.telemetry.report import Pair, Picture, Report, Section, Table, Tile, render
from moorage.runtime.telemetry.timeline import Holding, lay_out

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "flights"


@pytest.fixture(autouse=True, scope="module")
def example_on_path() -> Iterator[None]:
    """The example's scripts import each other by bare names, as a user's do."""
    sys.path.insert(0, str(EXAMPLE))
    yield
    sys.path.remove(str(EXAMPLE))


def held(start: float, end: float, milli: int, job: str = "j", device: int = 0, team: str = "ops") -> Holding:
    return Holding(node="n", device=device, team=team, job=job, milli_gpu=milli, start_s=start, end_s=end)


# --- timeline


def test_fractions_share_a_row_from_the_bottom_up() -> None:
    bars = lay_out([held(0, 10, 500, "a"), held(2, 8, 300, "b"), held(3, 4, 200, "c")])
    assert [(b.holding.job, b.low, b.high) for b in bars] == [
        ("a", 0, 500),
        ("b", 500, 800),
        ("c", 800, 1000),
    ]


def test_a_freed_gap_is_used_again_and_a_scattered_holding_is_cut() -> None:
    """L5: after b leaves, 600 fit only as the 300 of its gap and 300 above c."""
    bars = lay_out([held(0, 5, 300, "b"), held(1, 9, 100, "a"), held(1, 9, 300, "c"), held(5, 9, 600, "d")])
    pieces = sorted((b.low, b.high) for b in bars if b.holding.job == "d")
    freed = next((b.low, b.high) for b in bars if b.holding.job == "b")
    assert len(pieces) == 2 and freed in pieces
    assert sum(high - low for low, high in pieces) == 600


def test_an_over_committed_device_is_refused_and_named() -> None:
    with pytest.raises(ValueError, match=r"device 0 of n is held 1100 milli-GPU"):
        lay_out([held(0, 10, 600, "a"), held(5, 6, 500, "b")])


holdings = st.lists(
    st.tuples(st.integers(0, 50), st.integers(1, 20), st.integers(1, 1000), st.integers(0, 2)), max_size=24
)


@given(holdings)
@settings(max_examples=150, deadline=None)
def test_bars_never_overlap_and_keep_their_area(rows: list[tuple[int, int, int, int]]) -> None:
    """L5: whatever fits a device is drawn without overlap, and its area is its GPU-seconds."""
    asked: list[Holding] = []
    for start, length, milli, device in rows:
        new = held(start, start + length, milli, f"j{len(asked)}", device)
        try:
            lay_out([*asked, new])
        except ValueError:
            continue
        asked.append(new)
    bars = lay_out(asked)
    for i, one in enumerate(bars):
        assert 0 <= one.low < one.high <= 1000
        for other in bars[i + 1 :]:
            a, b = one.holding, other.holding
            together = a.device == b.device and a.start_s < b.end_s and b.start_s < a.end_s
            assert not (together and one.low < other.high and other.low < one.high)
    area = sum((b.high - b.low) / 1000 * (b.holding.end_s - b.holding.start_s) for b in bars)
    assert area == pytest.approx(timeline.device_seconds(asked))


def test_the_picture_names_jobs_devices_waits_and_marks() -> None:
    """S2, S8: who held what, who waited, what happened."""
    drawn = timeline.draw(
        [held(0, 10, 1000, "train"), held(2, 9, 500, "sweep $x$", 1, "research")],
        [("n", 0), ("n", 1)],
        waits=[timeline.Wait(team="research", job="deep", start_s=1, end_s=6, reason="team-limit")],
        marks=[timeline.Mark(at_s=4, text="killed")],
    )
    for text in (">train<", ">sweep $x$ 0.5<", ">deep: team-limit<", ">killed<", ">n · 1<"):
        assert text in drawn, text
    assert 'role="img"' in drawn and "waited: deep" in drawn


def test_the_picture_carries_the_numbers_of_the_decisions() -> None:
    """S8: also where the name of the job has no room."""
    narrow = Holding(
        node="n", device=0, team="ops", job="bandwidth", milli_gpu=1000, start_s=10, end_s=10.6, number=3
    )
    drawn = timeline.draw(
        [
            Holding(
                node="n", device=0, team="ops", job="train", milli_gpu=1000, start_s=0, end_s=9, number=1
            ),
            narrow,
        ],
        [("n", 0)],
        waits=[timeline.Wait(team="ops", job="deep", start_s=1, end_s=9, reason="behind", number=2)],
    )
    for text in (">1 · train<", ">2 · deep: behind<", ">3<"):
        assert text in drawn, text


# --- shift


def test_psi_of_equal_samples_is_zero_and_grows_with_the_distance() -> None:
    """D6."""
    rng = np.random.default_rng(0)
    base = rng.normal(size=20_000)
    inner = shift.edges(base)
    near, far = (
        shift.psi(shift.shares(base, inner), shift.shares(rng.normal(mean, 1, 20_000), inner))
        for mean in (0.1, 1.0)
    )
    assert shift.psi(shift.shares(base, inner), shift.shares(base, inner)) == 0
    assert 0.0 < near < shift.SOME < shift.LARGE < far


def test_psi_by_hand() -> None:
    """(0.6-0.5)ln(0.6/0.5) + (0.4-0.5)ln(0.4/0.5), natural logarithms."""
    assert shift.psi([0.5, 0.5], [0.6, 0.4]) == pytest.approx(0.1 * math.log(1.2) - 0.1 * math.log(0.8))


def test_new_values_of_a_discrete_feature_are_seen() -> None:
    """D6: a value training never saw gets a bin of its own, even between known values."""
    known = np.repeat([0.0, 1.0, 3.0], 100)
    inner = shift.edges(known)
    same = shift.psi(shift.shares(known, inner), shift.shares(known, inner))
    new = shift.psi(shift.shares(known, inner), shift.shares(np.repeat([0.0, 1.0, 2.0, 3.0], 75), inner))
    assert same == 0 and new > shift.LARGE


def test_without_shift_the_index_has_its_published_mean() -> None:
    """Yurdakul 2018: (bins - 1)(1/n + 1/m)."""
    rng = np.random.default_rng(1)
    found = []
    for _ in range(200):
        base, later = rng.normal(size=2000), rng.normal(size=1000)
        inner = shift.edges(base)
        found.append(shift.psi(shift.shares(base, inner), shift.shares(later, inner)))
    assert np.mean(found) == pytest.approx(shift.expected(shift.BINS, 2000, 1000), rel=0.15)


@pytest.mark.parametrize("bad", [[], [1.0, math.nan], [math.inf]])
def test_a_distribution_must_be_finite(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        shift.edges(bad)


# --- colours


def test_labels_read_on_every_colour_and_teams_differ() -> None:
    jobs = [(team, f"job{i}") for team in ("ops", "research", "third") for i in range(6)]
    colours = palette.job_colours(jobs)
    assert len(set(colours.values())) == len(jobs)
    for colour in colours.values():
        assert palette.contrast(palette.ink_on(colour), colour) >= 4.5


# --- the page


class Page(HTMLParser):
    """Tags, attributes and text of a page; balance of what must be closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, (tag, self.open[-4:])
        self.open.pop()

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


EVIL = '<script>alert("1")</script>&<img src=x onerror=alert(1)>'


def test_no_text_of_a_job_becomes_markup() -> None:
    """G4: names, reasons and measurements are whatever somebody submitted."""
    bars = charts.amounts(
        [charts.Amount(team=EVIL, job=EVIL, value=1, text=EVIL)], name="x", unit="GPU-seconds"
    )
    line = timeline.draw([held(0, 10, 1000, EVIL, team=EVIL)], [("n", 0)])
    part = Picture(wide=bars + line, narrow=bars, caption=EVIL)
    page = render(
        Report(
            title=EVIL,
            lead=EVIL,
            verdict=EVIL,
            held=False,
            tiles=[Tile(figure=EVIL, text=EVIL)],
            sections=[
                Section(
                    title=EVIL,
                    parts=[
                        EVIL,
                        part,
                        Pair(left=part, right=part),
                        Table(head=[EVIL], rows=[[EVIL]], caption=EVIL),
                    ],
                )
            ],
            foot=EVIL,
        )
    )
    parsed = Page(page)
    assert parsed.open == []
    names = {tag for tag, _ in parsed.tags}
    assert not names & {"script", "img", "iframe", "object", "embed", "link", "foreignobject"}
    assert not any(name.startswith("on") for _, attributes in parsed.tags for name in attributes)


def test_the_page_asks_nothing_of_any_network() -> None:
    page = render(Report(title="t", lead="l", verdict="v", held=True, tiles=[], sections=[]))
    assert "default-src 'none'" in page
    assert not re.search(r"""(?:src|href)\s*=\s*["']?https?:|@import|url\(\s*["']?(?!#)""", page)


def test_two_figures_on_a_page_share_no_id() -> None:
    one = timeline.draw([held(0, 10, 1000)], [("n", 0)])
    two = charts.amounts([charts.Amount(team="a", job="b", value=1, text="1")], name="x", unit="u")
    ids = [re.findall(r'\bid="([^"]+)"', drawn) for drawn in (one, two)]
    assert all(ids) and not set(ids[0]) & set(ids[1])
    for drawn, own in zip((one, two), ids, strict=True):
        assert set(re.findall(r"url\(#([^)]+)\)", drawn)) | set(re.findall(r'href="#([^"]+)"', drawn)) <= set(
            own
        )


def test_the_same_data_gives_the_same_picture() -> None:
    again = [timeline.draw([held(0, 10, 1000)], [("n", 0)], width=figure.NARROW) for _ in range(2)]
    assert again[0] == again[1]


# --- the demo's page from a report.json


def facts(name: str = "flights-train") -> dict[str, Any]:
    """A small report.json in the demo's form: what `demo_steps.page` is given."""
    months = ["July", "August", "September"]
    figures = {"auc": 0.7, "log_loss": 0.5, "brier": 0.1, "accuracy": 0.8, "rows": 10.0}
    models = ("champion", "histogram gradient boosting", "majority")
    metrics: dict[str, Any] = {
        n: {"all": figures, "by_month": dict.fromkeys(months[1:], figures)} for n in models
    }
    curve = {"x": [0.0, 0.5, 1.0], "y": [0.0, 0.8, 1.0]}
    row = {"psi": dict.fromkeys(months, 0.3), "max": 0.3, "reading": "large shift"}
    at = {"node": "node-0", "device": 0, "milli_gpu": 1000}
    account = {"in": 10, "good": 9, "quarantined": 1, "reasons": {"dest: null": 1}}
    trial = {"trial": 0, "rungs": 4, "log_loss": 0.4, "auc": 0.7, "hidden": [64], "lr": 0.01, "dropout": 0.1}
    return {
        "held": True,
        "failure": None,
        "seconds": 301.2,
        "began": "2026-01-01T00:00:00Z",
        "moorage": "0.1.0",
        "machine": {"cpus": 2, "python": "3.11", "system": "Linux"},
        "step_seconds": {"pool": 9.5},
        "checks": [{"step": "train", "name": "resumed", "held": True, "measured": EVIL, "wanted": "yes"}],
        "pool": {"nodes": 2, "gpus": 8.0},
        "features": {
            "version": "v001",
            "digest": "ab" * 32,
            "rows": {"train": 8},
            "accounts": {"flights": {**account, "excluded": {"cancelled": 1}}},
            "features": 66,
            "weather_found": 0.9977,
            "categoricals": {"dest": 101},
            "splits": {"train": "2013-01..2013-06"},
        },
        "train": {
            "steps": 10,
            "killed": {"rank": 1, "step": 5, "at": 105.0},
            "resumed_from": 4,
            "repeated_steps": 1,
            "missing_steps": 0,
            "seconds_until_back": 8.1,
            "trace": {"0": [{"step": s, "time": 100.0 + s, "pid": 7, "loss": 0.5} for s in range(10)]},
        },
        "queue": {
            "job": "flights-sweep-deep",
            "message": EVIL,
            "waited_s": 61.0,
            "reason": {"code": "team-limit", "team": "research"},
            "ray_gpus_before": {"booked": 4.0, "total": 8.0},
        },
        "sweeps": {"flights-sweep-wide": {"trials": [trial], "stopped_early": 0}},
        "registry": {
            "champion": {
                "version": 2,
                "data_version": "v001",
                "code_version": "c" * 40,
                "environment": "e" * 40,
                "sha256": "f" * 64,
            },
            "decisions": [
                {
                    "version": v,
                    "passed": v == 2,
                    "source": "a/b",
                    "log_loss": 0.4,
                    "auc": 0.7,
                    "reasons": [EVIL],
                }
                for v in (1, 2)
            ],
        },
        "serve": {"device": "node-0 device 0"},
        "requests": {
            "sent": 2000,
            "errors": 0,
            "requests_per_s": 300.0,
            "latency_ms": {"p50": 5.0, "p95": 9.0, "p99": 12.0, "max": 40.0},
            "latencies_ms": [3.0, 5.0, 40.0],
            "parity": {"max_abs_diff": 1e-7, "rows": 2000, "tolerance": 1e-5},
            "batching": {"mean": 2.5, "batches": 800},
        },
        "evaluation": {
            "metrics": metrics,
            "against_boosting": {
                "auc": {"difference": 0.0011, "low": -0.0002, "high": 0.0024},
                "log_loss": {"difference": -0.002, "low": -0.003, "high": -0.001},
                "groups": 61,
                "resamples": 500,
            },
            "test_months": months[1:],
            "test_rows": 20,
            "train_rows": 30,
            "roc": dict.fromkeys(models[:2], curve),
            "calibration": dict.fromkeys(models[:2], curve),
            "shift": {
                "months": months,
                "rule": shift.RULE,
                "categoricals": "one bin per id",
                "source": shift.SOURCE,
                "expected_without_shift": 0.001,
                "features": [{**row, "name": "weather_temp"}],
                "prediction": {**row, "name": "prediction"},
                "label_rate": {**dict.fromkeys(months, 0.2), "train": 0.3},
            },
        },
        "decisions": [
            {
                "number": 1,
                "at_s": 1.0,
                "team": "ops",
                "job": name,
                "decision": "starts",
                "lease": "l-1",
                "attempt": 2,
                "milli_gpu": 1000,
                "places": ["node-0/0"],
                "rule": "own-quota",
                "text": f"within the quota of {name}",
                "waited_s": 0.1,
            },
            {
                "number": 2,
                "at_s": 62.0,
                "team": "research",
                "job": "flights-sweep-deep",
                "decision": "waits",
                "milli_gpu": 2000,
                "rule": "team-limit",
                "text": "team research holds 2 of its limit",
                "suggestions": ["raise the limit", f"end {name}"],
                "earliest": "When it starts is not known.",
                "plans": 9,
            },
        ],
        "timeline": {
            "devices": [["node-0", 0], ["node-0", 1]],
            "holdings": [{**at, "team": "ops", "job": name, "start_s": 1.0, "end_s": 9.0, "number": 1}],
            "waits": [
                {
                    "team": "research",
                    "job": "flights-sweep-deep",
                    "start_s": 2.0,
                    "end_s": 8.0,
                    "reason": "team-limit",
                }
            ],
            "marks": [{"at_s": 5.0, "text": "killed"}],
        },
        "cost": {
            "jobs": [{"team": "ops", "job": name, "gpu_seconds": 8.0, "micro_dollars": 1777}],
            "teams": [{"team": "ops", "gpu_seconds": 8.0, "micro_dollars": 1777}],
            "drawn_gpu_seconds": 8.0,
        },
    }


def test_the_demo_page_shows_every_section_and_escapes_what_jobs_said() -> None:
    from demo_steps import page

    built = page.build(facts(EVIL))
    parsed = Page(render(built))
    assert parsed.open == []
    assert not {tag for tag, _ in parsed.tags} & {"script", "img"}
    text = " ".join(parsed.text)
    wanted = (
        "Who held which device when",
        "waits, and says why",
        "What the scheduler decided, and by which rule",
        "Admissions: 1, waits: 1",
        "It would start now with one of these: raise the limit; end ",
        "Placed 1 GPU on node-0/0.",
        ", attempt 2",
        "1:02",
        "death of a worker",
        "the gate on July",
        "2,000 requests",
        "none was lost",
        "ROC-AUC equal within noise",
        "log-loss better",
    )
    assert all(part in text for part in (*wanted, "$0.0018", "weather_temp", "All 1 checks held")), text[:500]


@pytest.mark.parametrize(
    "missing",
    ["timeline", "decisions", "train", "evaluation", "requests", "cost", "registry", "queue", "sweeps"],
)
def test_a_run_cut_short_still_has_a_page(missing: str) -> None:
    """A failed demo must show what it got to, and where it stopped."""
    from demo_steps import page

    found = {k: v for k, v in facts().items() if k != missing}
    if missing == "timeline":
        del found["cost"]
    found |= {"held": False, "failure": {"step": "train", "what": "x", "log": "y"}}
    built = page.build(found)
    assert "stopped in train" in built.verdict
    assert Page(render(built)).open == []
    assert page.headlines(found)


def test_the_report_files_agree() -> None:
    """Every headline of the screen is computed from report.json's content alone."""
    from demo_steps import page

    round_trip = json.loads(json.dumps(facts()))
    assert page.headlines(round_trip) == page.headlines(facts())
