"""`moorage simulate`: what it prints, writes and refuses. The engines are small stand-ins: theirs is another test."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from moorage import cli
from moorage.errors import InvalidRequest, MoorageError
from moorage.runtime.commands import simulate as command
from moorage.runtime.history import pictures
from moorage.runtime.history.runs import Report
from moorage.scheduling.model import DeviceRule, NodeSpec
from moorage.scheduling.simulator import engine, replay
from moorage.scheduling.simulator.elastic import Elastic
from moorage.scheduling.simulator.model import ArrivalsResult, JobsResult, NotSimulated, Workload
from moorage.scheduling.simulator.openb import arrivals, curve

HOUR = 3600 * 10**9
NODES = "sn,cpu_milli,memory_mib,gpu,model\n" + "".join(f"n{i},64000,262144,4,T4\n" for i in range(5))
JOBS = "name,cpu_milli,memory_mib,num_gpu,gpu_milli\n" + "".join(
    f"j{i:02d},1000,10,{(1, 1, 1, 2)[i % 4]},{(500, 250, 1000, 1000)[i % 4]}\n" for i in range(20)
)
PHILLY = """timestamp,duration,num_gpus,gpu_time,cluster
2017-10-09 02:00:00,3600,1,0,b
2017-10-09 00:00:00,7200,8,0,a
"""


def fill(
    nodes: Sequence[NodeSpec],
    workload: Workload,
    *,
    demand: float,
    seed: int,
    policy: str,
    rule: DeviceRule,
    migrate: float = 0.0,
    stopwatch: Callable[[], float] | None = None,
) -> ArrivalsResult:
    """Takes what fits by its GPUs alone; `half` refuses every second job, whatever the room."""
    if migrate and policy == "half":
        raise NotSimulated("half moves nothing")
    capacity = sum(node.devices for node in nodes) * 1000
    come = arrivals(workload, [node.name for node in nodes], capacity, demand, seed)
    milli = workload.gpus()[come.order]
    taken, held = np.zeros(len(milli), np.bool_), 0
    for at, one in enumerate(milli.tolist()):
        taken[at] = held + one <= capacity and not (policy == "half" and at % 2)
        held += one if taken[at] else 0
    return ArrivalsResult(
        seed=seed,
        order=come.order,
        accepted=taken,
        allocation=curve(milli, taken, capacity, demand),
        elapsed_s=0.5 if stopwatch else 0.0,
        moves=int(100 * migrate),
    )


def run(
    nodes: Sequence[NodeSpec],
    workload: Workload,
    *,
    policy: str,
    period_ns: int = 0,
    elastic: Elastic | None = None,
    stopwatch: Callable[[], float] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> JobsResult:
    """Every job waits one hour; under `slow` three, and team b's are preempted once."""
    wait = np.full(len(workload), HOUR if policy == "quick" else 3 * HOUR)
    hit = ((workload.team == 1) & (policy == "slow")).astype(np.int64)
    lost = hit * HOUR // 60
    return JobsResult(
        start_ns=workload.submit_ns + wait,
        finish_ns=workload.submit_ns + wait + workload.duration_ns + lost,
        preemptions=hit,
        longest_stint_ns=wait,
        lost_ns=lost,
        elapsed_s=0.25,
        decisions=7,
        resizes=workload.workers - workload.min_workers if elastic else np.zeros(0, np.int64),
    )


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, content in (("nodes.csv", NODES), ("jobs.csv", JOBS), ("philly.csv", PHILLY)):
        (tmp_path / name).write_text(content)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(replay, "POLICIES", {"all": "takes what fits", "half": "every second"})
    monkeypatch.setattr(replay, "replay", fill)
    monkeypatch.setattr(engine, "POLICIES", {"quick": "waits an hour", "slow": "waits three"})
    monkeypatch.setattr(engine, "simulate", run)
    return tmp_path


def call(*arguments: str) -> Result:
    return CliRunner().invoke(cli.cli, ["simulate", *arguments], catch_exceptions=False)


