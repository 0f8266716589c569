"""S4, S9: what the lease's own placement group holds beside the script's, and when it is let go."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from waiting import until

from moorage.cluster import groupusers, leasegroup
from moorage.cluster.binding import LeaseView, WorkerView, fits_beside, left_over
from moorage.errors import InvalidRequest


def lease(*workers: tuple[str, tuple[int, ...], int]) -> LeaseView:
    """(node, devices, milli-GPU of each) per worker, with one CPU each."""
    views = [
        WorkerView(node=node, ray_node_id=node, devices=devices, milli_gpu=milli, gpu_mib=0, milli_cpu=1000)
        for node, devices, milli in workers
    ]
    return LeaseView(lease_id="l", epoch=1, head=None, workers=tuple(views))


THREE = lease(("a", (0,), 1000), ("a", (1,), 1000), ("b", (0,), 1000))


def gpus(found: list[tuple[str, dict[str, float]]]) -> list[tuple[str, float]]:
    return [(node, bundle["GPU"]) for node, bundle in found]


def test_it_has_what_the_groups_of_the_script_left() -> None:
    assert gpus(left_over(THREE, [])) == [("a", 1), ("a", 1), ("b", 1)]
    assert gpus(left_over(THREE, [("a", 1.0)])) == [("a", 1), ("b", 1)]
    assert gpus(left_over(THREE, [("a", 2.0), ("b", 0.25)])) == [("b", 0.75)]
    assert left_over(THREE, [("a", 1.0), ("b", 1.0), ("a", 1.0)]) == []
    assert left_over(THREE, [("b", 0.25)])[2][1] == {"GPU": 0.75, "CPU": 0.75}


def test_of_a_worker_with_several_devices_whole_ones_are_left_or_a_part_of_one() -> None:
    """Ray gives no task 1.5 GPUs, nor 0.8 of two devices that have 0.4 each."""
    assert gpus(left_over(lease(("a", (0, 1), 1000)), [("a", 0.5)])) == [("a", 1.0)]
    assert gpus(left_over(lease(("a", (0, 1), 1000)), [("a", 0.6)] * 2)) == [("a", 0.4)]
    assert gpus(left_over(lease(("a", (0, 1, 2), 1000)), [("a", 0.6)] * 3)) == [("a", 0.4)]
    assert gpus(left_over(lease(("a", (0, 1, 2), 1000)), [("a", 1.0)])) == [("a", 2.0)]


def test_a_small_group_takes_the_smallest_piece_that_is_enough() -> None:
    pieces = lease(("a", (0,), 1000), ("a", (1,), 300))
    assert gpus(left_over(pieces, [("a", 0.3)])) == [("a", 1.0)]


@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.integers(1, 3), st.sampled_from([300, 500, 1000])),
        min_size=1,
        max_size=6,
    ),
    st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from([0.25, 0.5, 0.6, 1.0, 2.0])), max_size=6),
)
def test_both_together_are_never_more_than_the_lease_has(
    workers: list[tuple[str, int, int]], there: list[tuple[str, float]]
) -> None:
    held = lease(*((node, tuple(range(count)), milli) for node, count, milli in workers))
    for node in "ab":
        has = sum(count * milli for at, count, milli in workers if at == node) / 1000
        script = sum(size for at, size in there if at == node)
        rest = sum(size for at, size in gpus(left_over(held, there)) if at == node)
        assert rest <= max(0.0, has - script) + 1e-6


def test_a_group_of_the_script_fits_beside_or_not() -> None:
    two = [{"GPU": 1.0}, {"GPU": 1.0, "CPU": 2.0}]
    assert fits_beside(THREE, two, [("a", 1.0)], one_node=False)
    assert not fits_beside(THREE, two, [("a", 1.0)], one_node=True)
    assert not fits_beside(THREE, two, [("a", 1.0), ("b", 1.0)], one_node=False)


# -- making it and letting it go


class Ref:
    def __init__(self, task: str) -> None:
        self.task = task

    def task_id(self) -> str:
        return self.task


class Id(str):
    def hex(self) -> str:
        return str(self)


@dataclass
class Ray:
    """What `leasegroup` asks of `rayapi` and of Ray's placement groups. `me` is who asks."""

    groups: dict[str, Any] = field(default_factory=dict)
    pending: dict[str, set[str]] = field(default_factory=dict)
    dead: set[str] = field(default_factory=set)
    kv: dict[str, bytes] = field(default_factory=dict)
    alone: list[Any] = field(default_factory=list)
    me: str = "worker-driver"
    around: str = ""
    ever: list[str] = field(default_factory=list)
    detached: set[str] = field(default_factory=set)
    not_placed: set[str] = field(default_factory=set)
    found: Callable[[], None] = lambda: None
    before_read: Callable[[str], None] = lambda key: None
    removing: Callable[[], None] = lambda: None

    def own_job_id(self) -> str:
        return "01"

    def own_id(self) -> str:
        return self.me

    def own_group(self) -> str:
        return self.around

    def placement_groups(
        self, limit: int, patient: bool = False, waiting: bool = False
    ) -> tuple[list[Any], bool]:
        return [one for one in self.groups.values() if waiting or one.name not in self.not_placed], True

    def live_actors(self, limit: int, patient: bool = False) -> tuple[list[Any], bool]:
        return self.alone, True

    def group_is_gone(self, group: str) -> bool:
        known = {one.id for one in self.groups.values()}
        return group.startswith("gone") or (group in self.ever and group not in known)

    def has_detached(self, group: str) -> bool:
        return group in self.detached

    def pending_children(self, parent: str) -> set[str]:
        return self.pending.get(parent, set())

    def actor_is_dead(self, actor: str) -> bool:
        return actor in self.dead

    def has_ended(self, user: str) -> bool:
        return user in self.dead

    def kv_put(self, key: str, value: bytes) -> None:
        self.kv[key] = value

    def kv_get(self, key: str) -> bytes | None:
        return self.kv.get(key)

    def kv_keys(self, prefix: str) -> list[str]:
        self.before_read(prefix)
        return [key for key in self.kv if key.startswith(prefix)]

    def kv_delete(self, key: str) -> None:
        self.kv.pop(key, None)

    def remove_group(self, group: str, patient: bool = False) -> None:
        del self.groups[next(name for name, one in self.groups.items() if one.id == group)]
        self.removing()

    # ray.util.placement_group

    def unbound(self, bundles: list[dict[str, float]], strategy: str, name: str, **more: Any) -> Any:
        if name in self.groups:
            raise ValueError(name)
        nodes = [next(iter(one.values())) for one in more["bundle_label_selector"]]
        held = tuple((node, bundle["GPU"]) for node, bundle in zip(nodes, bundles, strict=True))
        return self.add(name, held, bundles)

    def add(self, name: str, held: tuple[tuple[str, float], ...], bundles: Any = ()) -> Any:
        self.ever.append(Id(f"{len(self.ever):02x}"))
        self.groups[name] = SimpleNamespace(
            id=self.ever[-1], job="01", name=name, bundles=held, bundle_specs=bundles
        )
        return self.groups[name]

    def get_placement_group(self, name: str) -> Any:
        if name not in self.groups:
            raise ValueError(name)
        found = self.groups[name]
        self.found()
        return found


