"""The placement group that a job's plain tasks and actors run in, and how it shares the lease with the script's own.

A group holds what it holds, used or not. So it covers what the script's own groups (Ray Train's workers, Ray Tune's
trials) have left of the lease when it is made, and it is let go when nothing has been in it for a while, or somebody
needs the room: a script may prepare its data on all of its GPUs, train on all of them, and compute on all of them once
more; or do two of these at once, each on a part.

Several processes of a job may use the group. Each knows what has become of its own tasks, also of those that still wait
for their arguments: Ray tells it. So each joins it before it puts anything in, and leaves it when it finds itself idle;
the last one removes it (`groupusers`).
"""

from __future__ import annotations

import atexit
import logging
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from moorage.cluster import binding
from moorage.cluster.binding import LeaseView
from moorage.errors import InvalidRequest

log = logging.getLogger("moorage.lease")
IDLE_S, IDLE_MOST_S = 2.0, 60.0
"""Unused for so long, the group is let go; twice as long after each time that it had to be made again, unless somebody
waits for the room: Ray keeps a row for each group that ever was."""
LOOKS_EVERY_S = 0.5
WAITS_S, MOMENT_S = 10.0, 2.0
"""So long whoever needs room waits for others in the same job to let go of it, and for the group that one of them makes
or removes."""
AGAIN_S = 60.0
"""Who waited in vain asks without waiting for so long: Ray Tune makes one group after the other."""
PREFIX = "moorage-lease-"
_MOST = 1_000_000
_LITTLE = 1e-6

scripts: dict[str, list[tuple[str, float]]] = {}
"""What the groups hold that the script made in this process, placed or not: (node, GPUs) of each bundle, by the
group's id in hex."""
served: dict[str, list[tuple[str, float]]] = {}
"""The same of the applications that this process deployed in Serve, by their names: their replicas are not booked as
the job's."""
_known: dict[str, bool] = {}
_lock = threading.RLock()
_looking = threading.Lock()
"""Held while Ray is asked about the group; taken before `_lock`."""
_used: Used | None = None
_settled = ""
"""The id of the group that this process has made, or has waited for a larger one in vain: it is taken as it is."""
_looks_at = 0.0
"""When it is looked next whether there is room for a larger one."""
_submitting = _made_before = 0
_in_use_at = -AGAIN_S
_asking: threading.Thread | None = None
_over = threading.Event()


@dataclass
class Used:
    """The lease's group as this process knows it, and what it has put in."""

    name: str
    id: str
    group: Any
    bundles: tuple[tuple[float, float], ...]
    """(GPUs, CPUs) of each."""
    small: bool = False
    """It is less than the lease, for what there was beside it when it was made: better made anew once that has gone."""
    told: bool = False
    """The log says that it is."""
    leaving: bool = False
    """This process is to be taken off its users."""
    keeps_s: float = IDLE_S
    tasks: dict[Any, set[Any]] = field(default_factory=dict)
    """The ids of its tasks, by that of the task that started them."""
    actors: set[str] = field(default_factory=set)
    untold: bool = False
    """Something was put in of which nobody can tell when it is over: a task without a result."""
    put_in: int = 0
    """How often something was put in."""
    idle_since: float | None = None
    """Since when nothing is in it, as far as was looked; None while something is."""

    def room(self, gpus: float, cpus: float) -> float | None:
        """The CPUs of the smallest bundle that could ever hold so much; None when none could."""
        enough = [has for size, has in self.bundles if size >= gpus - _LITTLE and has >= cpus - _LITTLE]
        return min(enough, default=None)

    def note(self, parent: Any, result: Any) -> None:
        """What a call of `.remote()` in the task `parent` gave back."""
        self.put_in += 1
        self.idle_since = None
        if hasattr(result, "_actor_id"):
            self.actors.add(result._actor_id.hex())
            return
        refs = result if isinstance(result, list) else [getattr(result, "_generator_ref", result)]
        if not refs or not all(hasattr(ref, "task_id") for ref in refs):
            self.untold = True
            return
        self.tasks.setdefault(parent, set()).update(ref.task_id() for ref in refs)


