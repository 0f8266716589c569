"""G6: setting the machine's clock expires nothing, and control time never decreases."""

from __future__ import annotations

from moorage.runtime.control.clock import SystemClock

HOUR = 3600 * 10**9


class Machine:
    wall, monotonic = 10**18, 5 * 10**9

    def pass_(self, ns: int) -> None:
        self.wall += ns
        self.monotonic += ns


def test_a_wall_clock_that_is_set_an_hour_either_way_moves_control_time_by_nothing() -> None:
    machine = Machine()
    clock = SystemClock(lambda: machine.wall, lambda: machine.monotonic)
    begun = clock.now()
    assert begun.control_ns == begun.wall_ns == 10**18
    machine.wall += HOUR
    machine.pass_(10**9)
    assert clock.now().control_ns == begun.control_ns + 10**9
    machine.wall -= 2 * HOUR
    machine.pass_(10**9)
    now = clock.now()
    assert now.control_ns == begun.control_ns + 2 * 10**9 and now.wall_ns < begun.wall_ns


def test_control_time_goes_on_from_the_last_one_that_the_store_has() -> None:
    machine = Machine()
    clock = SystemClock(lambda: machine.wall, lambda: machine.monotonic)
    clock.advance_to(10**18 + HOUR)  # the clock was set back while the process was away
    first = clock.now().control_ns
    assert first > 10**18 + HOUR
    machine.pass_(10**9)
    assert 10**9 <= clock.now().control_ns - first + 1 <= 10**9 + 1
    clock.advance_to(5)
    assert clock.now().control_ns > first
