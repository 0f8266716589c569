"""The reconcile loop: observe, absorb, plan, apply, act. One thread; a tick on wake-up or every `tick_ms`."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping

from moorage.cluster.backend import Backend, BackendUnavailable
from moorage.errors import Unavailable
from moorage.runtime.control import preempting, resizing
from moorage.runtime.control.applier import apply_plan
from moorage.runtime.control.core import Core
from moorage.runtime.control.effects import Effects
from moorage.runtime.control.explaining import lease_ends
from moorage.runtime.control.guarding import Guard
from moorage.runtime.control.launching import LaunchSettings
from moorage.runtime.control.leadership import Fenced
from moorage.runtime.control.measures import FAST_S, Distribution
from moorage.runtime.control.observing import Observer
from moorage.runtime.control.scaling import Scaler
from moorage.scheduling.guard import GuardPolicy
from moorage.scheduling.model import Policy
from moorage.scheduling.planner import plan
from moorage.scheduling.workspace import Workspace

log = logging.getLogger(__name__)
THREAD = "reconcile"
_AGAIN_NS = 30 * 10**9
"""So long what running gangs could not grow into is not tried again, if no lease has come or gone."""


class Loop:
    """`tick` is one round and may be called directly (tests); `start` runs it in a thread until `stop`."""

    def __init__(
        self,
        core: Core,
        backend: Backend,
        where: LaunchSettings,
        policy: Policy | None = None,
        guard: GuardPolicy | None = None,
    ) -> None:
        self.core, self.backend = core, backend
        self.policy = policy or core.policy
        self.unreachable = "the cluster has not been looked at yet"
        """Why Ray cannot be reached now; "" when it can."""
        self.last_tick_ns = 0
        self.tick_seconds, self.plan_seconds = Distribution(FAST_S), Distribution(FAST_S)
        self._observer = Observer(core)
        self.guard = Guard(core, backend, guard or core.settings.guard.policy())
        self._effects = Effects(core, backend, where)
        self._scaler = Scaler(core, backend, self.policy)
        self._workspace = Workspace()
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None
        self._resting = True
        self._fruitless: tuple[int, frozenset[str], int] | None = None
        """The ledger's version and the leases for which there was nothing to grow into, with nobody waiting, and
        when."""

    @property
    def effect_failures(self) -> Mapping[str, int]:
        """Tries that failed, by kind of effect, since this process started."""
        return self._effects.failures

    @property
    def at(self) -> int | None:
        """The step that the thread is at; None between two rounds, and where there is none. See `watchdog`."""
        return None if self._resting else self.core.steps

    def tick(self) -> int:
        """One round; how many effects were done. While Ray does not answer nothing is decided and nothing expires."""
        with self.tick_seconds.timed():
            return self._tick()

    def _tick(self) -> int:
        try:
            seen = self.backend.observe()
            self.core.steps += 1
            with self.core.store.lock:
                self.core.refresh()
            self._observer.absorb(seen)
            self.core.steps += 1
            self._plan()
            self.core.steps += 1
            self.guard.look()
            self.core.steps += 1
            done = self._effects.run(seen)
            self.core.steps += 1
            self._scaler.look(seen)
        except BackendUnavailable as error:
            if not self.unreachable:
                log.warning("Ray cannot be reached: %s", error)
            self.unreachable = str(error)
            return 0
        finally:
            self.last_tick_ns = self.core.store.clock.now().control_ns
            self.core.notify()
        if self.unreachable:
            log.info("Ray answers: %d nodes, %d jobs", len(seen.nodes), len(seen.jobs))
        self.unreachable = ""
        return done

    def _plan(self) -> None:
        with self.core.store.lock:
            preempting.settle(self.core, self.guard.last)
        if self._decide():
            self._decide(again=True)

    def _decide(self, again: bool = False) -> int:
        """Plan and apply; how many started or grew. `again`: right after others were admitted, for the elastic ones
        among them: what nobody waits for is theirs before they start, and costs no restart later."""
        core = self.core
        now = core.store.clock.now()
        with core.store.lock:
            pending = core.book.waiting(now.control_ns)
            if not (pending or again or core.book.following):
                return 0
            with core.store.read() as db:
                gangs = resizing.gangs(db, core, now.control_ns)
                hungry = resizing.hungry(core, gangs)
                state = core.book.ledger.version, hungry, now.control_ns // _AGAIN_NS
                if (again or not pending) and (not hungry or state == self._fruitless):
                    return 0
                ends = lease_ends(db, core.book.ledger)
                leavers = preempting.leavers(db, core, now.control_ns)
            snapshot = core.snapshot(pending, ends, leavers, gangs)
        with self.plan_seconds.timed():
            decided = plan(snapshot, self.policy, now.control_ns, self._workspace)
            done = apply_plan(core, snapshot, decided)
        if hungry and not pending and not done:
            self._fruitless = state
        return done

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name=THREAD, daemon=True)
        self._thread.start()

    def stop(self, timeout: float = 35.0) -> None:
        """End after the round in progress."""
        self._ending.set()
        self.core.wake.set()
        if self._thread is not None:
            self._thread.join(timeout)

    def _run(self) -> None:
        while not self._ending.is_set():
            self.core.wake.clear()
            self.core.steps += 1
            self._resting = False
            done = 0
            try:
                done = self.tick()
            except Fenced as error:
                log.error("%s", error)
                self._resting = True
                return
            except Unavailable as error:
                log.warning("a round could not be done: %s", error)
                self.core.stale = True
            except (
                Exception
            ):  # a bug in one round must not end the pool: what was not committed did not happen
                log.exception("a round of the reconcile loop failed")
                self.core.stale = True
            self._resting = True
            self.core.wake.wait(0.05 if done else self.core.settings.tick_ms / 1000)