@contextmanager
def using(lease: LeaseView, gpus: float, cpus: float) -> Iterator[tuple[Used, float]]:
    """The group for a task or an actor of so much, and the CPUs that it may have at most; the group stays at least
    until what is put in is noted. Raises `InvalidRequest` (code `lease-taken`) when there is no room for it beside what
    else the job has started."""
    global _settled, _submitting
    _make_larger(lease)
    until = time.monotonic() + WAITS_S
    while True:
        with _lock:
            found = _group_of(lease, gpus, cpus, waits=time.monotonic() < until)
            room = None if found is None else found.room(gpus, cpus)
            late = time.monotonic() >= until
            if (
                found is not None
                and room is not None
                and (found.id == _settled or late or not _could_be_larger(found, lease))
            ):
                if late and found.id != _settled:
                    _say_small(found, lease)
                _settled = found.id
                _submitting += 1
                break
        _let_go(idle_s=0.0)  # one that is too small: made beside groups that are gone by now
        # None may be for a moment only: another process makes or removes it.
        if time.monotonic() >= until + (MOMENT_S if found is None else 0) and room is None:
            raise _no_room(lease, gpus, cpus)
        time.sleep(LOOKS_EVERY_S / 2)
    try:
        yield found, room
    finally:
        with _lock:
            _submitting -= 1


def _make_larger(lease: LeaseView) -> None:
    """Let a group go that is less than the lease, if there is more room now and nothing is in it."""
    global _looks_at
    used, now = _used, time.monotonic()
    if used is None or not used.small or now < _looks_at:
        return
    _looks_at = now + IDLE_S
    try:
        if _could_be_larger(used, lease):
            _let_go(idle_s=0.0)
            if _used is used:
                _say_small(used, lease)
    except Exception:  # what there is will do
        log.debug("whether there is room for more could not be asked", exc_info=True)


def _say_small(used: Used, lease: LeaseView) -> None:
    if not used.told:
        used.told = True
        log.warning(
            "GPU tasks and actors of this job have %g of the %g GPUs of its lease, as long as one of those runs that"
            " were started when the rest was in use",
            sum(size for size, _ in used.bundles),
            lease.gpus,
        )


def _could_be_larger(used: Used, lease: LeaseView) -> bool:
    """Whether a group made now instead of this one would have more. What is left beside this one may be of no use to
    it: half of a device."""
    if not used.small:
        return False
    instead = binding.left_over(lease, taken(but=used.id))
    return sum(bundle["GPU"] for _, bundle in instead) > sum(gpus for gpus, _ in used.bundles) + _LITTLE


def _no_room(lease: LeaseView, gpus: float, cpus: float) -> InvalidRequest:
    held = sum(size for _, size in taken())
    return InvalidRequest(
        f"a task or actor of {gpus:g} GPUs and {cpus:g} CPUs has no room beside what else this job has started",
        why=f"placement groups (Ray Train, Ray Tune) and actors hold {held:g} of the {lease.gpus:g} GPUs of its lease,"
        " and what is left is less than it needs",
        todo="ask for more workers at submission, or start it before the others or after they have ended",
        code="lease-taken",
    )


def taken(but: str = "", waiting: bool = True) -> list[tuple[str, float]]:
    """(node, GPUs) of what this job's groups hold, the lease's own among them, its actors outside of groups, and the
    replicas that this process deployed; all `but` one group, by its id. `waiting`: and of what its groups wait for."""
    from moorage.cluster import rayapi

    groups, job = _groups(waiting), rayapi.own_job_id()
    there = {group.id for group in groups}
    for gone in [one for one in list(scripts) if one not in there and rayapi.group_is_gone(one)]:
        scripts.pop(gone, None)  # removed by another process
    others = [bundle for group in groups if group.id not in {*scripts, but} for bundle in group.bundles]
    own = [bundle for held in list(scripts.values()) for bundle in held]
    alone = [
        (actor.node, sum(actor.gpus.values()))
        for actor in rayapi.live_actors(_MOST, patient=True)[0]
        if actor.job == job and not actor.group
    ]
    return [bundle for bundle in [*others, *own, *alone, *_serving()] if bundle[1] > 0]


def _serving() -> list[tuple[str, float]]:
    from moorage.cluster import rayapi

    if not served:
        return []
    try:
        there = rayapi.serve_deployers()
    except Exception:  # Serve does not say in time: they are taken to be there
        log.debug("Serve did not list its applications", exc_info=True)
        there = dict.fromkeys(served, "")
    for gone in [app for app in list(served) if app not in there]:
        served.pop(gone, None)
    return [bundle for held in list(served.values()) for bundle in held]


def is_a_leases(group_id: str) -> bool:
    """Whether a group that this process runs in is that of a lease, and none that the script made."""
    if group_id not in _known:
        _known[group_id] = any(one.id == group_id and one.name.startswith(PREFIX) for one in _groups())
    return _known[group_id]