def answer(*arguments: str) -> dict[str, Any]:
    done = call(*arguments, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


OPENB = ("openb", "--nodes", "nodes.csv", "--jobs", "jobs.csv", "--seeds", "42..44")


def test_openb_prints_the_figures_of_the_contract(files: Path) -> None:
    found = answer(*OPENB)
    assert found["policy"] == "all", "the first policy is the default"
    assert list(found["per_seed"]) == ["42", "43", "44"]
    mean = sum(found["per_seed"].values()) / 3
    assert found["allocation_percent"] == pytest.approx(mean, abs=1e-3) and 90 < mean <= 100
    assert list(found["curve"]) == ["50", "80", "100", "130"]
    assert found["curve"]["130"] == found["allocation_percent"]
    assert 45 < found["curve"]["50"] < 55, "while there is room everything is taken"
    assert set(found["acceptance_by_class"]) == {"share", "1 GPU", "2 GPU"}
    assert found["placements_per_second"] == pytest.approx(found["placements"] / 1.5, abs=0.1)
    assert found["idle_though_asked_by_demand"][130] == pytest.approx(100 - mean, abs=1e-3)
    assert found["left_out"] == [] and found["gpus"] == 20 and len(found["allocation_by_demand"]) == 131


def test_openb_through_the_planner_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No stand-in: every policy there is fills a small pool, and takes all there is room for while it is half empty."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nodes.csv").write_text(NODES)
    (tmp_path / "jobs.csv").write_text(JOBS)
    found = answer(*OPENB, "--compare", ",".join(replay.POLICIES))
    assert list(found["policies"]) == list(replay.POLICIES)
    for one in found["policies"].values():
        assert 80 < one["allocation_percent"] <= 100 and 45 < one["curve"]["50"] < 55
        assert one["placements_per_second"] > 0
    assert answer(*OPENB, "--device-rule", "raylet")["allocation_percent"] > 80


def test_openb_demand_beyond_and_below_the_usual_points(files: Path) -> None:
    low = answer(*OPENB, "--demand", "0.9")
    assert low["curve"]["100"] is None and low["curve"]["130"] is None
    assert low["allocation_percent"] == low["curve"]["90"]
    assert "200" in answer(*OPENB, "--demand", "2")["curve"]


def test_policies_are_compared_on_the_same_arrivals(files: Path) -> None:
    found = answer(*OPENB, "--compare", "all,half")
    assert list(found["policies"]) == ["all", "half"] and found["policy"] == "all"
    one, two = found["policies"].values()
    assert one["arrived_by_class"] == two["arrived_by_class"]
    assert one["allocation_percent"] > two["allocation_percent"]
    assert answer(*OPENB, "--policy", "half", "--compare", "all")["policy"] == "half"
    assert list(answer(*OPENB, "--compare", "half,half,all")["policies"]) == ["half", "all"]