ASKED = (
    "own_job_id", "own_id", "own_group", "has_ended", "has_detached", "placement_groups", "live_actors",
    "group_is_gone", "pending_children", "actor_is_dead", "kv_put", "kv_get", "kv_keys", "kv_delete", "remove_group",
)  # fmt: skip
NAME = "moorage-lease-l-1-01"
LOOK_AFTER = leasegroup._look_after


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ray]:
    from moorage.cluster import rayapi

    fake = Ray()
    for name in ASKED:
        monkeypatch.setattr(rayapi, name, getattr(fake, name))
    module: Any = ModuleType("ray.util.placement_group")
    module.placement_group = SimpleNamespace(unbound=fake.unbound)
    module.get_placement_group = fake.get_placement_group
    monkeypatch.setitem(sys.modules, "ray.util.placement_group", module)
    monkeypatch.setattr(leasegroup, "WAITS_S", 0.05)
    monkeypatch.setattr(leasegroup, "MOMENT_S", 0.02)
    monkeypatch.setattr(leasegroup, "LOOKS_EVERY_S", 0.01)
    monkeypatch.setattr(leasegroup, "_in_use_at", -leasegroup.AGAIN_S)
    monkeypatch.setattr(leasegroup, "_made_before", 0)
    monkeypatch.setattr(leasegroup, "_settled", "")
    monkeypatch.setattr(leasegroup, "_looks_at", 0.0)
    monkeypatch.setattr(leasegroup, "_asking", None)
    monkeypatch.setattr(leasegroup, "_look_after", lambda used: None)
    monkeypatch.setattr(leasegroup, "_over", threading.Event())
    yield fake
    leasegroup.stop()


