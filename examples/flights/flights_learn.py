"""How the flights model learns: one optimiser step, as the training loop of moorage.train drives it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from flights_model import DEFAULTS, FlightsNet, Rows
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits


class TorchLearner:
    """AdamW with a warm-up and cosine decay over `total` steps. `wrapped` is the network, or DDP around it."""

    def __init__(
        self,
        net: FlightsNet,
        rows: Rows,
        hparams: Mapping[str, Any],
        total: int,
        wrapped: nn.Module | None = None,
    ) -> None:
        settings = {**DEFAULTS, **hparams}
        self.net, self.rows = net, rows
        self.wrapped = wrapped or net
        self.optimizer = torch.optim.AdamW(
            net.parameters(), lr=float(settings["lr"]), weight_decay=float(settings["weight_decay"])
        )
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, max_lr=float(settings["lr"]), total_steps=max(total, 2), pct_start=0.1
        )

    def step(self, rows: torch.Tensor, step: int) -> float:
        self.wrapped.train()
        self.optimizer.zero_grad(set_to_none=True)
        logits = self.wrapped(self.rows.numeric[rows], self.rows.categories[rows])
        loss = binary_cross_entropy_with_logits(logits, self.rows.label[rows])
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        return float(loss.detach())

    def state(self) -> dict[str, Any]:
        return {
            "net": dict(self.net.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "schedule": {k: v for k, v in self.schedule.state_dict().items() if not k.startswith("_anneal")},
        }

    def load(self, state: Mapping[str, Any]) -> None:
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])


class DeepSpeedLearner:
    """The same step through a ZeRO-2 engine. `gather(t)` returns the t of all ranks, in rank order.

    The optimiser's state is sharded: a checkpoint holds each rank's shard, so it resumes at the same world size.
    """

    def __init__(
        self, engine: Any, net: FlightsNet, rows: Rows, rank: int, gather: Callable[..., list[Any]]
    ) -> None:
        self.engine, self.net, self.rows, self.rank, self._gather = engine, net, rows, rank, gather

    def step(self, rows: torch.Tensor, step: int) -> float:
        self.engine.train()
        logits = self.engine(self.rows.numeric[rows], self.rows.categories[rows])
        loss = binary_cross_entropy_with_logits(logits, self.rows.label[rows])
        self.engine.backward(loss)
        self.engine.step()
        return float(loss.detach())

    def _adam(self) -> Any:
        return self.engine.optimizer.optimizer

    def state(self) -> dict[str, Any]:
        zero = self.engine.optimizer
        masters = [self._gather(part.detach()) for part in zero.single_partition_of_fp32_groups]
        adam = []
        for entry in self._adam().state_dict()["state"].values():
            adam.append(
                {
                    key: self._gather(value) if isinstance(value, torch.Tensor) and value.dim() else value
                    for key, value in entry.items()
                }
            )
        schedule = self.engine.lr_scheduler.state_dict()
        rates = [group["lr"] for group in self._adam().param_groups]
        net = dict(self.net.state_dict())
        return {"net": net, "masters": masters, "adam": adam, "schedule": schedule, "rates": rates}

    def load(self, state: Mapping[str, Any]) -> None:
        self.net.load_state_dict(state["net"])
        self.engine.lr_scheduler.load_state_dict(state["schedule"])
        zero = self.engine.optimizer
        for part, shards in zip(zero.single_partition_of_fp32_groups, state["masters"], strict=True):
            part.data.copy_(shards[self.rank])
        mine = {
            i: {k: v[self.rank] if isinstance(v, list) else v for k, v in entry.items()}
            for i, entry in enumerate(state["adam"])
        }
        self._adam().load_state_dict(
            {"state": mine, "param_groups": self._adam().state_dict()["param_groups"]}
        )
        # the schedule sets the rate after each step only: the first one after a resume needs it now
        for group, rate in zip(self._adam().param_groups, state["rates"], strict=True):
            group["lr"] = rate
