"""The mix of tasks a pool serves: distinct shapes with how often each comes.

Rules that look ahead (potential, FGD) expect the future to resemble the mix. It is made of what waits, runs and ran;
the order within it never matters, so the same jobs give the same tables.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]

ANY = -1
"""Bit mask of GPU model rows: every model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """Columns of one length: a distinct task shape each, sorted, and how many such tasks there were.

    `milli` is 0, a fraction below 1000, or whole devices; `models` a bit mask of the GPU model rows it may use.
    """

    milli: I64
    cpu: I64
    mib: I64
    models: I64
    count: I64

    @classmethod
    def of(cls, milli: I64, cpu: I64, mib: I64, models: I64, count: I64 | None = None) -> Mix:
        """The mix of tasks given by columns, one entry per task (or per shape, with its `count`)."""
        rows = np.stack([milli, cpu, mib, np.where(milli > 0, models, ANY)], axis=1).astype(np.int64)
        weight = np.ones(len(rows), np.int64) if count is None else count
        shapes, where = np.unique(rows, axis=0, return_inverse=True)
        total = np.zeros(len(shapes), np.int64)
        np.add.at(total, where.reshape(-1), weight)
        keep = total > 0
        shapes = shapes[keep]
        return cls(
            milli=shapes[:, 0], cpu=shapes[:, 1], mib=shapes[:, 2], models=shapes[:, 3], count=total[keep]
        )

    def __len__(self) -> int:
        return len(self.milli)
