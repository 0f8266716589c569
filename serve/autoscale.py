"""An endpoint whose replicas follow its load, within what the pool grants.

One round (`step`): hear how busy the replicas are, decide how many are wanted, ask the pool for what is missing, start
a replica on each worker that was granted, take away what is not wanted, and say all of it to the pool. Every round
begins with what Serve and the pool say, not with what the last one meant to do: one that broke off is made up for.

A replica that goes is first left out of what requests are sent to, then waits until it has answered what it had, and
only then ends; its lease is given back once Serve has let it go.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from moorage.cluster.binding import LeaseView, WorkerView, current
from moorage.errors import LeaseTimeout, MoorageError, Unavailable
from moorage.runtime.client import Client
from moorage.serve.load import mean_ongoing
from moorage.serve.placement import placement
from moorage.serve.replicas import (
    DRAINING,
    SERVING,
    STARTING,
    UNHEALTHY,
    Ask,
    Hosts,
    JobPool,
    NoPool,
    Pool,
    Replica,
    ServeHosts,
)
from moorage.serve.scaling import ScalePolicy, Wanted

log = logging.getLogger("moorage.serve")
ROUND_S = 0.5
FORGOTTEN_S = 2.5
"""A front door may send requests to a replica so long after it was told not to: it remembers endpoints for 2 s."""
DRAIN_S = 60.0
START_S = 180.0
AGAIN_S = 5.0
"""Serve does not have an application that it was given: it is given again after so long."""
REPLACE_S = 30.0
"""An unhealthy replica on a grown lease is given up after so long; Serve restarts it until then."""
BACK_OFF_S = 15.0
DIFFERS_S = 5.0
"""Replicas that hold other devices than their leases name are warned of after so long."""
REPORT_S = 1.0
_GOOD, _OVER = "RUNNING", ("DEPLOY_FAILED", "UNHEALTHY")


class Autoscaler:
    """The replicas of one endpoint. `step` is one round; `start` runs them in a thread until `stop`.

    Invariants: a replica's application name is never used twice; each worker of a lease carries one replica; a grown
    lease is released exactly when its replica is gone from Serve.
    """

    def __init__(
        self,
        endpoint: str,
        app: str,
        policy: ScalePolicy,
        base: Sequence[tuple[str, WorkerView]],
        hosts: Hosts,
        pool: Pool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`base`: (lease, worker) of the replicas that are always there; the first is the application `app` itself."""
        self.endpoint, self.policy = endpoint, policy
        self.replicas: list[Replica] = []
        self.note = ""
        """Why the pool is not asked for more, where that is so."""
        self._app, self._hosts, self._pool, self._clock = app, hosts, pool, clock
        self._base, self._wanted = base, Wanted(policy)
        self._asks: dict[str, Ask] = {}
        self._number = self._asked = 0
        self._not_before = self._said_s = 0.0
        self._said: Mapping[str, Any] = {}
        self._under_way: Mapping[str, int] = {}
        """Requests by route that the front door waits for."""
        self._latency: float | None = None
        self._ongoing = 0.0
        self._differs = self._told = ""
        self._differs_s = 0.0
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None

    # -- a round

    def step(self) -> None:
        now = self._clock()
        if not self.replicas:
            for lease, worker in self._base:
                self._add(lease, worker, own=False, now=now)
        states = self._hosts.states()
        self._hear(now)
        self._settle(states, now)
        wanted = self._decide(now)
        self._granted(now)
        self._reach(wanted, now)
        self._drained(states, now)
        self._report(wanted, now)

    def _add(self, lease: str, worker: WorkerView, *, own: bool, now: float) -> None:
        app = f"{self._app}-r{self._number}" if self._number else self._app
        self._number += 1
        self.replicas.append(Replica(app=app, lease_id=lease, worker=worker, own=own, since_s=now))
        self._hosts.start(app, worker)

    def _hear(self, now: float) -> None:
        """The load of each replica that has told something new; one that is silent counts as it last was."""
        for one in self.replicas:
            told = self._hosts.reading(one.app) if one.state != STARTING else None
            if told is None or (one.reading is not None and told.at_s == one.reading.at_s):
                continue
            one.ongoing, one.reading, one.heard_s = mean_ongoing(one.reading, told), told, now

    def _settle(self, states: Mapping[str, str], now: float) -> None:
        """Who serves by now, who does not any more, and who is given up."""
        for one in list(self.replicas):
            state = states.get(one.app, "")
            if one.state == STARTING:
                if state == _GOOD and self._hosts.answers(one.app):
                    one.enter(SERVING, now)
                    one.served = True
                elif state in _OVER or (state and now - one.since_s > START_S):
                    self._give_up(one, f"did not start: {state}", now)
                elif not state and now - one.since_s > AGAIN_S:
                    one.since_s = now
                    self._hosts.start(one.app, one.worker)
            elif one.state in (SERVING, UNHEALTHY):
                one.enter(SERVING if state == _GOOD else UNHEALTHY, now)
                if one.state == UNHEALTHY and not state and now - one.since_s > AGAIN_S:
                    log.warning("Serve has no application %s any more: it is deployed again", one.app)
                    one.enter(STARTING, now)
                    self._hosts.start(one.app, one.worker)
                elif one.state == UNHEALTHY and now - one.since_s > REPLACE_S:
                    self._give_up(one, f"is {state}", now)

    def _give_up(self, one: Replica, why: str, now: float) -> None:
        """A replica on the job's own lease stays: there is no other place for it."""
        if one.own:
            log.warning("replica %s %s: it is removed", one.app, why)
            self._not_before = now + BACK_OFF_S
            one.enter(DRAINING, now)
            one.ongoing = 0.0
            self._remove(one)

    def _decide(self, now: float) -> int:
        serving = [one for one in self.replicas if one.state == SERVING]
        told = [
            one.reading.latency_ms for one in serving if one.reading and one.reading.latency_ms is not None
        ]
        self._ongoing = sum(one.ongoing for one in self.replicas if one.state != STARTING)
        self._latency = max(told, default=None)
        return self._wanted.decide(now, len(serving), self._ongoing, self._latency)

    def _granted(self, now: float) -> None:
        for name, ask in list(self._asks.items()):
            if ask.error is not None:
                del self._asks[name]
                if not isinstance(ask.error, LeaseTimeout | Unavailable):
                    self.note, self._not_before = str(ask.error), now + BACK_OFF_S
                    log.warning("endpoint %s gets no more replicas: %s", self.endpoint, ask.error)
            elif ask.lease is not None:
                del self._asks[name]
                self.note = ""
                self._add(ask.lease.lease_id, ask.lease.workers[0], own=True, now=now)

    def _reach(self, wanted: int, now: float) -> None:
        """Ask for what is missing; take back first what was only asked for, then who never served, the newest first."""
        there = [one for one in self.replicas if one.state != DRAINING]
        short = wanted - len(there) - len(self._asks)
        for one in [one for one in self.replicas if one.state == DRAINING and not one.removed]:
            if short > 0:  # it was to go and has not gone yet
                one.enter(SERVING if one.served else STARTING, now)
                one.unlisted_s = None
                short -= 1
        while short > 0 and now >= self._not_before:
            self._asked += 1
            name = f"endpoint:{self.endpoint}:{self._asked}"
            self._asks[name] = self._pool.ask(name)
            short -= 1
        for name in list(self._asks)[::-1][: max(0, -short)]:
            self._asks.pop(name).withdraw()
            short += 1
        going = [one for one in there if one.own]
        going.sort(key=lambda one: (one.state != STARTING, one.state != UNHEALTHY, -self.replicas.index(one)))
        for one in going[: max(0, -short)]:
            one.enter(DRAINING, now)

    def _report(self, wanted: int, now: float) -> None:
        said = {
            "min_replicas": self.policy.min_replicas,
            "max_replicas": self.policy.max_replicas,
            "wanted": wanted,
            "replicas": [one.to_json() for one in self.replicas],
            "note": self.note[:500],
        }
        if said == self._said and now - self._said_s < REPORT_S:
            return
        load = {"ongoing": round(self._ongoing, 2), "target_ongoing": self.policy.target_ongoing}
        if self._latency is not None:
            load["latency_ms"] = round(self._latency, 2)
        if self.policy.target_latency_ms is not None:
            load["target_latency_ms"] = self.policy.target_latency_ms
        self._under_way = self._pool.report({**said, "load": load}).get("under_way", {})
        self._said, self._said_s = said, now
        for one in self.replicas:
            if one.state == DRAINING and one.unlisted_s is None:
                one.unlisted_s = self._clock()

    def _drained(self, states: Mapping[str, str], now: float) -> None:
        """End who has nothing left to answer; give back what the ended held."""
        for one in list(self.replicas):
            if one.state != DRAINING or one.unlisted_s is None:
                continue
            if not one.removed:
                heard = one.reading if one.heard_s > one.unlisted_s else None
                quiet = not one.served or (heard is not None and heard.ongoing == 0)
                quiet = quiet and not self._under_way.get(one.route)
                left = now - one.unlisted_s
                if (left > FORGOTTEN_S and quiet) or left > DRAIN_S:
                    self._remove(one)
            elif one.app not in states:
                self._exchange(one)
                self._pool.release(one.lease_id)
                self.replicas.remove(one)

    def _exchange(self, gone: Replica) -> None:
        """Have the lease given back that names what has become free. Replicas of equal shape that start at once on one
        node may hold each other's devices: who stays keeps the lease of what it holds."""
        others = [one for one in self.replicas if one is not gone]
        for _ in others:
            if gone.reading is not None and gone.reading.devices == gone.worker.devices:
                return
            other = next((one for one in others if gone.own and _holds(one, gone.worker)), None)
            if other is None:
                return
            gone.worker, other.worker = other.worker, gone.worker
            gone.lease_id, other.lease_id = other.lease_id, gone.lease_id

    def _remove(self, one: Replica) -> None:
        self._hosts.remove(one.app)
        one.removed = True

    # -- for callers

    @property
    def serving(self) -> int:
        return sum(one.state == SERVING for one in self.replicas)

    def devices_differ(self) -> str:
        """What replicas hold by the raylets' book and what their leases name, where they differ; "" where they do not.

        Replicas with equal shares on one node are interchangeable: compared are how many hold each device. A node
        where one has not told yet what it holds, or is about to end, is not compared: its other half may be that one's.
        """
        told = {
            one.app: one.reading
            for one in self.replicas
            if one.reading and one.reading.node and not one.removed
        }
        between = {one.worker.ray_node_id for one in self.replicas if one.app not in told}
        there = [one for one in self.replicas if one.worker.ray_node_id not in between]
        held = Counter((told[one.app].node, told[one.app].devices) for one in there)
        leased = Counter((one.worker.ray_node_id, one.worker.devices) for one in there)
        return "" if held == leased else f"replicas hold {sorted(held)}, their leases name {sorted(leased)}"

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name=f"scale-{self.endpoint}", daemon=True)
        self._thread.start()

    def stop(self, within_s: float = 1.0) -> None:
        """End after the round in progress, and ask for nothing more. What is leased ends with the job."""
        self._ending.set()
        if self._thread is not None:
            self._thread.join(within_s)
        for ask in self._asks.values():
            ask.withdraw()
        self._asks.clear()

    def _run(self) -> None:
        while not self._ending.wait(ROUND_S):
            try:
                self.step()
            except MoorageError as error:
                log.warning("endpoint %s: %s; tried again", self.endpoint, error)
            except Exception:
                log.exception("a round of endpoint %s failed; tried again", self.endpoint)
            self._tell_difference()

    def _tell_difference(self) -> None:
        """Warn of devices that differ once that has lasted: a replica that ends holds its device a moment longer."""
        found, now = self.devices_differ(), self._clock()
        if found != self._differs:
            self._differs, self._differs_s = found, now
        if found != self._told and (not found or now - self._differs_s > DIFFERS_S):
            self._told = found
            again = "replicas hold the devices of their leases again"
            log.warning("endpoint %s: %s", self.endpoint, found or again)


