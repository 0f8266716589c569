"""G6: a loop that hangs is told from one that is slow, that rests, or whose process was stopped."""

from __future__ import annotations

import threading
from pathlib import Path

from control_world import world
from waiting import until

from moorage.configs.pool import PoolSettings
from moorage.runtime.control.watchdog import Watchdog


def told(at: list[int | None], gap_s: float = 1.0, stuck_s: float = 10.0) -> int | None:
    """At which look a loop that is found at these steps counts as stuck."""
    steps = iter(at)
    watch = Watchdog(lambda: next(steps), stuck_s, lambda seconds: None)
    return next((number for number in range(len(at)) if watch.look(gap_s)), None)


def test_a_step_that_does_not_end_is_stuck_and_nothing_else_is() -> None:
    assert told([7] * 30) == 10
    assert told([*range(30)]) is None, "a long round gets on by steps"
    assert told([None] * 30) is None, "nothing to do"
    assert told(([7] * 9 + [8]) * 5) is None, "each of them slow"
    assert told(([7] * 9 + [None]) * 5) is None, "it rested in between"


def test_time_in_which_nobody_ran_does_not_count() -> None:
    """SIGSTOP, a laptop that slept: one long gap, and then the loop has its time."""
    assert told([7, 7], gap_s=3600.0) is None
    assert told([7] * 30, gap_s=3600.0) == 5, "each look counts twice its pause at most"


def test_each_effect_of_a_round_is_a_step(tmp_path: Path) -> None:
    with world(tmp_path) as w:
        w.submit("ops", seconds="1", job="one")
        before = w.service.core.steps
        w.run(0.5)
        alone = w.service.core.steps - before
        for number in range(4):
            w.submit("ops", job=f"j-{number}", seconds="1")
        before = w.service.core.steps
        w.run(0.5)
        assert w.service.core.steps - before == alone + 3


def test_the_loops_thread_says_where_it_is(tmp_path: Path) -> None:
    """None while it rests, whatever rounds it made; the same step for ever once an effect hangs."""
    with world(tmp_path, settings=PoolSettings(tick_ms=10)) as w:
        held, let_go = threading.Event(), threading.Event()
        w.service.loop.start()
        until(lambda: w.service.core.steps > 20 and w.service.loop.at is None, 10, "rounds, and a rest")
        launch = w.backend.launch

        def hang(what: object) -> None:
            held.set()
            let_go.wait()
            launch(what)  # type: ignore[arg-type]

        w.backend.launch = hang  # type: ignore[method-assign]
        w.submit("ops", job="stuck", seconds="1")
        assert held.wait(10)
        stuck = Watchdog(lambda: w.service.loop.at, 1.0, lambda seconds: None)
        assert [stuck.look(0.125) for _ in range(9)] == [False] * 8 + [True]
        let_go.set()
        until(lambda: w.service.loop.at is None, 10, "the round to end")
        w.service.loop.stop()
