"""One trial of the sweep. A module of its own: Ray imports it in the trial's process, where its cache of rows lives."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from flights_learn import TorchLearner
from flights_model import build, card_of, predict, read_manifest, read_rows, save
from ray import tune

from moorage.train import BatchOrder, CheckpointStore, train_steps
from moorage.train.evaluate import evaluate

MONTHS = [1, 2, 3, 4, 5]
"""What trials learn from; June is for choosing among them."""


@lru_cache(maxsize=1)
def rows_of(version: str) -> tuple[Any, Any]:
    """(January..May, June): read once per process, because Tune reuses a trial's process for the next one."""
    return read_rows(Path(version), "train", MONTHS), read_rows(Path(version), "train", [6])


def trial(config: dict[str, Any], fixed: dict[str, Any]) -> None:
    """One trial: `rungs` times `steps_per_rung` steps, a report after each. Resumes from its own checkpoint."""
    torch.set_num_threads(1)
    version, folder = Path(fixed["version"]), Path(fixed["runs"]) / f"trial-{config['trial_index']:03d}"
    hparams = {key: config[key] for key in ("hidden", "embedding", "lr", "dropout", "weight_decay")}
    train, june = rows_of(fixed["version"])
    torch.manual_seed(fixed["seed"])
    manifest = read_manifest(version)
    net = build(manifest, hparams)
    net.fit_normaliser(train.numeric)
    every, total = fixed["steps_per_rung"], fixed["steps_per_rung"] * fixed["rungs"]

    def report(step: int, loss: float, checkpoint: Any) -> None:
        figures = evaluate(june.label, predict(net, june))
        card = card_of(net, manifest, hparams, version.name, float(train.label.mean()))
        made = {"steps": step, "seed": fixed["seed"], "months": MONTHS, "validation": figures}
        save(net, {**card, **made}, folder / "model")
        tune.report(
            {
                "rung": step // every,
                "steps": step,
                "train_loss": loss,
                "log_loss": figures["log_loss"],
                "auc": figures["auc"],
                "model": str(folder / "model"),
            }
        )

    train_steps(
        TorchLearner(net, train, hparams, total),
        BatchOrder(rows=len(train), batch=fixed["batch"], seed=fixed["seed"]),
        CheckpointStore(folder / "checkpoints", keep=1),
        total=total,
        checkpoint_every=every,
        on_checkpoint=report,
    )
