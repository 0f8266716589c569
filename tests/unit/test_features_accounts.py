"""D1: the accounts of a file can disagree with each other: a row that vanishes in the check is noticed."""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow as pa
import pytest

from moorage.errors import DataError
from moorage.runtime.features.pipeline import Checked, count
from moorage.runtime.features.schema import Field, TableSchema
from moorage.runtime.features.sources import Source

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "flights"))

SCHEMA = TableSchema(name="t", fields=(Field(name="x", type="int", low=0, high=9),))


def block(first: int, values: list[str]) -> pa.Table:
    rows = {"source_row": list(range(first, first + len(values))), "x": values}
    return SCHEMA.check(pa.table(rows))


def test_every_row_is_counted_once() -> None:
    rows_in, good, reasons = count([block(0, ["1", "x", "3"]), block(3, ["11", "5"]), block(5, [])])
    assert (rows_in, good, sum(reasons.values())) == (5, 3, 2)


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_row_that_vanishes_leaves_the_accounts_open(lost: int) -> None:
    """Before, what came in was counted from what was left: nothing could ever be missing."""
    whole = block(0, ["1", "x", "3"])
    blocks = [whole.filter(pa.array([n != lost for n in range(3)])), block(3, ["4"])]
    rows_in, good, reasons = count(blocks)
    assert rows_in == 4 and good + sum(reasons.values()) == 3


def test_the_job_fails_when_a_row_is_unaccounted_for() -> None:
    import features

    flights = pa.table(
        {"dep_time": pa.array([1, 2, None], pa.int64()), "arr_delay": pa.array([5, None, None], pa.int64())}
    )
    assert features.accounts({"flights": checked(3, 3, {})}, flights, 1)["flights"]["labelled"] == 1
    for rows_in, good, reasons, written in ((4, 3, {}, 1), (4, 3, {}, 2), (3, 3, {}, 2), (4, 3, {"x": 2}, 1)):
        with pytest.raises(DataError) as lost:
            features.accounts({"flights": checked(rows_in, good, reasons)}, flights, written)
        assert lost.value.code == "data-lost"


def checked(rows_in: int, good: int, reasons: dict[str, int]) -> Checked:
    source = Source(name="flights", path="flights.csv", schema=SCHEMA)
    return Checked(
        source=source,
        blocks=None,  # type: ignore[arg-type]  # the accounts do not look at the rows
        rows_in=rows_in,
        good=good,
        quarantined=sum(reasons.values()),
        reasons=reasons,
    )
