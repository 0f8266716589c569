"""S4: the fast placement kernel against its plain reference, and a gang that fails leaves no trace."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from moorage.kernels.packing import _best_node, best_node_reference, place_gang

FREE = st.sampled_from([0, 100, 200, 400, 500, 700, 1000, 1000])


@st.composite
def pools(draw: st.DrawFn) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    n, g = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    mem = np.array(draw(st.lists(st.sampled_from([8000, 24000]), min_size=n, max_size=n)), np.int64)
    milli = np.array(draw(st.lists(st.lists(FREE, min_size=g, max_size=g), min_size=n, max_size=n)), np.int64)
    used = np.array(
        draw(st.lists(st.lists(st.integers(0, 4), min_size=g, max_size=g), min_size=n, max_size=n))
    )
    mem_free = np.where(milli == 1000, mem[:, None], np.maximum(mem[:, None] - used * 2000, 0)).astype(
        np.int64
    )
    return {
        "milli_free": milli,
        "mem_free": mem_free,
        "device_mib": mem,
        "model": np.array(draw(st.lists(st.integers(0, 2), min_size=n, max_size=n)), np.int64),
        "up": np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n)), np.bool_),
        "cpu_free": np.array(draw(st.lists(st.integers(0, 8000), min_size=n, max_size=n)), np.int64),
        "mib_free": np.array(draw(st.lists(st.integers(0, 8000), min_size=n, max_size=n)), np.int64),
        "room": np.array(draw(st.lists(st.integers(0, 9000), min_size=3, max_size=3)), np.int64),
    }


SHAPES = st.tuples(
    st.sampled_from([0, 100, 300, 500, 1000, 2000]),
    st.sampled_from([0, 500, 7000, 20000]),
    st.sampled_from([0, 1000, 4000]),
    st.sampled_from([0, 1000, 4000]),
).map(lambda s: np.array(s, np.int64))


@settings(max_examples=400, deadline=None)
@given(pool=pools(), shape=SHAPES, want=st.integers(0, 3), raylet=st.booleans())
def test_kernel_is_its_reference(
    pool: dict[str, np.ndarray], shape: np.ndarray, want: int, raylet: bool
) -> None:  # type: ignore[type-arg]
    fast = _best_node(*pool.values(), want, shape, raylet)
    assert tuple(map(int, fast)) == best_node_reference(*pool.values(), want, shape, raylet)


@settings(max_examples=300, deadline=None)
@given(
    pool=pools(),
    head=SHAPES,
    worker=SHAPES,
    workers=st.integers(0, 6),
    fewer=st.integers(0, 6),
    raylet=st.booleans(),
)
def test_a_gang_holds_its_minimum_or_nothing(
    pool: dict[str, np.ndarray],  # type: ignore[type-arg]
    head: np.ndarray,  # type: ignore[type-arg]
    worker: np.ndarray,  # type: ignore[type-arg]
    workers: int,
    fewer: int,
    raylet: bool,
) -> None:
    before = {k: v.copy() for k, v in pool.items()}
    out = [np.zeros(1 + workers, np.int64) for _ in range(3)]
    least = max(0, workers - fewer)
    placed = place_gang(*pool.values(), 0, head, worker, workers, least, raylet, *out)
    if placed < 0:
        assert all((pool[k] == before[k]).all() for k in pool)
        return
    assert least <= placed <= workers
    taken = before["milli_free"].sum() - pool["milli_free"].sum()
    assert taken == (head[0] if head.max() else 0) + placed * worker[0]
    assert pool["milli_free"].min() >= 0
    assert pool["mem_free"].min() >= 0
    assert pool["cpu_free"].min() >= 0
    assert pool["room"][0] >= 0 or not (head[0] or worker[0])
