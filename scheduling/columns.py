"""The ledger's columns as the placing kernel reads them: what is free, and where each class of task may run."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moorage.kernels.placing_scores import Classes, Nodes
from moorage.scheduling.constraints import Constraints
from moorage.scheduling.ledger import Ledger
from moorage.scheduling.model import WHOLE
from moorage.scheduling.queue import TaskClass


def book_columns(ledger: Ledger) -> Nodes:
    """What is free: the ledger's own arrays, to be read."""
    return Nodes(
        milli_free=ledger.milli_free,
        mem_free=ledger.mem_free,
        devices=ledger.devices,
        device_mib=ledger.device_mib,
        model=ledger.model,
        cpu_free=ledger.cpu_free,
        mib_free=ledger.mib_free,
    )


def node_columns(ledger: Ledger) -> Nodes:
    """A working copy of what is free, for trying."""
    return Nodes(*(column.copy() for column in book_columns(ledger)))


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


def usable(ledger: Ledger, c: TaskClass) -> npt.NDArray[np.bool_]:
    """[N] the nodes that are up and that a class may run on, whatever is free there."""
    return of_models(ledger, c) & (ledger.may_run(c.constraints) > c.strict)


def last_resort(ledger: Ledger, c: TaskClass) -> bool:
    """Whether some nodes are for such a class only where no other will do."""
    return bool(np.any(of_models(ledger, c) & (ledger.may_run(c.constraints) == 1)))


def of_models(ledger: Ledger, c: TaskClass) -> npt.NDArray[np.bool_]:
    """[N] the nodes that are up and of the GPU models that a class may run on."""
    known = [ledger.models.index(m) for m in c.gpu_models if m in ledger.models]
    return ledger.up & np.isin(ledger.model, known) if c.gpu_models else ledger.up


def class_columns(ledger: Ledger, classes: tuple[TaskClass, ...]) -> Classes:
    """The task classes against this pool: on which nodes each may run."""
    allowed = np.empty((len(classes), len(ledger.up)), np.bool_)
    found: dict[tuple[tuple[str, ...], Constraints, bool], npt.NDArray[np.bool_]] = {}
    for i, c in enumerate(classes):
        same = c.gpu_models, c.constraints, c.strict
        if same not in found:
            found[same] = usable(ledger, c)
        allowed[i] = found[same]
    shapes = np.array(
        [(c.shape.milli_gpu, c.shape.gpu_mib, c.shape.milli_cpu, c.shape.mib) for c in classes], np.int64
    ).reshape(-1, 4)
    milli, gpu_mib, cpu, mib = (np.ascontiguousarray(column) for column in shapes.T)
    return Classes(milli=milli, gpu_mib=gpu_mib, cpu=cpu, mib=mib, allowed=allowed)
