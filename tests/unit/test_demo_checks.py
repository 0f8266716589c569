"""The demo's own checks, on small recorded runs: each holds for a good one and not for the one it is there to catch.

Mission rows: T2 (resume), D2 (nothing dropped in silence), L5 (GPU-seconds), S9 (the demo's verdict). No Ray, no pool.
"""

from __future__ import annotations

import copy
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import flights_case
import numpy as np
import pytest

from moorage.runtime.telemetry import timeline

flights_case.importable()
from demo_steps import decisions, evaluating, features, ledger, sections, serving, training  # noqa: E402
from demo_steps.checks import Checks  # noqa: E402

S = 10**9


def a_demo(**more: Any) -> Any:
    """What a check needs of a run: where its verdicts and figures go."""
    screen = SimpleNamespace(done=lambda *_: None, say=lambda *_: None)
    return SimpleNamespace(checks=Checks(), facts={}, keep=False, screen=screen, **more)


def failed(demo: Any) -> list[str]:
    return [check.name for check in demo.checks.failed]


# --- requests


def answered(count: int = serving.REQUESTS) -> dict[str, Any]:
    """requests.json of a good run: latencies 1..count milliseconds."""
    each = [float(n) for n in range(count, 0, -1)]
    at = {"p50": count * 0.5, "p95": count * 0.95, "p99": count * 0.99, "max": float(count)}
    return {
        "sent": count,
        "ok": count,
        "errors": 0,
        "parity": {"holds": True, "rows": count, "max_abs_diff": 1e-7, "tolerance": 1e-5},
        "batching": {"mean": 2.0},
        "latency_ms": at,
        "latencies_ms": each,
    }


def load_checks(change: Callable[[dict[str, Any]], object]) -> list[str]:
    found, demo = answered(), a_demo()
    change(found)
    serving.check_load(demo, found)
    return failed(demo)


def test_good_answers_hold() -> None:
    assert load_checks(lambda found: None) == []


@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.0, -1.0])
def test_a_latency_that_cannot_be_is_caught(bad: float) -> None:
    assert "latencies were measured" in load_checks(lambda f: f["latencies_ms"].__setitem__(3, bad))


def test_an_answer_without_a_latency_is_caught() -> None:
    assert "latencies were measured" in load_checks(lambda f: f["latencies_ms"].pop())


def test_no_latency_at_all_is_caught() -> None:
    assert "latencies were measured" in load_checks(lambda f: f.update(ok=0, latencies_ms=[]))


@pytest.mark.parametrize("name", ["p50", "p95", "p99"])
def test_a_percentile_of_other_latencies_is_caught(name: str) -> None:
    found = load_checks(lambda f: f["latency_ms"].update({name: f["latency_ms"][name] + 0.001}))
    assert found == ["the percentiles are those of the latencies"]


def test_a_request_that_was_never_sent_is_caught() -> None:
    """`sent` used to be the length of a list made before the first request."""
    names = load_checks(lambda f: f.update(ok=f["ok"] - 1, sent=serving.REQUESTS))
    assert "all requests were sent" in names


def test_an_error_counts_as_sent_and_is_its_own_failure() -> None:
    def one_error(found: dict[str, Any]) -> None:
        found.update(answered(serving.REQUESTS - 1), errors=1)
        found["latency_ms"] = {f"p{p}": serving.nearest_rank(found["latencies_ms"], p) for p in (50, 95, 99)}

    assert load_checks(one_error) == ["no errors"]


def test_the_client_counts_what_came_back() -> None:
    import load

    outcome = load.Outcome(answers=[{"probability": 0.5}, None, None], latencies=[0.002], seconds=1.0)
    outcome.failures["HTTP 500"] += 1
    counted = load.summary(outcome, 1)
    assert (counted["sent"], counted["ok"], counted["errors"]) == (2, 1, 1)


# --- decisions


