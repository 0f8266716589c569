"""The openb and Philly files to workloads: small ones written here, the real ones where they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import traces
from hypothesis import example, given
from hypothesis import strategies as st

from moorage.errors import DataError, InvalidRequest
from moorage.runtime.history import openb, philly
from moorage.runtime.history.trace import Trace, left_out_counts
from moorage.scheduling.model import NodeSpec
from moorage.scheduling.simulator.model import COLUMNS, JOB_CLASSES, Kind, fits

NODES = "sn,cpu_milli,memory_mib,gpu,model\nn0,64000,262144,2,P100\nn1,96000,393216,8,T4\nn2,32000,1000,0,\n"
JOBS = """name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec
cpu,8000,100,0,0,T4
half,4000,200,1,500,
one,4000,200,1,1000,T4|P100
eight,8000,300,8,1000,P100|T4
"""
PHILLY = """timestamp,duration,num_gpus,gpu_time,cluster
2017-10-09 07:00:10,66.0,1,66.0,b
2017-10-09 07:00:00,2951.5,12,0,a
2017-10-09 07:00:10,0,16,0,b
"""


def written(tmp_path: Path, content: str) -> Path:
    path = tmp_path / "trace.csv"
    path.write_text(content)
    return path


def codes_of(trace: Trace) -> list[tuple[int, str]]:
    return [(one.row, one.code) for one in trace.left_out]


def test_nodes_of_openb(tmp_path: Path) -> None:
    found = openb.read_nodes(written(tmp_path, NODES))
    assert found == (
        NodeSpec(name="n0", gpu_model="P100", devices=2, milli_cpu=64000, mib=262144),
        NodeSpec(name="n1", gpu_model="T4", devices=8, milli_cpu=96000, mib=393216),
        NodeSpec(name="n2", gpu_model="", devices=0, milli_cpu=32000, mib=1000),
    )


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ("n0,64000,262144,2,P100\n", "row 4: sn 'n0' is row 1's already"),
        ("n3,64000,262144,2,\n", "row 4: it has GPUs and the column model is empty"),
        ("n3,64000,262144,63,T4\n", "row 4: 63 GPUs on one node"),
        ("n3,-1,262144,2,T4\n", "row 4: cpu_milli '-1' is negative"),
    ],
)
def test_a_node_that_is_wrong_is_an_error(tmp_path: Path, rows: str, text: str) -> None:
    with pytest.raises(DataError, match=text):
        openb.read_nodes(written(tmp_path, NODES + rows))


def test_nodes_without_a_column_of_models_are_all_alike_and_none_is_an_error(tmp_path: Path) -> None:
    (found,) = openb.read_nodes(written(tmp_path, "sn,cpu_milli,memory_mib,gpu\nn0,1,1,2\n"))
    assert found.gpu_model == openb.ONE_MODEL
    with pytest.raises(DataError, match="has no nodes"):
        openb.read_nodes(written(tmp_path, "sn,cpu_milli,memory_mib,gpu\n"))


def test_jobs_of_openb(tmp_path: Path) -> None:
    found = openb.read_jobs(written(tmp_path, JOBS))
    jobs = found.workload
    assert jobs.kind is Kind.ARRIVALS and not found.left_out
    assert jobs.names == ("cpu", "half", "one", "eight")
    assert jobs.milli_gpu.tolist() == [0, 500, 1000, 8000]
    assert jobs.milli_cpu.tolist() == [8000, 4000, 4000, 8000] and jobs.mib.tolist() == [100, 200, 200, 300]
    allowed = [jobs.model_sets[row] for row in jobs.models]
    assert allowed == [(), (), ("P100", "T4"), ("P100", "T4")], "a job without a GPU has no GPU model"
    assert [JOB_CLASSES[row] for row in jobs.job_class()] == ["cpu", "share", "1 GPU", "8 GPU"]
    assert all(getattr(jobs, name).dtype == np.int64 and len(getattr(jobs, name)) == 4 for name in COLUMNS)


def test_jobs_of_openb_that_are_left_out(tmp_path: Path) -> None:
    rows = "one,1,1,1,1000,\na,1,1,1,0,\nb,1,1,1,1001,\nc,1,1,2,500,\nd,1,1,63,1000,\ne,1,-1,1,500,\nf,1,1,2,1000,\n"
    found = openb.read_jobs(written(tmp_path, JOBS + rows))
    assert codes_of(found) == [
        (5, "duplicate-id"),
        (6, "bad-share"),
        (7, "bad-share"),
        (8, "bad-share"),
        (9, "too-many-devices"),
        (10, "negative"),
    ]
    assert [one.name for one in found.left_out] == ["one", "a", "b", "c", "d", "e"]
    assert found.workload.names is not None and found.workload.names[-1] == "f"
    assert found.rows.tolist() == [1, 2, 3, 4, 11]
    assert left_out_counts(found.left_out)["bad-share"] == 3


def test_a_list_with_nothing_to_run_is_an_error_that_says_why(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="trace-empty"):
        openb.read_jobs(written(tmp_path, JOBS.splitlines()[0] + "\n"))
    with pytest.raises(DataError, match=r"All 1 rows are left out; row 1: cpu_milli 'x'"):
        openb.read_jobs(written(tmp_path, JOBS.splitlines()[0] + "\na,x,1,1,500,\n"))


def test_arrivals_that_fit_nowhere_are_reported_and_still_arrive(tmp_path: Path) -> None:
    nodes = openb.read_nodes(written(tmp_path, NODES))
    rows = "big,96001,1,1,500,\nwrong,1,1,8,1000,P100\n"
    found = openb.read_jobs(written(tmp_path, JOBS + rows)).that_fit(nodes)
    assert codes_of(found) == [(5, "fits-nowhere"), (6, "fits-nowhere")]
    assert len(found.workload) == 6, "the demand is what the list asks for"
    assert "8 GPU" in found.left_out[1].text and "on P100" in found.left_out[1].text


def test_jobs_of_philly(tmp_path: Path) -> None:
    found = philly.read_jobs(written(tmp_path, PHILLY), per_node=8)
    jobs = found.workload
    assert jobs.kind is Kind.JOBS and jobs.names is None
    assert jobs.submit_ns.tolist() == [0, 10 * 10**9, 10 * 10**9]
    assert jobs.duration_ns.tolist() == [2951_500_000_000, 66 * 10**9, 1]
    assert found.rows.tolist() == [2, 1, 3], "equal times keep the order of the file"
    assert [jobs.teams[row] for row in jobs.team] == ["a", "b", "b"]
    assert jobs.workers.tolist() == jobs.min_workers.tolist() == [2, 1, 2]
    assert jobs.milli_gpu.tolist() == [6000, 1000, 8000]
    assert found.notes == ("1 rows came before an earlier one in time: sorted by timestamp",)


def test_jobs_of_philly_that_are_left_out(tmp_path: Path) -> None:
    head, *rows = PHILLY.splitlines()
    more = [
        "2017-10-09 07:00:10,66,0,0,b",
        "2017-10-09 07:00:10,-5,1,0,b",
        "2017-10-09 07:00:10,nan,1,0,b",
        "2017-10-09 07:00:10,1e12,1,0,b",
        "2017-10-09 07:00:10,1,1,0,",
        "never,1,1,0,b",
        f"2017-10-09 07:00:10,1,{2**62 + 7},0,b",
        "2017-10-09 07:00:10,1,456,0,b",
        f"2017-10-09 07:00:10,1,{2**53 - 111},0,b",
        "1969-10-09 07:00:10,1,1,0,b",
    ]
    path = written(tmp_path, "\n".join([head, *rows, *more]) + "\n")
    found = philly.read_jobs(path, per_node=8).that_fit(philly.nodes(448, 56))
    assert codes_of(found) == [
        (4, "no-gpu"),
        (5, "negative"),
        (6, "not-a-number"),
        (7, "too-large"),
        (8, "no-name"),
        (9, "not-a-time"),
        (10, "too-large"),
        (11, "fits-nowhere"),
        (12, "fits-nowhere"),
        (13, "out-of-range"),
    ]
    assert len(found.workload) == 3 and found.rows.tolist() == [2, 1, 3]


def test_ids_of_philly_are_used_where_they_are(tmp_path: Path) -> None:
    head = "job_id,timestamp,duration,num_gpus,cluster\n"
    rows = "x,5,1,1,a\ny,6,1,1,a\nx,7,1,1,a\n"
    found = philly.read_jobs(written(tmp_path, head + rows), per_node=8)
    assert found.workload.names == ("x", "y") and codes_of(found) == [(3, "duplicate-id")]


@pytest.mark.parametrize(
    ("gpus", "count", "text"),
    [(448, 57, "evenly"), (0, 1, "no pool"), (8, 0, "no pool"), (448, -8, "no pool"), (448, 1, "at most 62")],
)
def test_a_pool_that_cannot_be_is_refused(gpus: int, count: int, text: str) -> None:
    with pytest.raises(InvalidRequest, match=text):
        philly.nodes(gpus, count)


@given(gpus=st.lists(st.integers(1, 500), min_size=1, max_size=20), per_node=st.integers(1, 62))
def test_a_gang_is_the_fewest_equal_tasks_that_fit_a_node(gpus: Sequence[int], per_node: int) -> None:
    workers = philly.tasks_of(np.array(gpus), per_node)
    for total, tasks in zip(gpus, workers.tolist(), strict=True):
        assert total % tasks == 0 and total // tasks <= per_node
        assert all(total % fewer or total // fewer > per_node for fewer in range(1, tasks))


NODE = st.builds(
    NodeSpec,
    name=st.just("n"),
    gpu_model=st.sampled_from(["A", "B"]),
    devices=st.integers(0, 4),
    device_mib=st.integers(0, 16),
    milli_cpu=st.integers(0, 40),
    mib=st.integers(0, 40),
)


@given(
    nodes=st.lists(NODE, max_size=3),
    milli=st.sampled_from([0, 300, 500, 1000, 2000, 4000]),
    gpu_mib=st.integers(0, 16),
    cpu=st.integers(0, 20),
    mib=st.integers(0, 20),
    workers=st.integers(1, 6),
    models=st.integers(0, 1),
)
@example(  # a job without a GPU may run beside any model
    nodes=[NodeSpec(name="n", gpu_model="B", devices=1, milli_cpu=9, mib=9)],
    milli=0,
    gpu_mib=0,
    cpu=1,
    mib=1,
    workers=1,
    models=1,
)
@example(  # a whole device with too little memory
    nodes=[NodeSpec(name="n", gpu_model="A", devices=4, device_mib=8, milli_cpu=9, mib=9)],
    milli=1000,
    gpu_mib=9,
    cpu=0,
    mib=0,
    workers=1,
    models=0,
)
def test_fits_is_what_counting_one_by_one_says(
    nodes: list[NodeSpec], milli: int, gpu_mib: int, cpu: int, mib: int, workers: int, models: int
) -> None:
    """Against tasks placed one after another, each on the first node and devices with room."""
    base = openb_like()
    one = np.ones(1, np.int64)
    job = replace(
        base,
        milli_gpu=milli * one,
        gpu_mib=gpu_mib * one,
        milli_cpu=cpu * one,
        mib=mib * one,
        workers=workers * one,
        min_workers=workers * one,
        models=models * one,
        model_sets=((), ("A",)),
    )
    placed = 0
    for node in nodes:
        if milli and models and node.gpu_model != "A":
            continue
        cpu_left, mib_left = node.milli_cpu, node.mib
        share, memory = [1000] * node.devices, [node.device_mib] * node.devices
        while placed < workers and cpu_left >= cpu and mib_left >= mib:
            if milli:
                each = min(milli, 1000)
                free = [d for d in range(node.devices) if share[d] >= each and memory[d] >= gpu_mib]
                if len(free) < -(-milli // 1000):
                    break
                for d in free[: -(-milli // 1000)]:
                    share[d] -= each
                    memory[d] -= gpu_mib
            cpu_left, mib_left, placed = cpu_left - cpu, mib_left - mib, placed + 1
    if milli == cpu == mib == 0:
        return  # asks for nothing: not a question of room
    assert fits(job, nodes).tolist() == [placed >= workers]


def openb_like() -> openb.Workload:
    zero = np.zeros(1, np.int64)
    return openb.Workload(
        **dict.fromkeys(COLUMNS, zero), names=("j",), teams=("t",), model_sets=((),), kind=Kind.ARRIVALS
    )


def test_the_real_openb_lists_are_read_whole() -> None:
    nodes = openb.read_nodes(traces.folder() / "openb" / "openb_node_list_gpu_node.csv")
    assert (len(nodes), sum(node.devices for node in nodes)) == (1213, 6212)
    found = openb.read_jobs(traces.folder() / "openb" / "openb_pod_list_default.csv")
    counts = np.bincount(found.workload.job_class(), minlength=len(JOB_CLASSES))
    assert len(found.workload) == 8152 and not found.left_out
    assert dict(zip(JOB_CLASSES, counts.tolist(), strict=True))["8 GPU"] == 44
    with_models = openb.read_jobs(traces.folder() / "openb" / "openb_pod_list_gpuspec33.csv")
    assert sum(bool(with_models.workload.model_sets[row]) for row in with_models.workload.models) == 2388
    assert codes_of(with_models.that_fit(nodes)) == [(1640, "fits-nowhere")]


def test_the_real_philly_trace_is_read_whole() -> None:
    found = philly.read_jobs(traces.folder() / "philly" / "philly.csv", per_node=8)
    jobs = found.workload
    assert len(jobs) == 82247 and len(jobs.teams) == 15 and not found.left_out and found.notes
    assert bool((np.diff(jobs.submit_ns) >= 0).all()) and jobs.gpus().max() == 128_000
    assert found.that_fit(philly.nodes(448, 56)).left_out == ()
    assert left_out_counts(found.that_fit(philly.nodes(64, 8)).left_out) == {"fits-nowhere": 3}
