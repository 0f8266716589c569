"""Which rows a rank sees at a step, and with which randomness: functions of (seed, step, rank), never of history.

So a run that resumes at step n does exactly what the uninterrupted run would have done from n on, and the same
rows make up a global batch whatever the number of workers.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch


def mix(*parts: int) -> int:
    """A 63-bit seed out of integers; unlike a sum, (1, 2) and (2, 1) differ."""
    text = ",".join(str(int(p)) for p in parts).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch's generator for this step and rank (dropout and the like)."""
    torch.manual_seed(mix(seed, 1, step, rank))


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchOrder:
    """`rows` rows in global batches of `batch`, reshuffled each epoch; an epoch's last partial batch is left out."""

    rows: int
    batch: int
    seed: int

    def __post_init__(self) -> None:
        if not 0 < self.batch <= self.rows:
            raise ValueError(f"a batch of {self.batch} does not fit {self.rows} rows")

    @property
    def steps_per_epoch(self) -> int:
        return self.rows // self.batch

    def epoch(self, epoch: int) -> torch.Tensor:
        """The permutation of epoch `epoch`: int64, shape (rows,)."""
        generator = torch.Generator().manual_seed(mix(self.seed, 2, epoch))
        return torch.randperm(self.rows, generator=generator)

    def share(self, permutation: torch.Tensor, step: int, rank: int, world: int) -> torch.Tensor:
        """Row numbers of `rank` at global step `step` (from 0): int64, shape (about batch / world,)."""
        start = (step % self.steps_per_epoch) * self.batch
        return permutation[start : start + self.batch][rank::world]