def decided(kind: str, at: int, job: str, /, **payload: Any) -> dict[str, Any]:
    lease = f"l-{at}" if kind == "lease.granted" else ""
    return {
        "kind": kind,
        "wall_ns": at * S,
        "team": "ops",
        "job_id": job,
        "lease_id": lease,
        "payload": payload,
    }


def granted_by(at: int, job: str, code: str = "own-quota", kind: str = "job") -> dict[str, Any]:
    tasks = [
        {"node": "n", "devices": [1, 0], "milli_gpu": 2000},
        {"node": "m", "devices": [], "milli_gpu": 0},
    ]
    rule = {"code": code, "text": "within"}
    return decided("lease.granted", at, job, kind=kind, attempt=1, milli_gpu=2000, tasks=tasks, rule=rule)


DECIDED = [
    decided("job.pending", 1, "deep"),
    granted_by(2, "wide"),
    decided("job.waits", 3, "deep", rule="team-limit", text="holds 2", asked_milli_gpu=2000),
    decided("lease.released", 8, "wide"),
    granted_by(9, "deep", kind="job"),
    granted_by(10, "deep", kind="sublease"),
]
SAID = {
    ("deep", "team-limit"): {
        "suggestions": [{"text": "raise it"}, {"text": "end wide, or wait for it"}],
        "earliest_text": "In 5 min.",
        "plans": 7,
    }
}


def test_decisions_are_numbered_and_joined_with_what_was_said() -> None:
    """S8."""
    found = decisions.collect(DECIDED, SAID, S)
    assert [(one["number"], one["decision"], one["at_s"]) for one in found] == [
        (1, "starts", 1),
        (2, "waits", 2),
        (3, "starts", 8),
        (4, "grows", 9),
    ]
    assert found[0]["places"] == ["m", "n/0", "n/1"] and found[2]["waited_s"] == 8
    assert (
        found[1]["suggestions"] == ["raise it", "end wide, or wait for it"]
        and found[1]["earliest"] == "In 5 min."
    )
    assert decisions.numbers(found) == {"l-2": 1, "l-9": 3, "l-10": 4}


@pytest.mark.parametrize(
    ("events", "said", "missed"),
    [
        (DECIDED, SAID, []),
        ([], {}, ["each decision names its rule", "`moorage why` told what starts the waiting job"]),
        ([*DECIDED, granted_by(11, "x", "")], SAID, ["each decision names its rule"]),
        (DECIDED, {}, ["`moorage why` told what starts the waiting job"]),
        (
            DECIDED,
            {("deep", "team-limit"): {"suggestions": [{"text": "end widest, or wait for it"}]}},
            ["`moorage why` told what starts the waiting job"],
        ),
    ],
    ids=["good", "nothing", "no rule", "nobody asked", "another job"],
)
def test_a_decision_without_its_words_is_caught(events: list[Any], said: Any, missed: list[str]) -> None:
    demo = a_demo()
    decisions.check(demo, decisions.collect(events, said, 0), "deep", "wide")
    assert failed(demo) == missed


def test_the_watch_asks_once_for_each_rule() -> None:
    asked: list[str] = []
    queue = [{"job": "deep", "reason": {"code": "team-limit"}}, {"job": "new", "reason": None}]

    class Pool:
        def get(self, path: str) -> Any:
            asked.append(path)
            if path.endswith("/status"):
                return {"queue": queue}
            return {"explanation": {"reason": {"code": "team-limit"}, "suggestions": []}}

    watch = decisions.Watch(a_demo(pool=Pool()))
    watch._ask(), watch._ask()
    assert asked.count("/moorage/v1/jobs/deep/why") == 1 and list(watch.said) == [("deep", "team-limit")]


# --- leases and money


def event(kind: str, lease: str, job: str = "j") -> dict[str, Any]:
    return {"kind": f"lease.{kind}", "lease_id": lease, "job_id": job}


GOOD_EVENTS = [event("granted", "a"), event("granted", "b"), event("released", "b"), event("released", "a")]


