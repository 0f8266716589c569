"""The flights model: a small network over numeric features and embedded categories, and its rows.

`build(manifest, hparams)` makes it, `load(directory)` reads a saved one. The normalisation (mean, standard
deviation of the training rows) lives in the network's buffers, so weights and scaling cannot be parted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.dataset as ds
import torch
from torch import nn

DEFAULTS: dict[str, Any] = {
    "hidden": [64, 32],
    "embedding": 8,
    "dropout": 0.1,
    "lr": 4e-3,
    "weight_decay": 1e-5,
}


@dataclass(frozen=True)
class Rows:
    """`numeric` float32 (n, features), `categories` int64 (n, categoricals), `label` float32 (n,)."""

    numeric: torch.Tensor
    categories: torch.Tensor
    label: torch.Tensor

    def __len__(self) -> int:
        return len(self.label)


def feature_names(manifest: Mapping[str, Any]) -> list[str]:
    return [entry if isinstance(entry, str) else entry["name"] for entry in manifest["features"]]


def cardinalities(manifest: Mapping[str, Any]) -> dict[str, int]:
    """Categorical column -> number of ids."""
    entries = manifest["categoricals"]
    if isinstance(entries, Mapping):
        entries = [{"name": name, **entry} for name, entry in entries.items()]
    return {entry["name"]: int(entry["cardinality"]) for entry in entries}


def latest_version(data: Path) -> Path:
    """The newest committed version directory of the feature view `flights`."""
    from moorage.runtime.features.versions import Catalogue

    versions = Catalogue(data / "features").versions("flights")
    if not versions:
        raise SystemExit(
            f"no version of the feature view 'flights' below {data / 'features'}: run features.py first"
        )
    return versions[-1].path


def read_manifest(version: Path) -> dict[str, Any]:
    return json.loads((version / "manifest.json").read_text(encoding="utf-8"))


def read_rows(version: Path, split: str, months: Iterable[int] | None = None) -> Rows:
    """The labelled rows of a split, optionally of some months only, in the order of the files."""
    manifest = read_manifest(version)
    numeric, categories = feature_names(manifest), list(cardinalities(manifest))
    keep = pc.field("split") == split
    if months is not None:
        keep = keep & pc.field("month").isin([int(m) for m in months])
    files = sorted(str(p) for p in version.glob("part-*.parquet"))
    columns = [*numeric, *categories, "label"]
    table = ds.dataset(files, format="parquet").to_table(columns=columns, filter=keep, use_threads=False)
    if table.num_rows == 0:
        raise SystemExit(f"no rows of split {split!r} in {version}")

    def stack(names: list[str], kind: Any) -> torch.Tensor:
        out = np.empty((table.num_rows, len(names)), kind)
        for i, name in enumerate(names):
            out[:, i] = table[name].to_numpy()
        return torch.from_numpy(out)

    label = torch.from_numpy(table["label"].to_numpy().astype(np.float32))
    return Rows(stack(numeric, np.float32), stack(categories, np.int64), label)


class FlightsNet(nn.Module):
    """Numeric features (normalised, clipped at 8 sigma) and embeddings into a ReLU network; one logit out."""

    def __init__(self, features: int, cards: list[int], hparams: Mapping[str, Any]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("std", torch.ones(features))
        self.register_buffer("top", torch.tensor([card - 1 for card in cards], dtype=torch.int64))
        sizes = [min(int(hparams["embedding"]), math.ceil(card**0.5) + 1) for card in cards]
        self.embeddings = nn.ModuleList(
            nn.Embedding(card, size) for card, size in zip(cards, sizes, strict=True)
        )
        layers: list[nn.Module] = []
        width = features + sum(sizes)
        for hidden in hparams["hidden"]:
            layers += [nn.Linear(width, int(hidden)), nn.ReLU(), nn.Dropout(float(hparams["dropout"]))]
            width = int(hidden)
        self.body = nn.Sequential(*layers, nn.Linear(width, 1))

    def fit_normaliser(self, numeric: torch.Tensor) -> None:
        """Take mean and deviation from the training rows; constant columns keep a deviation of 1."""
        wide = numeric.double()
        std = wide.std(dim=0)
        self.mean.copy_(wide.mean(dim=0))
        self.std.copy_(torch.where(std > 1e-6, std, torch.ones_like(std)))

    def forward(self, numeric: torch.Tensor, categories: torch.Tensor) -> torch.Tensor:
        """Logits, shape (n,). Category ids beyond the vocabulary take its last entry."""
        scaled = ((numeric - self.mean) / self.std).clamp(-8, 8)
        ids = torch.minimum(categories.clamp(min=0), self.top)
        parts = [scaled, *(table(ids[:, i]) for i, table in enumerate(self.embeddings))]
        return self.body(torch.cat(parts, dim=1)).squeeze(1)


def build(manifest: Mapping[str, Any], hparams: Mapping[str, Any] | None = None) -> FlightsNet:
    """A network for this version of the features; `hparams` override DEFAULTS."""
    return FlightsNet(
        len(feature_names(manifest)), list(cardinalities(manifest).values()), {**DEFAULTS, **(hparams or {})}
    )


@torch.no_grad()
def predict(model: FlightsNet, rows: Rows, chunk: int = 16384) -> np.ndarray:
    """Probability of a late arrival, float64 (n,)."""
    model.eval()
    pieces = [
        torch.sigmoid(model(rows.numeric[i : i + chunk], rows.categories[i : i + chunk]).double())
        for i in range(0, len(rows), chunk)
    ]
    return torch.cat(pieces).numpy()


def card_of(
    model: FlightsNet,
    manifest: Mapping[str, Any],
    hparams: Mapping[str, Any],
    data_version: str,
    train_positive_rate: float,
) -> dict[str, Any]:
    """What model.json says: enough to rebuild the network and to know what it was fed."""
    return {
        "model": "flights-net",
        "hparams": {**DEFAULTS, **hparams},
        "features": feature_names(manifest),
        "categoricals": [{"name": n, "cardinality": c} for n, c in cardinalities(manifest).items()],
        "data_version": data_version,
        "train_positive_rate": train_positive_rate,
        "mean": model.mean.tolist(),
        "std": model.std.tolist(),
    }


def save(model: FlightsNet, card: Mapping[str, Any], directory: Path) -> None:
    from moorage.runtime.registry import save_model

    save_model(directory, model.state_dict(), card)


def load(directory: Path | str) -> tuple[FlightsNet, dict[str, Any]]:
    """A saved model, verified against its manifest, in evaluation mode."""
    from moorage.runtime.registry import load_model

    weights, card, _ = load_model(directory)
    model = build(card, card["hparams"])
    model.load_state_dict(weights)
    return model.eval(), card