def test_options_reach_the_engine(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(replay, "replay", lambda *a, **k: (seen.append(k), fill(*a, **k))[1])
    found = answer(*OPENB, "--migrate", "0.02", "--device-rule", "raylet", "--demand", "1.1")
    assert all(k["rule"] is DeviceRule.RAYLET and k["migrate"] == 0.02 for k in seen)
    assert [k["seed"] for k in seen if k["demand"] == 1.1] == [42, 43, 44]
    assert [k.get("stopwatch") is None for k in seen] == [True, False, False, False], (
        "the first call only compiles"
    )
    assert found["moves"] == 6 and found["device_rule"] == "raylet" and found["migrate"] == 0.02


def test_philly_prints_the_figures_of_the_contract(files: Path) -> None:
    found = answer(
        "philly", "--jobs", "philly.csv", "--gpus", "16", "--nodes", "2", "--compare", "quick,slow"
    )
    quick, slow = found["policies"]["quick"], found["policies"]["slow"]
    assert quick["avg_jct_hours"] == 2.5 and quick["p95_jct_hours"] == 2.95
    assert quick["max_queued_stint_hours"] == 1 and quick["makespan_days"] == pytest.approx(4 / 24, abs=1e-4)
    assert slow["preemptions"] == 1 and slow["lost_gpu_percent"] == pytest.approx(100 / 60 / 17, abs=1e-3)
    assert quick["by_team"]["a"]["avg_jct_hours"] == 3 and quick["by_team"]["b"]["avg_jct_hours"] == 2
    assert quick["by_team"]["a"]["gpu_share"] == pytest.approx(16 / 17, abs=1e-5)
    assert found["left_out"] == [] and found["notes"] and found["avg_jct_hours"] == 2.5
    assert found["decisions"] == 7


def test_philly_with_elastic_jobs_says_how_elastic_and_how_often_they_were_resized(files: Path) -> None:
    """The job of 8 GPUs becomes 8 workers, of which 3 are enough; that of one stays as it is."""
    call_ = ("philly", "--jobs", "philly.csv", "--gpus", "16", "--elastic", "0.3")
    found = answer(*call_, "--efficiency", "60", "--compare", "slow")
    assert found["elastic"] == {"least_percent": 30, "efficiency_percent": 60}
    assert [one["resizes"] for one in found["policies"].values()] == [5]
    assert "resizes" in call(*call_).output
    plain = answer("philly", "--jobs", "philly.csv", "--gpus", "16")
    assert plain["elastic"] is None and plain["resizes"] == 0
    assert "resizes" not in call("philly", "--jobs", "philly.csv", "--gpus", "16").output


def test_philly_takes_nodes_of_eight_and_leaves_out_what_never_fits(files: Path) -> None:
    (files / "philly.csv").write_text(PHILLY + "2017-10-09 00:00:00,1,64,0,c\n")
    found = answer("philly", "--jobs", "philly.csv", "--gpus", "32")
    assert found["nodes"] == 4 and found["jobs"] == 2
    assert [(one["row"], one["code"]) for one in found["left_out"]] == [(3, "fits-nowhere")]
    assert found["left_out_by_code"] == {"fits-nowhere": 1}


def test_a_job_that_never_ends_makes_no_figure(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        engine, "simulate", lambda *a, **k: replace(run(*a, **k), finish_ns=np.array([-1, 5 * HOUR]))
    )
    found = answer("philly", "--jobs", "philly.csv", "--gpus", "16", "--nodes", "2")
    assert found["avg_jct_hours"] == 3 and found["unfinished"] == 1
    assert found["by_team"]["a"]["avg_jct_hours"] is None


def test_the_tables_are_for_people(files: Path) -> None:
    text = call(*OPENB, "--compare", "all,half").output
    assert "at 130%" in text and "half" in text and "1 GPU" in text
    (files / "philly.csv").write_text(PHILLY + "2017-10-09 00:00:00,-1,1,0,c\n")
    text = call("philly", "--jobs", "philly.csv", "--gpus", "16", "--nodes", "2").output
    assert "Left out: 1 negative" in text and "note: 1 rows" in text and "'-1' is negative" in text
    assert "quick" in call("philly", "--policies").output
    assert json.loads(call("openb", "--policies", "--json").output) == dict(replay.POLICIES)


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("42..44", [42, 43, 44]), ("1,2,3", [1, 2, 3]), ("7", [7]), ("3, 1..2 ,3", [3, 1, 2]), ("0..0", [0])],
)
def test_seeds(text: str, seeds: list[int]) -> None:
    assert command.parse_seeds(text) == seeds


@pytest.mark.parametrize(
    "text", ["", "x", "1..", "..2", "2..1", "-1", "1..2..3", "1.5", "0..99999999", "2147483647"]
)
def test_seeds_that_are_none(text: str) -> None:
    with pytest.raises(InvalidRequest, match="bad-seeds"):
        command.parse_seeds(text)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("openb", "--jobs", "jobs.csv"), "missing-option"),
        (("openb", "--nodes", "nodes.csv"), "missing-option"),
        (("philly",), "missing-option"),
        ((*OPENB, "--demand", "0"), "bad-demand"),
        ((*OPENB, "--demand", "nan"), "bad-demand"),
        ((*OPENB, "--demand", "11"), "bad-demand"),
        ((*OPENB, "--migrate", "-0.1"), "bad-migrate"),
        ((*OPENB, "--migrate", "nan"), "bad-migrate"),
        ((*OPENB, "--policy", "halff"), "unknown-policy"),
        ((*OPENB, "--compare", "all,other"), "unknown-policy"),
        ((*OPENB, "--compare", ","), "unknown-policy"),
        ((*OPENB, "--policy", "half", "--migrate", "0.1"), "not-simulated"),
        ((*OPENB, "--out", "jobs.csv/x"), "bad-out"),
        (("openb", "--nodes", "jobs.csv", "--jobs", "jobs.csv"), "trace-column-missing"),
        (("openb", "--nodes", ".", "--jobs", "jobs.csv"), "trace-unreadable"),
        (("philly", "--jobs", "none.csv"), "trace-not-found"),
        (("philly", "--jobs", "philly.csv", "--gpus", "9", "--nodes", "2"), "bad-pool"),
        (("philly", "--jobs", "philly.csv", "--gpus", "0"), "bad-pool"),
        (("philly", "--jobs", "philly.csv", "--elastic", "0"), "bad-elastic"),
        (("philly", "--jobs", "philly.csv", "--elastic", "1.1"), "bad-elastic"),
        (("philly", "--jobs", "philly.csv", "--elastic", "nan"), "bad-elastic"),
        (("philly", "--jobs", "philly.csv", "--efficiency", "50"), "bad-elastic"),
        (("philly", "--jobs", "philly.csv", "--gpus", "-8"), "bad-pool"),
    ],
)
def test_refusals_have_a_code(files: Path, arguments: tuple[str, ...], code: str) -> None:
    with pytest.raises(MoorageError) as caught:
        call(*arguments)
    assert caught.value.code == code


