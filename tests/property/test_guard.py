"""S9: the guard's judgement on random looks, beside a plain count: nothing that leases cover is said, whatever they
do not cover is, and what is named is enough."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from hypothesis import event, given
from hypothesis import strategies as st

from moorage.scheduling.guard import Allow, Cover, Finding, Holder, Holding, Kind, Part, Seen, judge

NODES, DEVICES = ("a", "b", "c"), 3
JOBS = ("j1", "j2", "j3")
AMOUNTS = st.sampled_from([100, 250, 500, 700, 1000, 2000])


@st.composite
def covers(draw: st.DrawFn) -> dict[str, Cover]:
    places = st.tuples(st.sampled_from(NODES), st.integers(0, DEVICES - 1))
    return {
        f"{job}-1": Cover(job=job, team="t", parts=draw(st.dictionaries(places, AMOUNTS, max_size=4)))
        for job in draw(st.lists(st.sampled_from(JOBS), unique=True))
    }


@st.composite
def holdings(draw: st.DrawFn) -> tuple[Holding, ...]:
    found = []
    for n in range(draw(st.integers(0, 10))):
        job = draw(st.sampled_from((*JOBS, "")))
        attempt = draw(st.sampled_from((1, 1, 1, 2)))
        holder = draw(st.sampled_from([one for one in Holder if one is not Holder.PROCESS]))
        app = f"app-{draw(st.integers(0, 1))}" if holder is Holder.REPLICA else ""
        device = st.integers(0, DEVICES - 1) if holder is not Holder.GROUP else st.just(-1)
        parts = draw(
            st.lists(
                st.builds(Part, node=st.sampled_from(NODES), device=device, milli_gpu=AMOUNTS),
                max_size=3,
            )
        )
        found.append(
            Holding(
                holder=holder,
                id=f"h{n}",
                parts=tuple(parts),
                owner=f"ray-{job}",
                submission=f"{job}-{attempt}" if job else "",
                owner_dead=draw(st.booleans()),
                app=app,
                since_ms=draw(st.integers(0, 5)),
                own=not job and draw(st.booleans()),
            )
        )
    return tuple(found)


def by_job(held: tuple[Holding, ...], leased: dict[str, Cover]) -> dict[str, list[Holding]]:
    return {name: [one for one in held if one.submission == name and one.parts] for name in leased}


def named(found: tuple[Finding, ...], kind: Kind) -> set[str]:
    return {one.holding.id for one in found if one.kind is kind}


@given(held=holdings(), leased=covers())
def test_what_is_covered_is_not_said_and_what_is_not_is(
    held: tuple[Holding, ...], leased: dict[str, Cover]
) -> None:
    found = judge(Seen(at_ns=0, holdings=held), leased)
    assert len({one.holding.id for one in found}) == len(found), "each holder at most once"
    without = {one.id for one in held if one.submission not in leased and one.parts and not one.own}
    said = {
        name for kind in (Kind.NO_LEASE, Kind.DEAD_OWNER, Kind.LEAKED_GROUP) for name in named(found, kind)
    }
    assert said == without
    for submission, ours in by_job(held, leased).items():
        total, most = sum(one.milli_gpu for one in ours), sum(leased[submission].parts.values())
        beyond = [one for one in ours if one.id in named(found, Kind.BEYOND_LEASE)]
        event(f"beyond: {bool(beyond)}")
        assert bool(beyond) == (total > most)
        assert total - sum(one.milli_gpu for one in beyond) <= most, "without those named, it fits"
        used, room = Counter[str](), Counter[str]()
        for (node, _), amount in leased[submission].parts.items():
            room[node] += amount
        elsewhere = named(found, Kind.OTHER_NODE)
        for one in ours:
            if one not in beyond and one.id not in elsewhere:
                for part in one.parts:
                    used[part.node] += part.milli_gpu
        assert all(used[node] <= room[node] for node in used), "the rest is where the lease is"


@given(held=holdings(), leased=covers())
def test_a_job_on_its_own_devices_is_never_said(held: tuple[Holding, ...], leased: dict[str, Cover]) -> None:
    """Whatever the others do: holders that are exactly a job's leases, however they are cut up."""
    tidy = Cover(job="tidy", team="t", parts={("a", 0): 1000, ("b", 1): 500})
    own = tuple(
        Holding(holder=Holder.ACTOR, id=f"tidy-{n}", parts=(part,), submission="tidy-1")
        for n, part in enumerate(
            (
                Part(node="a", device=0, milli_gpu=600),
                Part(node="a", device=0, milli_gpu=400),
                Part(node="b", device=1, milli_gpu=500),
            )
        )
    )
    found = judge(Seen(at_ns=0, holdings=(*held, *own)), {**leased, "tidy-1": tidy})
    assert not [one for one in found if one.job == "tidy"]
    alone = judge(Seen(at_ns=0, holdings=held), leased)
    assert found == alone, "and one job's holders say nothing of another's"