def free(lease: LeaseView, available: Mapping[str, float], cluster: Mapping[str, float]) -> float:
    """GPUs of the lease that nothing of this job uses now. By resource, what Ray says that is `available`, and what is
    in the `cluster`: a group that was made just now is in neither."""
    unused = 0.0
    for group in _groups():
        if group.name.startswith(PREFIX):
            name = f"GPU_group_{group.id}"
            whole = sum(gpus for _, gpus in group.bundles)
            unused += available.get(name, 0.0) if name in cluster else whole
    return max(0.0, round(lease.gpus - sum(gpus for _, gpus in taken()) + unused, 4))


def refuse_own_wait(lease: LeaseView, bundles: Sequence[Mapping[str, float]], one_node: bool) -> None:
    """Raises `InvalidRequest` (code `lease-taken`) for a placement group that would wait for this very task or actor:
    it runs in the lease's group, which stays as long as it does, and there is no room beside that."""
    from moorage.cluster import rayapi

    own = rayapi.own_group()
    around = [one for one in _groups() if one.id == own and one.name.startswith(PREFIX)] if own else []
    held = [bundle for one in around for bundle in one.bundles]
    if not held or not binding.fits_beside(lease, bundles, (), one_node):
        return
    if not binding.fits_beside(lease, bundles, held, one_node):
        raise InvalidRequest(
            "a placement group made here would wait for the task or actor that makes it",
            why=f"that has GPUs of this job's lease, and what holds them for all such tasks and actors takes"
            f" {sum(gpus for _, gpus in held):g} of its {lease.gpus:g} GPUs until the last of them ends",
            todo="make it in the driver before the first GPU task or actor, or in a task without GPUs (num_gpus=0)",
            code="lease-taken",
        )


def make_room() -> bool:
    """Let the lease's group go if nothing is in it, or wait a little until the processes that use it do. Whether it is
    gone."""
    from moorage.cluster import groupusers

    global _in_use_at
    until = time.monotonic() + WAITS_S
    wanted: set[str] = set()
    try:
        while True:
            _let_go(idle_s=0.0)
            held = [group for group in _groups() if group.name.startswith(PREFIX)]
            with _lock:  # or another thread of ours would take the end of this removal for that of its own
                held = [one for one in held if not groupusers.close(one.id)]
            if not held:
                return True
            now = time.monotonic()
            if now < _in_use_at + AGAIN_S:
                return False
            if now >= until:
                _in_use_at = now
                return False
            for group in held:
                if group.id not in wanted:
                    groupusers.want(group.id)
                    wanted.add(group.id)
            time.sleep(LOOKS_EVERY_S)
    finally:
        for one in wanted:
            groupusers.want(one, over=True)


def keep_asking() -> None:
    """Go on as `make_room` does, without waiting here, as long as a group that the script made in this process waits to
    be placed: who has the room may end without a word."""
    global _asking
    with _lock:
        _over.clear()
        _stop_at_exit()
        if _asking is None or not _asking.is_alive():
            _asking = threading.Thread(target=_ask_on, name="moorage-lease-room", daemon=True)
            _asking.start()


def _ask_on() -> None:
    from moorage.cluster import groupusers

    wanted: set[str] = set()
    while not _over.wait(IDLE_S):
        try:
            groups = _groups()
            placed = {group.id for group in _groups(waiting=False)}
            if not any(group.id in scripts and group.id not in placed for group in groups):
                for one in wanted:
                    groupusers.want(one, over=True)
                return
            _let_go(idle_s=0.0)
            for group in groups:
                if group.name.startswith(PREFIX):
                    groupusers.want(group.id)
                    wanted.add(group.id)
                    with _lock:
                        groupusers.close(group.id)
        except Exception:
            log.debug("room for a placement group could not be asked for", exc_info=True)


def stop() -> None:
    """Before Ray is shut down: nothing here may ask it anything after that."""
    global _used
    _over.set()
    # Not for ever: both are held while a GCS that is away is waited for.
    held = [lock for lock in (_looking, _lock) if lock.acquire(timeout=LOOKS_EVERY_S)]
    _used = None
    scripts.clear()
    for lock in held:
        lock.release()


# -- making it, or finding it


def _group_of(lease: LeaseView, gpus: float, cpus: float, waits: bool) -> Used | None:
    """None for now: there is no room for it, or the group that there was is about to go. `waits`: what another process
    has just asked Ray for is left to it."""
    global _used
    from moorage.cluster import rayapi

    # By Ray's own job id too: after `ray.shutdown()` and `ray.init()` the group of before is on its way out.
    name = f"{PREFIX}{lease.lease_id}-{lease.epoch}-{rayapi.own_job_id()}"
    if _used is None or _used.name != name:
        _used = _found(name, lease) or _made(name, lease, gpus, cpus, waits)
        if _used is not None:
            _over.clear()
            _stop_at_exit()
            threading.Thread(
                target=_look_after, args=(_used,), name="moorage-lease-group", daemon=True
            ).start()
    return _used


