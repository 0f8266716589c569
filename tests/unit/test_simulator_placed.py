"""X2: the flat columns of running jobs against a plain dictionary."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from moorage.scheduling.simulator import placed


@given(st.integers(0, 2**32), st.sampled_from([2, 1024]))
def test_it_holds_what_a_dictionary_holds(seed: int, first: int) -> None:
    rng = np.random.default_rng(seed)
    before, placed._FIRST = placed._FIRST, first
    try:
        table = placed.Placed(12)
        held: dict[int, tuple[list[int], list[int]]] = {}
        for _ in range(80):
            row = int(rng.integers(0, 12))
            if row in held:
                del held[row]
                table.drop(row)
            else:
                node, mask = rng.integers(0, 99, (2, int(rng.integers(1, 6))))
                held[row] = node.tolist(), mask.tolist()
                table.put(row, node, mask)
            rows = rng.permutation(np.array(sorted(held), np.int64))
            start, nodes, masks = table.of(rows)
            for i, at in enumerate(rows.tolist()):
                span = slice(int(start[i]), int(start[i + 1]))
                assert (nodes[span].tolist(), masks[span].tolist()) == held[at]
    finally:
        placed._FIRST = before
