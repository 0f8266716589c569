"""D4: civil time to instants, over the days on which clocks change."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from moorage.runtime.features.clock import civil_minutes, days_in_month, local_to_utc, utc_offsets

NEW_YORK = "America/New_York"


def one(*values: int) -> list[np.ndarray]:
    return [np.array([v], dtype=np.int64) for v in values]


def instant(*when: int) -> int:
    return int(datetime(*when, tzinfo=UTC).timestamp()) // 60  # type: ignore[misc,arg-type]


@pytest.mark.parametrize(
    ("local", "utc", "exists"),
    [
        ((2013, 1, 1, 5 * 60 + 15), (2013, 1, 1, 10, 15), True),
        ((2013, 7, 1, 5 * 60 + 15), (2013, 7, 1, 9, 15), True),
        ((2013, 3, 10, 1 * 60 + 59), (2013, 3, 10, 6, 59), True),
        ((2013, 3, 10, 3 * 60), (2013, 3, 10, 7, 0), True),
        ((2013, 11, 3, 1 * 60 + 30), (2013, 11, 3, 5, 30), True),  # twice that day: the earlier
        ((2013, 12, 31, 23 * 60 + 59), (2014, 1, 1, 4, 59), True),
    ],
)
def test_local_to_utc(local: tuple[int, ...], utc: tuple[int, ...], exists: bool) -> None:
    minutes, there = local_to_utc(civil_minutes(*one(*local)), NEW_YORK)
    assert (int(minutes[0]), bool(there[0])) == (instant(*utc), exists)


def test_a_reading_the_clocks_skip_does_not_exist() -> None:
    _, there = local_to_utc(civil_minutes(*one(2013, 3, 10, 2 * 60 + 30)), NEW_YORK)
    assert not there[0]


@pytest.mark.parametrize("zone", [NEW_YORK, "Pacific/Honolulu", "Asia/Kathmandu", "Australia/Lord_Howe"])
def test_offsets_agree_with_the_zone_on_every_hour_of_a_year(zone: str) -> None:
    hours = instant(2013, 1, 1) + 60 * np.arange(8760, dtype=np.int64)
    expected = [
        (datetime.fromtimestamp(m * 60, ZoneInfo(zone)).utcoffset() or timedelta()) // timedelta(minutes=1)
        for m in hours.tolist()
    ]
    assert utc_offsets(hours, zone).tolist() == expected


def test_days_in_month() -> None:
    years, months = np.array([2012, 2013, 2013, 2013]), np.array([2, 2, 4, 12])
    assert days_in_month(years, months).tolist() == [29, 28, 30, 31]
