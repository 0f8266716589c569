"""Replicas of an endpoint as the control plane keeps them, and asks that are withdrawn (S2 V4 S8)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from control_world import World, world
from waiting import until

from moorage.configs.pool import PoolSettings, PreemptionSettings
from moorage.errors import Conflict, InvalidRequest, LeaseTimeout, MoorageError
from moorage.runtime import answers
from moorage.runtime.commands.why import told
from moorage.runtime.control import growth, loop
from moorage.runtime.control.api import EndpointView, GrowAsk, ReplicaReport
from moorage.runtime.control.core import Core
from moorage.runtime.control.serving import ask_name
from moorage.runtime.frontdoor.ownapi import why_json
from moorage.scheduling.model import Plan, Snapshot

LENT = "teams: {serving: {quota: 8}, training: {quota: 0}}"
SOON = PoolSettings(preemption=PreemptionSettings(grace_s=20, least_run_s=0))


def asking(
    w: World, job: str, name: str, team: str = "serving"
) -> Callable[[], answers.Lease | MoorageError]:
    """Ask for one GPU more in a thread; the answer, once it is there."""
    found: list[answers.Lease | MoorageError] = []

    def ask() -> None:
        try:
            found.append(
                w.service.grow(
                    w.caller(team), GrowAsk(job_id=job, milli_gpu=1000, milli_cpu=0, timeout_s=600, name=name)
                )
            )
        except MoorageError as error:
            found.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    until(
        lambda: found or any(one.parent == job for one in w.service.core.book.pending.values()), 10, "the ask"
    )

    def answer() -> answers.Lease | MoorageError:
        thread.join(20)
        return found[0]

    return answer


def replica(lease: str, number: int = 0, state: Any = "SERVING") -> answers.Replica:
    name = "trips" if not number else f"trips-r{number}"
    return answers.Replica(
        app=name, route=f"/{name}", lease_id=lease, node="node-0", devices=[number], state=state
    )


def said(*replicas: answers.Replica, wanted: int = 1, **load: float) -> ReplicaReport:
    return ReplicaReport(min_replicas=1, max_replicas=4, wanted=wanted, replicas=replicas, load=load)


def endpoint(w: World) -> EndpointView:
    return w.service.endpoint("trips")


def serving(w: World) -> tuple[str, str]:
    """A running job with an endpoint, and the lease of the job."""
    job = w.submit("serving", seconds="1000")
    w.run(2)
    w.service.publish_endpoint(w.caller("serving"), "trips", "trips", "/trips", job)
    return job, w.service.core.book.ledger.held_by(job)[0].lease


def test_a_waiting_replica_takes_lent_gpus_back_by_notice_as_a_job_does(tmp_path: Path) -> None:
    """V4: and while it waits the endpoint and `why` say for whom."""
    with world(tmp_path, teams=LENT, settings=SOON) as w:
        job, _ = serving(w)
        lent = w.submit("training", workers=7, preemptible="true", seconds="1000")
        w.run(2)
        w.service.report_replicas(w.caller("serving"), "trips", said(wanted=2))
        answer = asking(w, job, ask_name("trips", 1))
        w.run(1)
        assert w.states(lent) == ["PREEMPTING"]
        scaling = endpoint(w).scaling
        assert scaling is not None and [one["reason"]["code"] for one in scaling["waits"]] == ["leaving"]
        assert w.service.why(w.caller("serving"), job).asks[0]["reason"]["holders"] == [lent]
        lines = told(why_json(w.service.why(w.caller("serving"), job), []))
        assert lines[0].endswith("it does not wait, but has asked for more room")
        assert any(
            line.startswith("  asks for 1 GPU more (endpoint:trips:1)") and lent in line for line in lines
        ), lines
        w.run(22)  # the grace, then the stop
        view = answer()
        assert isinstance(view, dict) and w.held("serving") == 2000
        after = endpoint(w).scaling
        assert after is not None and after["waits"] == []
        w.service.release_sublease(w.caller("serving"), view["lease_id"])
        w.run(3)
        assert w.states(lent) == ["RUNNING"], "what is given back is lent again"


def test_a_withdrawn_ask_frees_its_place_and_holds_nothing(tmp_path: Path) -> None:
    with world(tmp_path, teams=LENT) as w:
        job, _ = serving(w)
        other = w.submit("serving", workers=7, seconds="1000")
        w.run(2)
        answer = asking(w, job, "more")
        w.run(1)
        ops = w.caller("serving")
        assert w.service.withdraw_ask(ops, job, "more") and not w.service.withdraw_ask(ops, job, "more")
        assert isinstance(answer(), LeaseTimeout) and not w.service.core.book.pending
        w.service.stop(ops, other)
        w.run(2)
        assert w.held("serving") == 1000
        late = asking(w, job, "late")
        w.run(1)
        assert isinstance(late(), dict)
        assert w.service.withdraw_ask(ops, job, "late"), "granted in the same moment: given back"
        assert w.held("serving") == 1000


def test_nobody_leaves_for_an_ask_that_was_withdrawn_while_it_was_planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with world(tmp_path, teams=LENT, settings=SOON) as w:
        job, _ = serving(w)
        lent = w.submit("training", workers=7, preemptible="true", seconds="1000")
        w.run(2)
        answer, ops, apply_plan = asking(w, job, "more"), w.caller("serving"), loop.apply_plan

        def late(core: Core, snapshot: Snapshot, plan: Plan) -> int:
            assert list(plan.preempted) and w.service.withdraw_ask(ops, job, "more")
            return apply_plan(core, snapshot, plan)

        monkeypatch.setattr(loop, "apply_plan", late)
        w.service.loop.tick()
        monkeypatch.undo()
        assert isinstance(answer(), LeaseTimeout)
        assert w.states(job, lent) == ["RUNNING", "RUNNING"] and not w.service.core.book.promises


@pytest.mark.parametrize("promised", [False, True])
def test_an_ask_ends_with_its_job_before_who_waits_for_it_has_heard(tmp_path: Path, promised: bool) -> None:
    """Its thread gives it up a moment later: a round of the loop may come first."""
    with world(tmp_path, teams=LENT, settings=SOON) as w:
        job, _ = serving(w)
        lent = w.submit("training", workers=7, preemptible="true", seconds="1000")
        w.run(2)
        core, ask = w.service.core, GrowAsk(job_id=job, milli_gpu=2000, milli_cpu=0, timeout_s=600)
        with core.change() as change:
            growth._open(core, change, w.caller("serving"), ask)
        if promised:
            w.service.loop.tick()
            assert w.states(lent) == ["PREEMPTING"] and core.book.promises
            w.backend.leave(f"{lent}-1")
        w.backend.leave(f"{job}-1", 0)
        w.run(2)
        assert w.states(job, lent) == ["SUCCEEDED", "RUNNING"]
        assert w.job(lent).attempt == (2 if promised else 1)
        assert not core.book.pending and not core.book.promises


def test_requests_go_to_the_replicas_that_serve(tmp_path: Path) -> None:
    with world(tmp_path, teams=LENT) as w:
        job, lease = serving(w)
        caller = w.caller("serving")
        assert endpoint(w).routes == ("/trips",)
        more = asking(w, job, ask_name("trips", 1))
        w.run(1)
        view = more()
        assert isinstance(view, dict)
        second = replica(view["lease_id"], 1, "STARTING")
        w.service.report_replicas(caller, "trips", said(replica(lease), second, wanted=2, ongoing=7.5))
        assert endpoint(w).routes == ("/trips",)
        w.service.report_replicas(
            caller, "trips", said(replica(lease), {**second, "state": "SERVING"}, wanted=2)
        )
        assert endpoint(w).routes == ("/trips", "/trips-r1")
        scaled = [one for one in w.service.events(caller, limit=1000) if one["kind"] == "endpoint.scaled"]
        w.service.report_replicas(
            caller, "trips", said(replica(lease), {**second, "state": "SERVING"}, wanted=2, ongoing=9)
        )
        again = [one for one in w.service.events(caller, limit=1000) if one["kind"] == "endpoint.scaled"]
        assert scaled == again, "load alone is not written"
        scaling = endpoint(w).scaling
        assert scaling is not None and scaling["load"] == {"ongoing": 9}
        w.service.stop(caller, job)
        w.run(3)
        assert endpoint(w).scaling is None and not endpoint(w).live


def test_a_report_is_bound_to_leases_and_to_the_endpoints_own_job(tmp_path: Path) -> None:
    with world(tmp_path, teams=LENT) as w:
        _, lease = serving(w)
        caller = w.caller("serving")
        for others in ((replica(lease), replica(lease, 1)), (replica("l-none"),)):
            with pytest.raises(Conflict) as refused:
                w.service.report_replicas(caller, "trips", said(*others))
            assert refused.value.code == "replicas-beyond-lease"
        w.service.report_replicas(caller, "trips", said(replica(lease), replica("l-gone", 1, "DRAINING")))
        bad = (
            said(replica(lease, state="ASLEEP")),
            said(replica(lease), replica(lease)),
            said({**replica(lease), "route": "/-/x"}),
            said(wanted=5),
            replace(said(), min_replicas=0),
        )
        for report in bad:
            with pytest.raises(InvalidRequest):
                w.service.report_replicas(caller, "trips", report)
        with pytest.raises(MoorageError, match="no endpoint"):
            w.service.report_replicas(w.caller("training"), "trips", said())
        other = w.submit("training", seconds="1000")
        w.run(2)
        with pytest.raises(Conflict, match="route"):
            w.service.publish_endpoint(w.caller("training"), "mine", "mine", "/trips-r1/deep", other)


def test_a_new_attempt_begins_without_the_replicas_of_the_last(tmp_path: Path) -> None:
    with world(tmp_path, teams=LENT) as w:
        job = w.submit("serving", seconds="3", exit="1", max_attempts="2", job="host")
        w.run(2)
        w.service.publish_endpoint(w.caller("serving"), "trips", "trips", "/trips", job)
        lease = w.service.core.book.ledger.held_by(job)[0].lease
        w.service.report_replicas(w.caller("serving"), "trips", said(replica(lease)))
        assert endpoint(w).scaling is not None
        until(
            lambda: w.run(1) or (w.job(job).attempt == 2 and w.job(job).state == "RUNNING"), 20, "attempt 2"
        )
        assert endpoint(w).scaling is None and endpoint(w).routes == ("/trips",)


def test_replicas_outlive_a_restart_of_the_control_plane(tmp_path: Path) -> None:
    with world(tmp_path, teams=LENT) as w:
        _, lease = serving(w)
        w.service.report_replicas(w.caller("serving"), "trips", said(replica(lease), ongoing=3))
        w.restart()
        scaling = endpoint(w).scaling
        assert scaling is not None and scaling["replicas"] == [replica(lease)] and scaling["load"] == {}