@pytest.mark.parametrize(
    ("events", "holds"),
    [
        (GOOD_EVENTS, True),
        ([], False),
        (GOOD_EVENTS[:-1], False),
        ([*GOOD_EVENTS, event("released", "a")], False),
        ([*GOOD_EVENTS[:-1], event("released", "c")], False),
        ([*GOOD_EVENTS, event("granted", "a")], False),
    ],
    ids=["good", "nothing at all", "never released", "twice", "another id", "granted twice"],
)
def test_released_ids_are_the_granted_ones(events: list[dict[str, Any]], holds: bool) -> None:
    """L5."""
    demo = a_demo()
    ledger.check_releases(demo, events)
    assert demo.checks.all_held is holds, demo.checks.made


def test_only_the_kept_endpoint_may_still_hold_its_lease() -> None:
    events = [*GOOD_EVENTS, event("granted", "s", serving.JOB)]
    for keep, holds in ((True, True), (False, False)):
        demo = a_demo()
        demo.keep = keep
        ledger.check_releases(demo, events)
        assert demo.checks.all_held is holds


@pytest.mark.parametrize(
    ("drawn", "billed", "holds"), [(9.0, 9.1, True), (0.0, 0.0, False), (9.0, 8.0, False)]
)
def test_a_bill_of_nothing_is_no_bill(drawn: float, billed: float, holds: bool) -> None:
    demo = a_demo()
    ledger.check_bill(demo, drawn, billed)
    assert demo.checks.all_held is holds


def test_leases_become_holdings_with_shares_and_ends() -> None:
    """L5: two devices of one worker, half a device, and a lease that is still held."""
    from demo_steps import ledger

    def granted(lease: str, job: str, at: int, *tasks: tuple[list[int], int]) -> dict[str, Any]:
        parts = [{"node": "n", "devices": devices, "milli_gpu": milli} for devices, milli in tasks]
        return {
            "kind": "lease.granted",
            "lease_id": lease,
            "job_id": job,
            "team": "ops",
            "wall_ns": at,
            "payload": {"tasks": parts},
        }

    events = [
        granted("a", "two", 1_000_000_000, ([0, 1], 2000), ([], 0)),
        granted("b", "half", 2_000_000_000, ([2], 500)),
        {
            "kind": "lease.released",
            "lease_id": "a",
            "job_id": "two",
            "team": "ops",
            "wall_ns": 4_000_000_000,
            "payload": {},
        },
    ]
    found = ledger.holdings(events, 0, 6_000_000_000)
    assert [(h.job, h.device, h.milli_gpu, h.start_s, h.end_s) for h in found] == [
        ("two", 0, 1000, 1.0, 4.0),
        ("two", 1, 1000, 1.0, 4.0),
        ("half", 2, 500, 2.0, 6.0),
    ]
    assert timeline.device_seconds(found) == 3 + 3 + 2


# --- features

REFUSED = {
    "source": "weather",
    "source_row": 1009,
    "reason": "wind_speed: outside 0..150",
    "raw": '{"origin": "EWR", "wind_speed": "1048.36058"}',
}
"""The row as the features job records it."""


@pytest.mark.parametrize(
    ("rows", "counted", "caught"),
    [
        ([REFUSED], 1, []),
        ([], 0, ["refused rows are kept, with the reason", "the impossible wind was refused"]),
        ([REFUSED], 2, ["refused rows are kept, with the reason"]),
        ([{**REFUSED, "reason": "temp: null"}], 1, ["the impossible wind was refused"]),
        ([{**REFUSED, "raw": '{"wind_speed": "151"}'}], 1, ["the impossible wind was refused"]),
    ],
    ids=["good", "nothing refused", "one is gone", "another reason", "another wind"],
)
def test_the_known_bad_row_must_be_in_quarantine(
    rows: list[dict[str, Any]], counted: int, caught: list[str]
) -> None:
    """D2."""
    demo = a_demo()
    features.check_quarantine(demo, {"weather": {"quarantined": counted}}, rows)
    assert failed(demo) == caught


