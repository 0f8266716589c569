"""Civil time to instants, exactly: minutes since 1970-01-01T00:00Z as int64, by the zone's own rules.

Every comparison of "before" and "after" in a feature pipeline is made on these minutes, never on local clock
readings. Python's zoneinfo decides; it is asked once per distinct quarter of an hour, since no zone changes
its offset within one.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from moorage.kernels.asof import Int64Array

QUARTER = 15
_EPOCH = datetime(1970, 1, 1)


def civil_minutes(
    year: Int64Array, month: Int64Array, day: Int64Array, minute_of_day: Int64Array
) -> Int64Array:
    """Minutes since the epoch of local clock readings, as if the zone were UTC. Month and day are taken as given."""
    months = ((year - 1970) * 12 + month - 1).astype("datetime64[M]")
    days = months.astype("datetime64[D]").astype(np.int64) + day - 1
    minutes: Int64Array = days * 1440 + minute_of_day
    return minutes


def days_in_month(year: Int64Array, month: Int64Array) -> Int64Array:
    months = ((year - 1970) * 12 + month - 1).astype("datetime64[M]")
    span = (months + 1).astype("datetime64[D]") - months.astype("datetime64[D]")
    return np.asarray(span, dtype=np.int64)


def local_to_utc(local: Int64Array, zone: str) -> tuple[Int64Array, NDArray[np.bool_]]:
    """(UTC minutes, exists) of local minutes. Shapes [n] -> [n], [n].

    A reading that occurs twice (clocks go back) is its earlier instant: a feature may then see less than it
    could have, never more. One that never occurs (clocks go forward) has exists False.
    """
    quarters, inverse = np.unique(local // QUARTER, return_inverse=True)
    looked = [_local_offset(zone, quarter) for quarter in quarters.tolist()]
    offsets = np.array([offset for offset, _ in looked], dtype=np.int64)
    exists = np.array([known for _, known in looked], dtype=bool)
    return local - offsets[inverse], exists[inverse]


def utc_offsets(utc: Int64Array, zone: str) -> Int64Array:
    """The zone's offset from UTC in minutes at these instants. Shape [n] -> [n]."""
    quarters, inverse = np.unique(utc // QUARTER, return_inverse=True)
    return np.array([_utc_offset(zone, quarter) for quarter in quarters.tolist()], dtype=np.int64)[inverse]


@lru_cache(maxsize=1 << 18)
def _local_offset(zone: str, quarter: int) -> tuple[int, bool]:
    info = ZoneInfo(zone)
    reading = _EPOCH + timedelta(minutes=quarter * QUARTER)
    instant = reading.replace(tzinfo=info)
    exists = instant.astimezone(UTC).astimezone(info).replace(tzinfo=None) == reading
    return _whole_minutes(instant.utcoffset()), exists


@lru_cache(maxsize=1 << 18)
def _utc_offset(zone: str, quarter: int) -> int:
    instant = (_EPOCH + timedelta(minutes=quarter * QUARTER)).replace(tzinfo=UTC)
    return _whole_minutes(instant.astimezone(ZoneInfo(zone)).utcoffset())


def _whole_minutes(offset: timedelta | None) -> int:
    return 0 if offset is None else int(offset.total_seconds()) // 60
