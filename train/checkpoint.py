"""Atomic, verified checkpoints (T2).

A store is a folder of sealed directories `step-<n>`. One process writes (rank 0); any may read. The newest one
that verifies is the one to resume from: a damaged one is reported and skipped, never half loaded.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moorage.errors import MoorageError
from moorage.runtime.registry import sealed

log = logging.getLogger(__name__)

_STATE, _TREE = "state.safetensors", "state.json"


class CheckpointError(MoorageError):
    """A checkpoint could not be written or none could be read."""

    code = "checkpoint-error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """One complete checkpoint: `step` optimiser steps were taken when it was written."""

    step: int
    path: Path
    sha256: str
    meta: Mapping[str, Any]

    def state(self) -> Any:
        """The state that `save` was given (tensors on the CPU)."""
        from safetensors.torch import load

        from moorage.train.pack import unpack

        tensors = load((self.path / _STATE).read_bytes())
        return unpack(tensors, json.loads((self.path / _TREE).read_bytes()))


class CheckpointStore:
    """Checkpoints of one run under `root`; the newest `keep` are kept.

    `on_damage` hears each checkpoint that had to be skipped (step, why); by default it is logged as a warning.
    """

    def __init__(
        self, root: Path | str, *, keep: int = 3, on_damage: Callable[[int, str], None] | None = None
    ) -> None:
        if keep < 1:
            raise ValueError(f"keep is {keep}: at least the newest checkpoint must stay")
        self.root, self.keep = Path(root), keep
        self._on_damage = on_damage or self._warn

    @staticmethod
    def _warn(step: int, why: str) -> None:
        log.warning("checkpoint of step %d cannot be used, falling back to the one before: %s", step, why)

    def steps(self) -> list[int]:
        """Steps that have a directory, ascending. Being listed does not mean being intact."""
        if not self.root.is_dir():
            return []
        names = [p.name for p in self.root.iterdir() if p.name.startswith("step-")]
        return sorted(int(n[5:]) for n in names if n[5:].isdigit())

    def path(self, step: int) -> Path:
        return self.root / f"step-{step:09d}"

    def save(self, step: int, state: Any, meta: Mapping[str, Any] | None = None) -> Checkpoint:
        """Write the checkpoint of `step` and drop the oldest beyond `keep`.

        Raises CheckpointError (code `checkpoint-disk-full`) when there is no room; earlier checkpoints stay usable.
        """
        from safetensors.torch import save

        from moorage.train.pack import pack

        tensors, skeleton = pack(state)

        def write(work: Path) -> None:
            # bytes first, then plain writes: a full disk is an OSError here, whatever the format's own writer does
            sealed.write_bytes(work / _STATE, save(tensors))
            sealed.write_bytes(work / _TREE, json.dumps(skeleton).encode())

        try:
            seal = sealed.commit(self.path(step), write, {"step": step, **(meta or {})})
        except sealed.DiskFull as error:
            raise self._full(step, error) from error
        self._retain()
        return Checkpoint(step=step, path=self.path(step), sha256=seal.sha256, meta=seal.meta)

    def _full(self, step: int, error: sealed.DiskFull) -> CheckpointError:
        steps = self.steps()
        rest = (
            f"the checkpoint of step {steps[-1]} is still usable"
            if steps
            else "there is no earlier checkpoint"
        )
        return CheckpointError(
            f"no room for the checkpoint of step {step}",
            why=error.why,
            todo=f"free space and start again: {rest}",
            code="checkpoint-disk-full",
        )

    def _retain(self) -> None:
        for step in self.steps()[: -self.keep]:
            doomed = self.root / f"{sealed.TEMPORARY}old-{step}-{os.getpid()}"
            # renamed first: a crash halfway through the removal must not leave a half checkpoint under its name
            os.rename(self.path(step), doomed)
            shutil.rmtree(doomed, ignore_errors=True)

    def load(self, step: int) -> Checkpoint:
        """The checkpoint of `step`, every byte verified. Raises `sealed.Damaged`."""
        path = self.path(step)
        seal = sealed.verify(path)
        if int(seal.meta.get("step", -1)) != step:
            raise sealed.Damaged(f"{path.name} holds step {seal.meta.get('step')}")
        return Checkpoint(step=step, path=path, sha256=seal.sha256, meta=seal.meta)

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that verifies, or None. Skipped ones are told to `on_damage`."""
        for step in reversed(self.steps()):
            try:
                return self.load(step)
            except (sealed.Damaged, OSError) as error:
                self._on_damage(step, str(error))
        return None

    def tidy(self) -> list[str]:
        """Remove leftovers of writers that died. Only the one writer of this store may call it."""
        return sealed.sweep_temporaries(self.root) if self.root.is_dir() else []
