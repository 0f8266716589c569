"""Feature pipelines on Ray Data: checked reads, block functions, numbered parts. The one module here that needs Ray.

Inside a Moorage job the lease bounds what Ray Data may use; without one it takes what Ray offers.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
import ray.data
from ray.data import DataContext, Dataset, ExecutionResources
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask
from ray.exceptions import RayTaskError

from moorage.cluster import binding
from moorage.errors import MoorageError
from moorage.runtime.features.schema import ROW, split
from moorage.runtime.features.sources import Source, read_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """A source after its schema check: every row it had, as blocks with a reason or without."""

    source: Source
    blocks: Dataset
    rows_in: int
    good: int
    quarantined: int
    reasons: dict[str, int]

    def quarantine(self) -> pa.Table:
        """The bad rows: source, source_row, reason, raw."""
        bad = pa.concat_tables(split(block)[1] for block in tables(self.blocks))
        return bad.add_column(0, "source", pa.array([self.source.name] * bad.num_rows, pa.string()))

    def good_rows(self) -> pa.Table:
        """All good rows on this process: for tables that are small beside the events."""
        return pa.concat_tables(split(block)[0] for block in tables(self.blocks))


def start(*, cpus: int | None = None) -> None:
    """Connects to the job's cluster, or starts a local one with `cpus` (default: this machine's), and sets limits."""
    if not ray.is_initialized():
        if os.environ.get("RAY_ADDRESS"):
            ray.init(logging_level=logging.WARNING)
        else:
            ray.init(
                address="local",
                num_cpus=cpus or os.cpu_count(),
                include_dashboard=False,
                logging_level=logging.WARNING,
            )
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = True  # part files must not depend on which task was faster
    lease = binding.current()
    if lease is not None:
        context.execution_options.resource_limits = ExecutionResources.for_limits(**limits(lease))
        context.execution_options.label_selector = nodes(lease)
    logging.getLogger("ray.data").setLevel(logging.WARNING)


def limits(lease: binding.LeaseView) -> dict[str, float]:
    """What Ray Data may use at once under this lease: the workers' CPUs (at least one) and no more than their GPUs."""
    return {"cpu": max(1.0, sum(worker.cpus for worker in lease.workers)), "gpu": lease.gpus}


def nodes(lease: binding.LeaseView) -> dict[str, str] | None:
    """The label selector of the lease's nodes; None for a lease that names none."""
    ids = {worker.ray_node_id for worker in lease.workers} or (
        {lease.head.ray_node_id} if lease.head else set()
    )
    return {binding.NODE_ID_LABEL: f"in({','.join(sorted(ids))})"} if ids else None


class CheckedSource(Datasource):
    """One read task per file: reads, checks each block against the schema, and yields blocks of `rows_per_block`."""

    def __init__(self, source: Source, rows_per_block: int) -> None:
        super().__init__()
        self._source, self._rows = source, rows_per_block

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
        source, rows = self._source, self._rows
        about = BlockMetadata(num_rows=None, size_bytes=None, input_files=[source.path], exec_stats=None)
        return [ReadTask(lambda: checked_blocks(source, rows), about)]


def checked_blocks(source: Source, rows: int) -> Iterator[pa.Table]:
    """The file's rows in blocks, checked. Raises DataError for what is wrong with the whole file."""
    table = read_rows(source.path)
    for offset in range(0, max(1, table.num_rows), rows):
        yield source.schema.check(table.slice(offset, rows).combine_chunks(), where=source.path)


def read_checked(source: Source, *, blocks: int = 1, rows_per_block: int = 50_000) -> Checked:
    """Reads and checks one source; its blocks stay in the object store. Raises DataError naming the file.

    `blocks` is how many the next step may work on at once.
    """
    with explained():
        dataset = ray.data.read_datasource(
            CheckedSource(source, rows_per_block), override_num_blocks=blocks
        ).materialize()
        rows_in, good, reasons = count(tables(dataset))
    return Checked(
        source=source,
        blocks=dataset,
        rows_in=rows_in,
        good=good,
        quarantined=sum(reasons.values()),
        reasons=reasons,
    )


def count(blocks: Iterable[pa.Table]) -> tuple[int, int, dict[str, int]]:
    """(rows of the file, good rows, quarantined rows by reason), each counted by itself so that they can disagree.

    Rows were numbered when the file was read: the file had as many as the highest number says, whatever came of them.
    """
    rows_in, good, reasons = 0, 0, dict[str, int]()
    for block in blocks:
        if block.num_rows:
            rows_in = max(rows_in, 1 + int(pc.max(block[ROW]).as_py()))
        kept, bad = split(block)
        good += kept.num_rows
        for reason in bad["reason"].to_pylist():
            reasons[reason] = reasons.get(reason, 0) + 1
    return rows_in, good, reasons


def tables(blocks: Dataset) -> Iterator[pa.Table]:
    """A materialised dataset's blocks in order."""
    for ref in blocks.to_arrow_refs():
        yield ray.get(ref)


def write_parts(
    blocks: Dataset, folder: Path, make: Callable[[pa.Table, Any], pa.Table], state: Any, *, by: str
) -> list[dict[str, Any]]:
    """Runs `make(good rows, state)` on every block and writes what it returns as Parquet parts; one record per part.

    A part holds the rows of one value of `by` of one block: part-<value>-<first source row>.parquet in
    `folder`, which all nodes must see. `state` is stored once and read by all tasks.
    """
    shared = ray.put(state)
    with explained():
        written = blocks.map_batches(
            _write_block,
            batch_size=None,
            batch_format="pyarrow",
            fn_kwargs={"state": shared, "make": make, "folder": str(folder), "by": by},
        ).take_all()
    return sorted(written, key=lambda record: str(record["file"]))


def write_table(table: pa.Table, path: Path) -> None:
    """One Parquet file, compressed; the same rows give the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, compression="zstd")


def _write_block(
    block: pa.Table, *, state: ray.ObjectRef, make: Callable[[pa.Table, Any], pa.Table], folder: str, by: str
) -> pa.Table:
    first = int(pc.min(block[ROW]).as_py() or 0)
    rows = make(split(block)[0], ray.get(state))
    records = []
    for value in sorted(rows[by].unique().to_pylist()):
        part = rows.filter(pc.equal(rows[by], value))
        name = f"part-{value}-{first:09d}.parquet"
        write_table(part, Path(folder) / name)
        records.append({"file": name, "value": str(value), "rows": part.num_rows})
    return pa.Table.from_pylist(
        records, pa.schema([("file", pa.string()), ("value", pa.string()), ("rows", pa.int64())])
    )


@contextmanager
def explained() -> Iterator[None]:
    """Unwraps Ray: a MoorageError raised in a task is raised here as itself, without Ray's traceback around it."""
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        for _ in range(16):
            if isinstance(cause, RayTaskError):
                cause = cause.cause
            elif isinstance(cause, MoorageError) or cause is None:
                break
            else:
                cause = cause.__cause__
        if isinstance(cause, MoorageError) and cause is not error:
            raise cause from None
        raise