def _holds(one: Replica, worker: WorkerView) -> bool:
    """Whether a replica on a lease of its own has what another lease's worker of equal shape names."""
    told = one.reading
    return (
        one.own
        and told is not None
        and (told.node, told.devices) == (worker.ray_node_id, worker.devices)
        and replace(one.worker, devices=worker.devices) == worker
        and one.worker.devices != worker.devices
    )


def autoscaled(
    deployed: Any, team: str, spec: Any, policy: ScalePolicy, *, workers: Sequence[int] | None = None
) -> Autoscaler:
    """Serve `spec` with as many replicas as its load wants, and publish it: returns once the first ones answer.

    The workers of the job's lease (or those of `workers`, by index) carry the replicas that are always there, and
    `policy.min_replicas` must be their number; each further one runs on a lease of the same shape, which the job grows
    by. Stop the answer before `deployed.remove()`. On bare Ray there is one replica, or as many as the policy's least.
    """
    from moorage.serve.apps import app_name

    lease, app = current(), app_name(team, spec.endpoint)
    base = _base(lease, workers, policy)
    hosts = ServeHosts(deployed, spec, lambda worker: placement(lease=_alone(worker), cpus=worker.cpus))
    pool: Pool = NoPool()
    if lease is not None:
        job = os.environ["MOORAGE_JOB_ID"]
        pool = JobPool(spec.endpoint, job, base[0][1], Client.from_env)
        with Client.from_env() as client:
            client.publish_endpoint(spec.endpoint, app, f"/{app}")
    made = Autoscaler(spec.endpoint, app, policy, base, hosts, pool)
    deadline = time.monotonic() + START_S
    while made.serving < len(base):
        if time.monotonic() > deadline:
            raise Unavailable(
                f"endpoint {spec.endpoint} does not serve after {START_S:g} s",
                todo="the replica's log has the traceback",
                code="endpoint-not-ready",
            )
        try:
            made.step()
        except Unavailable as error:  # a front door that is started again is back before the deadline
            log.warning("endpoint %s: %s; tried again", spec.endpoint, error)
        time.sleep(0.1)  # polling with a deadline: Serve offers no event for it
    made.start()
    return made


def _alone(worker: WorkerView) -> LeaseView | None:
    """A lease of that worker alone, for `placement`; None on bare Ray."""
    return LeaseView(lease_id="", epoch=0, head=None, workers=(worker,)) if worker.ray_node_id else None


def _base(
    lease: LeaseView | None, workers: Sequence[int] | None, policy: ScalePolicy
) -> list[tuple[str, WorkerView]]:
    if lease is None:
        bare = WorkerView(node="", ray_node_id="", devices=(), milli_gpu=0, gpu_mib=0, milli_cpu=1000)
        return [("", bare)] * policy.min_replicas
    chosen = range(len(lease.workers)) if workers is None else workers
    if len(chosen) != policy.min_replicas:
        from moorage.errors import InvalidRequest

        raise InvalidRequest(
            f"min_replicas={policy.min_replicas}, and there are {len(chosen)} workers for them",
            why="a replica that is always there runs on a worker of the job's own lease",
            todo="submit the job with the metadata key `workers` set to min_replicas",
            code="scale-policy",
        )
    return [(lease.lease_id, lease.workers[index]) for index in chosen]