def test_a_refusal_is_one_line_and_exit_code_two(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["simulate", *OPENB, "--policy", "halff"])
    said = capsys.readouterr()
    assert ended.value.code == 2 and said.out == ""
    assert said.err.count("\n") == 1 and "Did you mean 'half'?" in said.err


def test_lists_without_a_gpu_are_refused(files: Path) -> None:
    (files / "cpu.csv").write_text("name,cpu_milli,memory_mib,num_gpu,gpu_milli\na,1,1,0,0\n")
    (files / "bare.csv").write_text("sn,cpu_milli,memory_mib,gpu\nn,9,9,0\n")
    for nodes, jobs in (("nodes.csv", "cpu.csv"), ("bare.csv", "cpu.csv")):
        with pytest.raises(InvalidRequest, match="no-gpus"):
            call("openb", "--nodes", nodes, "--jobs", jobs)


def test_the_report_and_its_pictures_are_written(files: Path) -> None:
    pytest.importorskip("matplotlib")
    done = call(*OPENB, "--compare", "all,half", "--out", "a/b", "--json")
    assert json.loads((files / "a" / "b" / "report.json").read_text()) == json.loads(done.stdout)
    drawn = {path.name: path.read_bytes() for path in (files / "a" / "b").glob("*.svg")}
    assert set(drawn) == {"allocation.svg", "fragmentation.svg", "acceptance.svg"}
    assert all(content.startswith(b"<?xml") for content in drawn.values())
    call(*OPENB, "--compare", "all,half", "--out", "again")
    assert drawn == {path.name: path.read_bytes() for path in (files / "again").glob("*.svg")}, (
        "byte for byte"
    )
    done = call(
        "philly",
        "--jobs",
        "philly.csv",
        "--gpus",
        "16",
        "--compare",
        "slow,quick",
        "--out",
        "p",
        "--format",
        "png",
    )
    assert {path.name for path in (files / "p").glob("*.png")} == {"jct.png", "queued.png", "fairness.png"}
    assert "3 pictures" in done.stderr


def test_pictures_show_the_figures() -> None:
    """What is plotted is what the report says: read back from the axes."""
    figure = pytest.importorskip("matplotlib.figure").Figure()
    report = Report(
        {
            "trace": "philly",
            "policies": {
                name: {
                    "by_team": {"a": {"jobs": 1, "gpu_share": 1.0, "avg_jct_hours": mean}},
                    "avg_jct_hours": mean,
                }
                for name, mean in (("quick", 1.0), ("static", 4.0))
            },
        },
        {"quick": np.array([0.5, 1.5]), "static": np.array([4.0, 4.0])},
    )
    axes = figure.add_subplot()
    assert pictures._fairness(axes, report)
    dots = [line.get_ydata() for line in axes.lines if line.get_label() == "quick"]
    assert [list(values) for values in dots] == [[0.25]], "against the static partition, wherever it stands"
    axes = figure.add_subplot()
    assert pictures._jct(axes, report)
    assert list(axes.lines[0].get_xdata()) == [0.5, 1.5]
    assert not pictures._allocation(axes, report)


def test_without_matplotlib_it_says_what_to_install_before_it_works(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(replay, "replay", lambda *a, **k: pytest.fail("worked first"))
    with pytest.raises(InvalidRequest, match=r"pip install 'moorage\[plots\]'"):
        call(*OPENB, "--out", "x")
    assert not (files / "x").exists()


def test_a_bar_shows_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    with command.progress_bar() as progress:
        assert progress is None, "stderr is no terminal here"
    monkeypatch.setenv("FORCE_COLOR", "1")
    with command.progress_bar() as progress:
        assert progress is not None
        progress("fgd", 1, 2)


def test_help_has_examples() -> None:
    for name in ("openb", "philly"):
        text = call(name, "--help").output
        assert "Examples:" in text and f"moorage simulate {name}" in text and "--compare" in text