def start(task: str, parent: str = "driver", gpus: float = 1, held: LeaseView = THREE) -> Any:
    with leasegroup.using(held, gpus, 0) as (used, _):
        used.note(parent, Ref(task))
    return used


def waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each question waits in full."""
    monkeypatch.setattr(leasegroup, "AGAIN_S", -1.0)


@contextmanager
def another(ray: Ray, me: str) -> Iterator[None]:
    """What is asked here another process of the job asks."""
    before, ray.me, known = (leasegroup._used, leasegroup._settled), me, ray.me
    leasegroup._used, leasegroup._settled = None, ""
    yield
    (leasegroup._used, leasegroup._settled), ray.me = before, known


def test_it_goes_when_nothing_is_in_it_and_comes_again(ray: Ray, monkeypatch: pytest.MonkeyPatch) -> None:
    waits(monkeypatch)
    ray.pending = {"driver": {"one", "other"}, "thread": {"two"}}
    start("one")
    start("two", parent="thread")
    assert list(ray.groups) == [NAME] and leasegroup.taken() == [("a", 1.0), ("a", 1.0), ("b", 1.0)]
    assert not leasegroup.make_room(), "both run"
    ray.pending = {"driver": {"other"}, "thread": {"two"}}
    assert not leasegroup.make_room(), "one runs"
    ray.pending = {"driver": {"other"}}
    assert leasegroup.make_room() and not ray.groups, "what else the driver runs is not in it"
    assert not ray.kv, "nor what was said of it"
    ray.pending = {"driver": {"three"}}
    start("three")
    assert list(ray.groups) == [NAME]


def test_a_group_that_waits_gets_the_room_of_who_ended_without_a_word(
    ray: Ray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leasegroup, "IDLE_S", 0.01)
    with another(ray, "0b"):
        used = start("embed")
    assert not leasegroup.make_room()
    train = ray.add("train", (("a", 1.0), ("b", 1.0)))
    ray.not_placed = {"train"}
    leasegroup.scripts[train.id] = [("a", 1.0), ("b", 1.0)]
    leasegroup.keep_asking()
    until(lambda: groupusers.WANTED + used.id in ray.kv, 10, "the room to be wanted")
    assert NAME in ray.groups
    ray.dead = {"0b"}
    until(lambda: NAME not in ray.groups, 10, "the group to go")
    ray.not_placed = set()
    assert leasegroup._asking is not None
    leasegroup._asking.join(10)
    assert not leasegroup._asking.is_alive() and not ray.kv


def test_what_is_there_a_moment_later_is_not_refused(ray: Ray, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process makes the group in the very moment that this one gives up waiting for the script's."""
    monkeypatch.setattr(leasegroup, "WAITS_S", 0.0)
    made = ray.unbound

    def quicker(*arguments: Any, **more: Any) -> Any:
        monkeypatch.setattr(sys.modules["ray.util.placement_group"].placement_group, "unbound", made)
        with another(ray, "0b"):
            start("theirs")
        return made(*arguments, **more)

    monkeypatch.setattr(sys.modules["ray.util.placement_group"].placement_group, "unbound", quicker)
    assert start("ours").id == ray.groups[NAME].id and len(ray.ever) == 1


def test_who_waited_in_vain_does_not_wait_again_at_once(ray: Ray, monkeypatch: pytest.MonkeyPatch) -> None:
    ray.pending = {"driver": {"one"}}
    start("one")
    slept: list[float] = []
    monkeypatch.setattr(leasegroup, "time", SimpleNamespace(monotonic=time.monotonic, sleep=slept.append))
    assert not leasegroup.make_room() and slept
    slept.clear()
    assert not leasegroup.make_room() and not slept
    ray.pending = {}
    assert leasegroup.make_room()