@pytest.mark.parametrize(
    ("ages", "holds"),
    [
        (np.full(1000, 29.0), True),
        (np.r_[np.full(990, 29.0), np.full(10, 360.0)], True),
        (np.r_[np.full(989, 29.0), np.full(11, 360.0)], False),
        (np.full(1000, 360.0), False),
        (np.r_[np.full(999, 29.0), -1.0], False),
        (np.r_[np.full(999, 29.0), math.nan], False),
        (np.full(999, 29.0), False),
        (np.empty(0), False),
    ],
    ids=["all", "99%", "below 99%", "none hit", "from the future", "not a number", "a row short", "no rows"],
)
def test_the_asof_join_must_have_hit(ages: Any, holds: bool) -> None:
    """D1: a row without an observation carries the tolerance as its age."""
    demo = a_demo()
    features.check_weather(demo, ages, 1000)
    assert demo.checks.all_held is holds


# --- training


def a_run(
    folder: Path, *, resumed: int = 50, rank0: int | None = None, began: int = 0, died: int = 70
) -> Any:
    """Step files of two ranks: `began`..`died` by pid 1 and 2, the kill at second 1000, then from `resumed` to 120."""
    steps = folder / "runs" / "job"
    (steps / "model").mkdir(parents=True)
    (steps / "model" / "model.safetensors").touch()
    for rank in (0, 1):
        start = resumed if rank or rank0 is None else rank0
        lines = [(s, 1 + rank, began, 900.0 + s) for s in range(began + 1, died + 1)]
        lines += [(s, 11 + rank, start, 1001.0 + s) for s in range(start + 1, 121)]
        text = "".join(
            json.dumps({"step": s, "rank": rank, "pid": pid, "start": begin, "loss": 0.5, "time": at}) + "\n"
            for s, pid, begin, at in lines
        )
        (steps / f"steps-rank{rank}.jsonl").write_text(text)
    return SimpleNamespace(job_id="job")


def train_checks(folder: Path, checkpoint: int = 50, **run: Any) -> Any:
    job = a_run(folder, **run)
    demo = a_demo(pool=SimpleNamespace(data=folder))
    killed = {"rank": 1, "pid": 2, "at": 1000.0, "step": 68, "total": 120, "checkpoint": checkpoint}
    training.check(demo, job, killed)
    return demo


def test_a_resume_from_the_last_checkpoint_holds(tmp_path: Path) -> None:
    """T2."""
    demo = train_checks(tmp_path)
    assert failed(demo) == []
    assert (demo.facts["train"]["repeated_steps"], demo.facts["train"]["missing_steps"]) == (20, 0)


@pytest.mark.parametrize("resumed", [0, 49, 51, 60])
def test_a_resume_from_anywhere_else_is_caught(tmp_path: Path, resumed: int) -> None:
    assert "resumed from the last checkpoint" in failed(train_checks(tmp_path, resumed=resumed))


def test_a_resume_from_the_checkpoint_before_the_last_is_caught(tmp_path: Path) -> None:
    """Two intervals back used to pass."""
    demo = train_checks(tmp_path, checkpoint=50, resumed=50, died=90)
    assert failed(demo) == []
    demo = train_checks(tmp_path / "stale", checkpoint=100, resumed=50, died=110)
    assert "resumed from the last checkpoint" in failed(demo)


def test_one_rank_that_resumed_elsewhere_is_caught(tmp_path: Path) -> None:
    assert failed(train_checks(tmp_path, rank0=40)) == ["resumed from the last checkpoint"]


def test_a_store_that_missed_a_checkpoint_is_caught(tmp_path: Path) -> None:
    """The dead worker's own lines say that step 50 had been written."""
    assert failed(train_checks(tmp_path, checkpoint=0, resumed=0)) == [
        "the last checkpoint is known",
    ]


def test_repeated_steps_of_a_process_that_had_itself_resumed(tmp_path: Path) -> None:
    """Its lines are fewer than the step it died at."""
    demo = train_checks(tmp_path, began=30)
    assert demo.facts["train"]["repeated_steps"] == 20
    assert demo.facts["train"]["missing_steps"] == 60 and "no step is missing" in failed(demo)