@given(held=holdings(), leased=covers(), order=st.randoms(use_true_random=False))
def test_the_order_in_which_ray_tells_does_not_matter(
    held: tuple[Holding, ...], leased: dict[str, Cover], order: object
) -> None:
    shuffled = list(held)
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    one = {(found.key, found.holding.id) for found in judge(Seen(at_ns=0, holdings=held), leased)}
    two = {(found.key, found.holding.id) for found in judge(Seen(at_ns=0, holdings=tuple(shuffled)), leased)}
    assert one == two


@given(held=holdings(), leased=covers())
def test_more_lease_never_makes_more_of_a_job_stop(
    held: tuple[Holding, ...], leased: dict[str, Cover]
) -> None:
    more = {name: replace(cover, parts={**cover.parts, ("z", 0): 10**6}) for name, cover in leased.items()}
    assert not named(judge(Seen(at_ns=0, holdings=held), more), Kind.BEYOND_LEASE)


@given(held=holdings(), leased=covers())
def test_all_allowed_nothing_said(held: tuple[Holding, ...], leased: dict[str, Cover]) -> None:
    assert judge(Seen(at_ns=0, holdings=held), leased, allow=Allow(jobs=("ray-*",))) == ()


@given(held=holdings(), leased=covers(), where=st.tuples(st.sampled_from(NODES), st.integers(0, DEVICES - 1)))
def test_a_process_is_said_if_and_only_if_nothing_puts_its_job_on_that_device(
    held: tuple[Holding, ...], leased: dict[str, Cover], where: tuple[str, int]
) -> None:
    """Neither a lease nor what Ray has booked; and what is said of the others does not change by it."""
    node, device = where
    seen = [
        Holding(
            holder=Holder.PROCESS,
            id=f"{node}/{n}/1",
            parts=(Part(node=node, device=device, milli_gpu=0),),
            owner=f"ray-{job}" if job else "",
            submission=f"{job}-1" if job else "",
        )
        for n, job in enumerate((*JOBS, ""))
    ]
    found = judge(Seen(at_ns=0, holdings=(*held, *seen)), leased)
    said = {one.holding.id: one.kind for one in found if one.holding.holder is Holder.PROCESS}
    for one in seen:
        booked = {
            part.device
            for other in held
            for part in other.parts
            if part.node == node and one.owner and one.owner == other.owner
        }
        cover = leased.get(one.submission)
        on_it = bool(booked & {device, -1}) or (cover is not None and where in cover.parts)
        event(f"explained: {on_it}")
        assert (one.id in said) == (not on_it)
        if not on_it:
            ended = Kind.ORPHAN_PROCESS if one.submission else Kind.FOREIGN_PROCESS
            assert said[one.id] is (Kind.UNBOOKED_DEVICE if cover is not None else ended)
    rest = tuple(one for one in found if one.holding.holder is not Holder.PROCESS)
    assert rest == judge(Seen(at_ns=0, holdings=held), leased)