def test_an_actor_that_is_not_known_to_be_dead_keeps_it(ray: Ray, monkeypatch: pytest.MonkeyPatch) -> None:
    waits(monkeypatch)
    with leasegroup.using(THREE, 1, 0) as (used, _):
        used.note("driver", SimpleNamespace(_actor_id=bytes.fromhex("0a")))
    assert not leasegroup.make_room()
    ray.dead.add("0a")
    assert leasegroup.make_room()


def test_what_cannot_be_asked_about_keeps_it(ray: Ray) -> None:
    with leasegroup.using(THREE, 1, 0) as (used, _):
        used.note("driver", None)
    assert not leasegroup.make_room()


def test_streams_and_lists_are_followed_too(ray: Ray, monkeypatch: pytest.MonkeyPatch) -> None:
    waits(monkeypatch)
    with leasegroup.using(THREE, 1, 0) as (used, _):
        used.note("driver", [Ref("first"), Ref("second")])
        used.note("driver", SimpleNamespace(_generator_ref=Ref("stream")))
    for running in ({"first", "second", "stream"}, {"second", "stream"}, {"stream"}):
        ray.pending = {"driver": set(running)}
        assert not leasegroup.make_room(), running
    ray.pending = {}
    assert leasegroup.make_room()


def test_it_stays_while_something_is_being_put_in(ray: Ray, monkeypatch: pytest.MonkeyPatch) -> None:
    waits(monkeypatch)
    with leasegroup.using(THREE, 1, 0):
        assert not leasegroup.make_room()
    assert leasegroup.make_room()


def test_unused_it_is_kept_for_a_while_unless_somebody_waits(
    ray: Ray, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = start("one")
    now = [100.0]
    monkeypatch.setattr(leasegroup, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=None))
    for at, wanted in ((100.0, False), (109.0, False), (109.5, True)):
        now[0] = at
        if wanted:
            assert ray.groups
            ray.kv[groupusers.WANTED + used.id] = b"1"
        leasegroup._let_go(idle_s=10.0)
    assert not ray.groups and used.keeps_s == leasegroup.IDLE_S


def test_one_that_has_to_be_made_again_and_again_is_kept_longer(ray: Ray) -> None:
    kept = []
    for n in range(7):
        kept.append(start(f"{n}").keeps_s)
        leasegroup.make_room()
    assert kept == [2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]


def test_what_is_put_in_begins_the_while_anew(ray: Ray) -> None:
    used = start("one")
    leasegroup._let_go(idle_s=60.0)
    assert used.idle_since is not None
    start("two")
    assert used.idle_since is None


def test_it_covers_what_the_scripts_groups_and_actors_leave(ray: Ray) -> None:
    ray.add("train", (("a", 1.0),))
    ray.alone = [SimpleNamespace(job="01", group="", node="b", gpus={0: 1.0})]
    ray.alone += [SimpleNamespace(job="02", group="", node="a", gpus={0: 1.0})]
    start("one")
    assert ray.groups[NAME].bundles == (("a", 1.0),)
    leasegroup.make_room()
    leasegroup.scripts["of this process, not placed yet"] = [("a", 1.0)]
    with pytest.raises(InvalidRequest, match="no room beside") as refused:
        start("two")
    assert refused.value.code == "lease-taken" and NAME not in ray.groups
    leasegroup.scripts["gone: another process removed it"] = leasegroup.scripts.popitem()[1]
    start("three")


def test_what_another_process_has_asked_for_is_left_to_it_for_a_while(ray: Ray) -> None:
    """Training that is about to begin goes first; a group that cannot be placed does not hold up everything else."""
    ray.add("train", (("a", 1.0), ("a", 1.0)))
    ray.not_placed = {"train"}
    start("beside it")
    assert ray.groups[NAME].bundles == (("b", 1.0),)
    leasegroup.make_room()
    ray.add("large", (("b", 1.0),))
    ray.not_placed |= {"large"}
    start("it waited")
    assert len(ray.groups[NAME].bundles) == 3