def test_the_page_says_none_was_lost_only_when_none_was() -> None:
    made = {"resumed_from": 50, "seconds_until_back": 8.0, "repeated_steps": 20, "missing_steps": 0}
    assert "none was lost" in sections.recovery(made)
    lossy = sections.recovery({**made, "missing_steps": 3})
    assert "none was lost" not in lossy and "3 were never logged" in lossy
    assert sections.recovery({**made, "resumed_from": None}) == "No other process went on."


# --- the champion against boosting


def test_the_interval_must_belong_to_the_table() -> None:
    one = {"difference": 0.01, "low": -0.01, "high": 0.03}
    good: dict[str, Any] = {
        "metrics": {
            evaluating.CHAMPION: {"all": {"auc": 0.71, "log_loss": 0.51}},
            evaluating.BOOSTING: {"all": {"auc": 0.70, "log_loss": 0.50}},
        },
        "against_boosting": {"auc": one, "log_loss": dict(one), "groups": evaluating.DAYS},
    }
    changes: list[tuple[Callable[[dict[str, Any]], object], bool]] = [
        (lambda pair: None, True),
        (lambda pair: pair.update(groups=152), False),
        (lambda pair: pair["auc"].update(difference=0.02), False),
        (lambda pair: pair["log_loss"].update(low=0.01, high=0.01), False),
        (lambda pair: pair["log_loss"].update(low=math.nan), False),
    ]
    for change, holds in changes:
        result, demo = copy.deepcopy(good), a_demo()
        change(result["against_boosting"])
        evaluating.check_pair(demo, result)
        assert demo.checks.all_held is holds, demo.checks.made


# --- the runner


def test_a_run_without_checks_or_with_a_failed_one_has_not_held() -> None:
    from demo_steps.checks import Checks

    checks = Checks()
    assert not checks.all_held
    checks.expect("s", "one", True, 1, "1")
    assert checks.all_held
    checks.expect("s", "two", False, 2, "1")
    assert not checks.all_held and [c.name for c in checks.failed] == ["two"]


def test_a_long_home_is_moved_where_sockets_can_live(tmp_path: Path) -> None:
    from demo_steps.pool import LONGEST_SOCKET_PATH, SOCKET_NAME, choose_home

    assert choose_home(tmp_path / "h") == tmp_path / "h"
    moved = choose_home(tmp_path / ("x" * 120))
    assert len(os.fsencode(moved / SOCKET_NAME)) <= LONGEST_SOCKET_PATH


def test_a_folder_of_somebody_else_is_not_cleared(tmp_path: Path) -> None:
    """The demo's home is removed at each start: only what the demo made may go."""
    from demo_steps.checks import StepFailed
    from demo_steps.pool import Pool

    (tmp_path / "logs").mkdir()
    precious = tmp_path / "home" / "thesis.tex"
    precious.parent.mkdir()
    precious.write_text("years of work")
    with pytest.raises(StepFailed, match="was not made by the demo"):
        Pool(tmp_path / "home", tmp_path / "logs").clear()
    assert precious.read_text() == "years of work"


def test_steps_that_were_never_logged_are_counted() -> None:
    """T2: a resume that skips steps must not pass as whole."""
    from demo_steps.training import gap, thin

    lines = [{"step": s, "pid": 1 if s < 4 else 2, "time": float(s), "loss": 0.5} for s in (1, 2, 3, 3, 4, 6)]
    assert gap(lines, 6) == 1
    assert gap(lines, 4) == 0
    kept = thin(lines, most=1)
    assert [(k["pid"], k["step"]) for k in kept] == [(1, 1), (1, 3), (2, 4), (2, 6)]


def test_a_job_event_becomes_one_short_line() -> None:
    from demo_steps.jobs import told

    assert told({"event": "step", "step": 120, "of": 984, "loss": 0.43}) == "step 120 of 984, loss 0.43"
    assert len(told({"event": "x", "path": "y" * 500})) < 80