@cache
def _stop_at_exit() -> None:
    """Not on import: what is registered last runs first, and Ray's own is registered by now."""
    atexit.register(stop)


def _module() -> Any:
    return sys.modules["ray.util.placement_group"]


def _found(name: str, lease: LeaseView) -> Used | None:
    """The group, if another process of the job has made it and nobody is about to remove it."""
    from moorage.cluster import groupusers

    try:
        group = _module().get_placement_group(name)
    except ValueError:
        return None
    bundles = tuple((float(one.get("GPU", 0)), float(one.get("CPU", 0))) for one in group.bundle_specs)
    small = sum(gpus for gpus, _ in bundles) < lease.gpus - _LITTLE
    used = Used(name=name, id=group.id.hex(), group=group, bundles=bundles, small=small)
    return used if groupusers.join(used.id) else None


def _made(name: str, lease: LeaseView, gpus: float, cpus: float, waits: bool) -> Used | None:
    global _made_before, _settled
    from moorage.cluster import groupusers

    left = binding.left_over(lease, taken(waiting=waits))
    bundles = tuple((bundle["GPU"], bundle.get("CPU", 0.0)) for _, bundle in left)
    keeps_s = min(IDLE_MOST_S, IDLE_S * 2**_made_before)
    small = sum(size for size, _ in bundles) < lease.gpus - _LITTLE
    made = Used(name=name, id="", group=None, bundles=bundles, small=small, keeps_s=keeps_s)
    if made.room(gpus, cpus) is None:
        return None
    try:
        made.group = _module().placement_group.unbound(
            [bundle for _, bundle in left],
            "PACK",
            name,
            bundle_label_selector=[binding.node_selector(node) for node, _ in left],
        )
    except ValueError:  # another process of the job was quicker, or the one of before is still on its way out
        return None
    made.id = _settled = made.group.id.hex()
    _made_before += 1
    return made if groupusers.join(made.id) else None


def _groups(waiting: bool = True) -> list[Any]:
    from moorage.cluster import rayapi

    job = rayapi.own_job_id()
    groups = rayapi.placement_groups(_MOST, patient=True, waiting=waiting)[0]
    return [group for group in groups if group.job == job]


# -- letting it go


def _look_after(used: Used) -> None:
    while not _over.wait(LOOKS_EVERY_S):
        try:
            _let_go(idle_s=used.keeps_s)
            with _lock:
                if used.leaving and not _over.is_set() and (_used is None or _used.id != used.id):
                    _leave(used)  # it failed
                if _used is not used:
                    return
        except Exception:
            log.debug("the lease's placement group could not be looked at", exc_info=True)


def _let_go(idle_s: float) -> None:
    """Leave the group, and remove it if nobody else uses it, when nothing of this process has been in it so long."""
    global _used
    from moorage.cluster import groupusers

    with _looking:
        with _lock:
            used = _idle_yet()
            if used is None:
                return
            put_in, tasks, actors = used.put_in, dict(used.tasks), list(used.actors)
        # Not under the lock: a long answer may not hold up whoever starts something.
        running = _running(tasks)
        gone = set() if running else _dead(actors)
        with _lock:
            if _idle_yet() is not used or used.put_in != put_in:
                return
            used.tasks, used.actors = running, used.actors - gone
            if used.tasks or used.actors:
                used.idle_since = None
                return
            now = time.monotonic()
            used.idle_since = now if used.idle_since is None else used.idle_since
            idle = now - used.idle_since
            if idle < idle_s and not (idle >= IDLE_S and groupusers.is_wanted(used.id)):
                return
            _used = None  # before it goes: whoever starts something while that fails looks for it again
            _leave(used)


def _leave(used: Used) -> None:
    from moorage.cluster import groupusers

    used.leaving = True
    groupusers.close(used.id, leaving=True)
    used.leaving = False


def _idle_yet() -> Used | None:
    """The group, unless this process is known to use it without asking Ray."""
    if _over.is_set() or _used is None or _submitting or _used.untold:
        return None
    return _used


def _running(tasks: dict[Any, set[Any]]) -> dict[Any, set[Any]]:
    from moorage.cluster import rayapi

    found = {parent: started & rayapi.pending_children(parent) for parent, started in tasks.items()}
    return {parent: left for parent, left in found.items() if left}


def _dead(actors: list[str]) -> set[str]:
    """Those that are, up to the first one that is not."""
    from moorage.cluster import rayapi

    found = set()
    for actor in actors:
        if not rayapi.actor_is_dead(actor):
            break
        found.add(actor)
    return found