def test_one_made_beside_others_is_made_anew_for_what_needs_more(ray: Ray) -> None:
    """Training has ended; what was too small for the whole lease is not all there is of it."""
    two = lease(("a", (0, 1), 1000))
    ray.add("train", (("a", 1.0),))
    ray.pending = {"driver": {"small"}}
    start("small", held=two)
    del ray.groups["train"]
    with pytest.raises(InvalidRequest, match="no room beside"):
        start("large", gpus=2, held=two)
    ray.pending = {}
    start("large", gpus=2, held=two)
    assert ray.groups[NAME].bundles == (("a", 2.0),)


def test_a_task_gets_the_cpus_that_its_bundle_has(ray: Ray) -> None:
    """Half of a worker has half of its CPU: Ray refuses what asks a bundle for more than it has."""
    ray.add("train", (("a", 1.0),))
    two = lease(("a", (0, 1), 1000))
    with leasegroup.using(two, 1, 0) as (_, cpus):
        assert cpus == 0.5
    with pytest.raises(InvalidRequest, match="1 GPUs and 1 CPUs has no room"), leasegroup.using(two, 1, 1):
        pass


def test_what_another_process_uses_stays_as_long_as_that_one(
    ray: Ray, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits(monkeypatch)
    start("one")
    with another(ray, "0b"):
        assert start("elsewhere").group is ray.groups[NAME]
    assert not leasegroup.make_room() and ray.groups, "the other one uses it"
    ray.dead.add("0b")
    assert leasegroup.make_room()


def test_of_two_that_are_idle_the_last_one_removes_it(ray: Ray) -> None:
    """Neither of them ends: the driver, and what Ray Train keeps of its data."""
    start("one")
    drivers = leasegroup._used
    with another(ray, "0b"):
        start("embed")
        leasegroup._let_go(idle_s=0.0)
        assert ray.groups, "the driver may use it"
    leasegroup._used = drivers
    leasegroup._let_go(idle_s=0.0)
    assert not ray.groups and not ray.kv


def test_who_has_left_comes_back_to_it(ray: Ray) -> None:
    start("one")
    with another(ray, "0b"):
        first = start("embed")
        leasegroup._let_go(idle_s=0.0)
        again = start("more")
        assert again is not first and again.group is first.group
    leasegroup._let_go(idle_s=0.0)
    assert ray.groups, "the other one is in it once more"


def test_one_whose_users_have_all_ended_goes(ray: Ray) -> None:
    """Ray Data under Ray Train runs in actors of its own, which end with the training."""
    with another(ray, "0b"):
        start("embed")
    with another(ray, "0c"):
        start("validate")
    assert not leasegroup.make_room()
    leasegroup._in_use_at = -leasegroup.AGAIN_S
    ray.dead |= {"0b", "0c"}
    assert leasegroup.make_room() and not ray.groups


def test_one_that_was_made_beside_what_is_gone_is_waited_for(
    ray: Ray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until those who use it have ended: then there is one of the whole lease."""
    monkeypatch.setattr(leasegroup, "IDLE_S", 0.0)
    ray.add("train", (("a", 1.0), ("b", 1.0)))
    with another(ray, "0b"):
        start("embed")
    del ray.groups["train"]
    ray.pending = {"driver": {"first"}}
    assert len(start("first").bundles) == 1, "waited for in vain"
    ray.dead.add("0b")
    assert len(start("beside it").bundles) == 1, "its own task is in it"
    ray.pending = {}
    assert len(start("after that").bundles) == 3


def test_one_made_beside_others_is_made_anew_when_they_are_gone(
    ray: Ray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leasegroup, "IDLE_S", 0.0)
    train = ray.add("train", (("a", 1.0), ("b", 1.0)))
    first = start("beside it")
    assert start("still beside it") is first, "there is no more room"
    ray.remove_group(train.id)
    assert len(start("after it").bundles) == 3


def test_a_group_that_is_about_to_go_is_not_used(ray: Ray) -> None:
    """Its user says so before it looks who else there is; whoever comes says who it is before it looks at that."""
    with another(ray, "0b"):
        first = start("one")
    closing = f"{groupusers.CLOSING}{first.id}/0b"
    ray.kv[closing] = b"1"

    def read(prefix: str) -> None:
        if prefix.startswith(groupusers.CLOSING):
            assert f"{groupusers.USERS}{prefix.split('/')[1]}/worker-driver" in ray.kv, "said before"

    ray.before_read = read
    with pytest.raises(InvalidRequest):
        start("two")
    assert f"{groupusers.USERS}{first.id}/worker-driver" not in ray.kv, "it does not use what it must not"
    del ray.groups[NAME], ray.kv[closing]
    assert start("two").group is not first.group, "a new one"


def test_one_that_is_gone_by_the_time_it_is_joined_is_not_used(ray: Ray) -> None:
    """Its last user began and ended the removal between the finding and the joining."""
    with another(ray, "0b"):
        first = start("one")
        theirs = leasegroup._used
    leasegroup._used = None

    def as_the_other() -> None:
        ray.found = lambda: None
        with another(ray, "0b"):
            leasegroup._used = theirs
            leasegroup._let_go(idle_s=0.0)

    ray.found = as_the_other
    assert start("two").id != first.id
    assert [key for key in ray.kv if first.id in key.split("/")] == []


def test_one_that_was_removed_before_its_maker_said_so_is_not_used(
    ray: Ray, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined, made = groupusers.join, []

    def slow(group: str) -> bool:
        if not made:
            with another(ray, "0b"):
                assert leasegroup.make_room()
        made.append(group)
        return joined(group)

    monkeypatch.setattr(groupusers, "join", slow)
    assert start("one").id == made[1] != made[0]


def test_one_that_nobody_uses_any_more_goes(ray: Ray) -> None:
    """Who left it was killed before it could remove it."""
    start("one")
    leasegroup._used = None
    ray.kv.clear()
    assert leasegroup.make_room() and not ray.groups


def test_a_detached_actor_keeps_it_beyond_the_end_of_who_made_it(ray: Ray) -> None:
    with another(ray, "0b"):
        used = start("one")
    ray.dead, ray.detached = {"0b"}, {used.id}
    assert not leasegroup.make_room() and ray.groups
    ray.detached = set()
    leasegroup._in_use_at = -leasegroup.AGAIN_S
    assert leasegroup.make_room()


def test_a_rest_that_no_new_group_could_use_makes_none(ray: Ray, monkeypatch: pytest.MonkeyPatch) -> None:
    """An actor has half of a device: one device is all that a group of this worker can have."""
    monkeypatch.setattr(leasegroup, "IDLE_S", 0.0)
    two = lease(("a", (0, 1), 1000))
    ray.alone = [SimpleNamespace(job="01", group="", node="a", gpus={0: 0.5})]
    first = start("one", held=two)
    assert first.small and start("two", held=two) is first
    with another(ray, "0b"):
        assert start("three", held=two).id == first.id
    assert len(ray.ever) == 1


def test_it_leaves_room_for_the_replicas_that_the_script_deployed(
    ray: Ray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are booked as Serve's, not as the job's."""
    from moorage.cluster import rayapi

    apps = {"app": "0f"}
    monkeypatch.setattr(rayapi, "serve_deployers", lambda: apps)
    monkeypatch.setattr(leasegroup, "served", {"app": [("a", 1.0), ("b", 1.0)], "deleted": [("c", 1.0)]})
    assert sum(size for size, _ in start("t1").bundles) == 1
    with pytest.raises(InvalidRequest) as refused:
        start("t2", gpus=2)
    assert refused.value.code == "lease-taken" and list(leasegroup.served) == ["app"]
    apps.clear()
    assert all(node == "c" for node, _ in leasegroup.taken()) and not leasegroup.served


def test_a_group_that_would_wait_for_its_maker_is_refused(ray: Ray) -> None:
    ray.add("train", (("a", 1.0),))
    used = start("t1")
    two, one = [{"GPU": 1}] * 2, [{"GPU": 1}]
    leasegroup.refuse_own_wait(THREE, two, one_node=False)  # whoever asks is not in it: the tasks will end
    ray.around = used.id
    leasegroup.refuse_own_wait(THREE, one, one_node=False)  # beside it there is room, or will be
    leasegroup.refuse_own_wait(THREE, [{"GPU": 1}] * 4, one_node=False)  # never: `lease-too-small` says so
    with pytest.raises(InvalidRequest, match="2 of its 3 GPUs") as refused:
        leasegroup.refuse_own_wait(THREE, two, one_node=False)
    assert refused.value.code == "lease-taken"
    ray.around = ray.groups["train"].id
    leasegroup.refuse_own_wait(THREE, two, one_node=False)


def test_who_is_kept_to_a_part_by_what_it_has_put_in_is_told_once(
    ray: Ray, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(leasegroup, "IDLE_S", 0.0)
    ray.add("own", (("a", 1.0), ("b", 1.0)))
    start("stays")
    ray.pending = {"driver": {"stays"}}
    start("more")
    assert not caplog.messages, "there is no more room"
    del ray.groups["own"]
    for task in ("t1", "t2"):
        start(task)
    assert len(caplog.messages) == 1 and "have 1 of the 3 GPUs" in caplog.messages[0]


def test_for_a_larger_one_is_waited_once(
    ray: Ray, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Another process keeps it busy for long: who comes and goes beside it does not wait each time."""
    monkeypatch.setattr(leasegroup, "IDLE_S", 0.0)
    ray.add("train", (("a", 1.0), ("b", 1.0)))
    with another(ray, "0b"):
        start("embed")
    del ray.groups["train"]
    slept: list[float] = []
    now = [0.0]

    def sleep(for_s: float) -> None:
        slept.append(for_s)
        now[0] += for_s

    monkeypatch.setattr(leasegroup, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    start("first")
    assert slept
    slept.clear()
    start("second")
    assert not slept and len(ray.ever) == 2
    assert [
        text for text in caplog.messages if "have 1 of the 3 GPUs of its lease" in text
    ] == caplog.messages
    assert len(caplog.messages) == 1


def test_whether_there_is_more_room_is_not_asked_each_time(ray: Ray, monkeypatch: pytest.MonkeyPatch) -> None:
    train = ray.add("train", (("a", 1.0),))
    asked: list[int] = []
    groups = leasegroup._groups
    monkeypatch.setattr(leasegroup, "_groups", lambda *_: asked.append(1) or groups())
    start("one")
    asked.clear()
    for n in range(100):
        start(f"{n}")
    assert len(asked) == 1
    ray.remove_group(train.id)
    leasegroup._looks_at = 0.0
    assert len(start("after it").bundles) == 3, "two were not all"


def test_who_cannot_ask_whether_there_is_more_room_goes_on(ray: Ray, monkeypatch: pytest.MonkeyPatch) -> None:
    ray.add("train", (("a", 1.0), ("b", 1.0)))
    first = start("one")

    def away(*_: Any, **__: Any) -> Any:
        raise TimeoutError

    monkeypatch.setattr(leasegroup, "_groups", away)
    assert start("two") is first


def test_after_a_removal_that_failed_it_is_looked_for_again(ray: Ray) -> None:
    """The GCS carried it out, and its answer was lost."""
    start("one")

    def fails() -> None:
        raise TimeoutError

    ray.removing = fails
    with pytest.raises(TimeoutError):
        leasegroup.make_room()
    start("two")
    assert list(ray.groups) == [NAME]


def test_leaving_that_failed_is_tried_again(ray: Ray, monkeypatch: pytest.MonkeyPatch) -> None:
    """The GCS was away before it could carry it out; the thread that looks after the group goes on."""
    monkeypatch.setattr(leasegroup, "_look_after", LOOK_AFTER)
    monkeypatch.setattr(leasegroup, "IDLE_S", 0.0)
    failed: list[str] = []

    def close(group: str, *, leaving: bool = False) -> bool:
        if len(failed) < 2:
            failed.append(group)
            raise TimeoutError
        return closes(group, leaving=leaving)

    closes = groupusers.close
    monkeypatch.setattr(groupusers, "close", close)
    start("one")
    until(lambda: not ray.groups, 10, "the group to go")
    assert len(failed) == 2 and not ray.kv
