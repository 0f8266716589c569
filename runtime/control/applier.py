"""The one applier: re-checks a plan against the book as it is now and commits what still holds.

A plan made from an older version of the ledger is dropped whole: the next tick plans again.
"""

from __future__ import annotations

from moorage.runtime.control import deciding, preempting, resizing
from moorage.runtime.control.admitting import admit
from moorage.runtime.control.core import Core
from moorage.scheduling.model import Plan, Snapshot


def apply_plan(core: Core, snapshot: Snapshot, plan: Plan) -> int:
    """Commit the admissions that still hold, in one transaction, then what running gangs grow by; how many did. Reasons
    of the rest are kept."""
    with core.store.lock:
        if plan.version != core.book.ledger.version:
            return 0
        waiting = list(plan.waiting(snapshot))
        promised = {key: why for key, why in core.book.reasons.items() if key in core.book.promises}
        core.book.reasons = {request.job: reason for request, reason in waiting} | promised
        news = core.book.told.news(waiting, core.store.clock.now().control_ns)
        if news:
            with core.change() as change:
                deciding.record_waits(change.db, change.now, news)
        done, older = 0, deciding.older_than(waiting)
        if len(plan.admitted) and preempting.makes_room(core, plan):
            return preempting.apply(core, snapshot, plan, older)
        if len(plan.admitted):
            with core.change("admit") as change:
                for request, tasks in plan.admissions(snapshot):
                    done += admit(core, change, request, tasks, older(request.submitted_ns))
        return done + resizing.grow(core, snapshot, plan)
