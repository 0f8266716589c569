"""The ledger's columns as the placing kernel reads them: what is free, and where each class of task may run."""

from __future__ import annotations

import numpy as np

from moorage.kernels.placing_scores import Classes, Nodes
from moorage.scheduling.ledger import Ledger
from moorage.scheduling.model import WHOLE
from moorage.scheduling.queue import TaskClass


def node_columns(ledger: Ledger) -> Nodes:
    """A working copy of what is free, for trying."""
    return Nodes(
        milli_free=ledger.milli_free.copy(),
        mem_free=ledger.mem_free.copy(),
        devices=ledger.devices,
        device_mib=ledger.device_mib,
        model=ledger.model,
        cpu_free=ledger.cpu_free.copy(),
        mib_free=ledger.mib_free.copy(),
    )


def idle_columns(ledger: Ledger) -> Nodes:
    """The pool as if no lease were held."""
    has = np.arange(ledger.milli_free.shape[1])[None, :] < ledger.devices[:, None]
    return Nodes(
        milli_free=np.where(has, np.int64(WHOLE), np.int64(0)),
        mem_free=np.where(has, ledger.device_mib[:, None], np.int64(0)),
        devices=ledger.devices,
        device_mib=ledger.device_mib,
        model=ledger.model,
        cpu_free=ledger.cpu_total.copy(),
        mib_free=ledger.mib_total.copy(),
    )


def class_columns(ledger: Ledger, classes: tuple[TaskClass, ...]) -> Classes:
    """The task classes against this pool: on which nodes each may run."""
    allowed = np.empty((len(classes), len(ledger.up)), np.bool_)
    by_models: dict[tuple[str, ...], np.ndarray[tuple[int], np.dtype[np.bool_]]] = {}
    for i, c in enumerate(classes):
        if c.gpu_models not in by_models:
            known = [ledger.models.index(m) for m in c.gpu_models if m in ledger.models]
            of_model = np.isin(ledger.model, known) if c.gpu_models else np.ones(len(ledger.up), np.bool_)
            by_models[c.gpu_models] = ledger.up & of_model
        allowed[i] = by_models[c.gpu_models]
    shapes = np.array(
        [(c.shape.milli_gpu, c.shape.gpu_mib, c.shape.milli_cpu, c.shape.mib) for c in classes], np.int64
    ).reshape(-1, 4)
    milli, gpu_mib, cpu, mib = (np.ascontiguousarray(column) for column in shapes.T)
    return Classes(milli=milli, gpu_mib=gpu_mib, cpu=cpu, mib=mib, allowed=allowed)
