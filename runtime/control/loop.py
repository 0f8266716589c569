"""The reconcile loop: observe, absorb, plan, apply, act. One thread; a tick on wake-up or every `tick_ms`."""

from __future__ import annotations

import logging
import threading

from moorage.cluster.backend import Backend, BackendUnavailable
from moorage.runtime.control import preempting
from moorage.runtime.control.applier import apply_plan
from moorage.runtime.control.core import Core
from moorage.runtime.control.effects import Effects
from moorage.runtime.control.explaining import lease_ends
from moorage.runtime.control.guarding import Guard
from moorage.runtime.control.launching import LaunchSettings
from moorage.runtime.control.observing import Observer
from moorage.scheduling.guard import GuardPolicy
from moorage.scheduling.model import Policy
from moorage.scheduling.planner import plan
from moorage.scheduling.workspace import Workspace

log = logging.getLogger(__name__)


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
        self._observer = Observer(core)
        self.guard = Guard(core, backend, guard or core.settings.guard.policy())
        self._effects = Effects(core, backend, where)
        self._workspace = Workspace()
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None

    def tick(self) -> int:
        """One round; how many effects were done. While Ray does not answer nothing is decided and nothing expires."""
        try:
            seen = self.backend.observe()
            with self.core.store.lock:
                self.core.refresh()
            self._observer.absorb(seen)
            self._plan()
            self.guard.look()
            done = self._effects.run(seen)
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
        core = self.core
        now = core.store.clock.now()
        with core.store.lock:
            preempting.settle(core)
            pending = core.book.waiting(now.control_ns)
            if not pending:
                return
            with core.store.read() as db:
                ends = lease_ends(db, core.book.ledger)
                leavers = preempting.leavers(db, core, now.control_ns)
            snapshot = core.snapshot(pending, ends, leavers)
        apply_plan(core, snapshot, plan(snapshot, self.policy, now.control_ns, self._workspace))

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="reconcile", daemon=True)
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
            done = 0
            try:
                done = self.tick()
            except (
                Exception
            ):  # a bug in one round must not end the pool: what was not committed did not happen
                log.exception("a round of the reconcile loop failed")
                self.core.stale = True
            self.core.wake.wait(0.05 if done else self.core.settings.tick_ms / 1000)
