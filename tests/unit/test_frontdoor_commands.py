"""The command line without a pool: the lazy table, one-line errors, job.yaml, tables (S8, L6)."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from moorage.cli import COMMANDS, cli, main
from moorage.errors import InvalidRequest, MoorageError, TooLarge
from moorage.runtime.commands import jobfile, shared
from moorage.runtime.commands import status as status_command

STATUS: dict[str, Any] = {
    "at_ns": 120 * 10**9,
    "ray": {"reachable": True, "message": ""},
    "nodes": [
        {
            "name": "node-0",
            "alive": True,
            "gpu_model": "L4",
            "devices": 1,
            "free_milli_gpu": 100,
            "milli_cpu": 8000,
            "free_milli_cpu": 6500,
        }
    ],
    "devices": [
        {
            "id": "node-0/0",
            "mib": 24576,
            "free_mib": 4576,
            "holders": [
                {"job": "a", "team": "ops", "milli_gpu": 500},
                {"job": "b", "team": "research", "milli_gpu": 400},
            ],
        }
    ],
    "running": [
        {
            "job": "a",
            "team": "ops",
            "state": "RUNNING",
            "milli_gpu": 500,
            "started_ns": 1,
            "places": "node-0/0",
        }
    ],
    "queue": [
        {
            "job": "c",
            "team": "ops",
            "priority": 500,
            "milli_gpu": 2000,
            "created_ns": 30 * 10**9,
            "message": "[not a tag] ops uses 4 of 4 GPUs",
        }
    ],
    "teams": [
        {
            "team": "ops",
            "parent": "",
            "quota_milli_gpu": 4000,
            "limit_milli_gpu": None,
            "used_milli_gpu": 4500,
            "borrowed_milli_gpu": 500,
        }
    ],
}


def printed(*parts: Any) -> str:
    screen = shared.console()
    with screen.capture() as caught:
        for part in parts:
            screen.print(part)
    return caught.get()


def test_every_command_is_there_with_help() -> None:
    for name in COMMANDS:
        shown = CliRunner().invoke(cli, [name, "--help"])
        assert shown.exit_code == 0 and shown.output.startswith(f"Usage: cli {name} "), name


@pytest.mark.parametrize(
    "name",
    [
        "status",
        "page",
        "top",
        "submit",
        "jobs",
        "why",
        "logs",
        "stop",
        "events",
        "cost",
        "plan",
        "drain",
        "undrain",
    ],
)
def test_help_has_an_example_and_json(name: str) -> None:
    shown = CliRunner().invoke(cli, [name, "--help"])
    assert "xample" in shown.output and "--json" in shown.output


@pytest.mark.packaging
def test_help_imports_no_command() -> None:
    """`moorage --help` must be quick: no database, no HTTP, no Ray."""
    code = (
        "import sys, moorage.cli\n"
        "try: moorage.cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'ray', 'httpx', 'sqlalchemy', 'pydantic', 'aiohttp', 'rich', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_error_is_one_line_and_exit_2(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["status", "--home", str(tmp_path)])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and len(error.splitlines()) == 1 and "pool-not-up" in error


def test_a_bug_is_a_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("entrypoint: x\n")
    monkeypatch.setattr(jobfile, "read", lambda path: {}["bug"])
    with pytest.raises(KeyError):
        main(["submit", str(tmp_path / "job.yaml"), "--home", str(tmp_path)])


def test_an_unknown_command_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["staus"])
    assert ended.value.code == 2 and "staus" in capsys.readouterr().err


def test_the_status_tables() -> None:
    """Who holds which part of which device, as a bar; the reason of each waiting job; borrowed GPUs."""
    text = printed(
        status_command.nodes(STATUS),
        status_command.devices(STATUS),
        status_command.running(STATUS),
        status_command.queue(STATUS),
        status_command.teams(STATUS),
    )
    assert "[##########========..]" in text
    assert "a (ops) 0.5, b (research) 0.4" in text and "20000 / 24576" in text
    assert "1.5 min" in text and "[not a tag] ops uses 4 of 4 GPUs" in text
    ops = next(line.split() for line in text.splitlines() if line.startswith("ops "))
    assert ops == ["ops", "4", "-", "4.5", "0.5"]


@pytest.mark.parametrize("milli", [[1000], [333, 333, 334], [1] * 20, [1] * 30, [950, 50], []])
def test_a_bar_is_always_as_wide(milli: list[int]) -> None:
    holders = [{"team": "t", "milli_gpu": one} for one in milli]
    text = status_command.bar(holders, {}).plain
    assert len(text) == status_command.BAR + 2
    assert sum(milli) < 975 or "." not in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("entrypoint: [1\nteam: ops\n", "line 2"),
        ("entrypoint: x\nentrypoint: y\n", "line 2"),
        ("- a\n", "mapping"),
        ("team: ops\n", "`entrypoint`"),
        ("entrypoint: 7\n", "`entrypoint`"),
        ("entrypoint: x\nworker: 2\n", "'workers'"),
        ("entrypoint: x\nworking-dir: .\n", "'working_dir'"),
        ("entrypoint: x\nworking_dir: nowhere\n", "is not a folder"),
        ("entrypoint: x\nmetadata: [a]\n", "`metadata`"),
        ("entrypoint: x\nexcludes: data\n", "`excludes`"),
        ("entrypoint: !!python/object/apply:os.system [id]\n", "not valid YAML"),
    ],
)
def test_bad_job_files(tmp_path: Path, text: str, expected: str) -> None:
    """Bad input: malformed YAML names the line, a near miss the key that was meant."""
    path = tmp_path / "job.yaml"
    path.write_text(text)
    with pytest.raises(InvalidRequest) as caught:
        jobfile.read(path)
    assert expected in str(caught.value)


def test_a_job_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="cannot be read"):
        jobfile.read(tmp_path / "job.yaml")


def test_a_job_file_becomes_rays_body(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(
        "entrypoint: python train.py\nsubmission_id: mine\nworking_dir: .\nexcludes: ['*.csv', data/]\n"
        "team: ops\nworkers: 2\ngpus_per_worker: 0.5\npreemptible: true\nmax_runtime: 2h\n"
        "env_vars: {N: 1}\nruntime_env: {pip: [x], env_vars: {M: '2'}}\nmetadata: {note: 7}\n"
        "entrypoint_num_cpus: 1\n"
    )
    job = jobfile.read(tmp_path / "job.yaml")
    assert job.body == {
        "entrypoint": "python train.py",
        "submission_id": "mine",
        "entrypoint_num_cpus": 1,
        "metadata": {
            "note": "7",
            "team": "ops",
            "workers": "2",
            "gpus_per_worker": "0.5",
            "preemptible": "true",
            "max_runtime": "2h",
        },
        "runtime_env": {"pip": ["x"], "env_vars": {"M": "2", "N": "1"}},
    }
    assert job.working_dir == tmp_path and job.excludes == ("*.csv", "data/")


def test_a_package_depends_on_content_only(tmp_path: Path) -> None:
    """The same files give the same name, so the front door is not sent them twice; excludes are left out."""
    source = tmp_path / "source"
    for name in ("train.py", "lib/util.py", ".git/config", "data/big.csv", "__pycache__/x.pyc", "notes.tmp"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(name)
    first = jobfile.pack(source, ("data/", "*.tmp"), tmp_path / "a.zip")
    (source / "train.py").touch()
    (source / "data/big.csv").write_text("changed")
    assert jobfile.pack(source, ("data/", "*.tmp"), tmp_path / "b.zip") == first
    with zipfile.ZipFile(tmp_path / "a.zip") as packed:
        assert packed.namelist() == ["train.py", "lib/util.py"]
    (source / "lib/util.py").write_text("other")
    assert jobfile.pack(source, ("data/", "*.tmp"), tmp_path / "c.zip") != first


def test_a_folder_that_is_too_large(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    with open(source / "zeros", "wb") as sparse:
        sparse.truncate(jobfile.MAX_FOLDER + 1)
    with pytest.raises(TooLarge, match="500 MiB"):
        jobfile.pack(source, (), tmp_path / "a.zip")


def test_json_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    shared.print_json({"note": "ü", "n": 1})
    assert json.loads(capsys.readouterr().out) == {"note": "ü", "n": 1}


@pytest.mark.parametrize(
    ("since", "until", "expected"),
    [
        (None, 5, "-"),
        (5, None, "-"),
        (1, 1_500_000_001, "1.5 s"),
        (1, 90 * 10**9 + 1, "1.5 min"),
        (9, 3, "-"),
    ],
)
def test_spans(since: int | None, until: int | None, expected: str) -> None:
    assert shared.span(since, until) == expected


def test_a_mistyped_command_is_told_the_near_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["statsu"])
    assert ended.value.code == 2 and "Did you mean 'status'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("what", "more", "line"),
    [
        ("no pool", {"todo": "start one"}, "no pool. Start one [c]"),
        (
            "not valid",
            {"why": "did you mean 'quota'?", "todo": "correct it"},
            "not valid. Did you mean 'quota'? Correct it [c]",
        ),
        ("gone", {"why": "teams.ops: x", "todo": "moorage down"}, "gone. teams.ops: x. moorage down [c]"),
    ],
)
def test_an_error_is_made_of_sentences(what: str, more: dict[str, str], line: str) -> None:
    assert str(MoorageError(what, **more, code="c")) == line


def test_a_state_that_does_not_exist_is_refused() -> None:
    shown = CliRunner().invoke(cli, ["jobs", "--state", "bogus"])
    assert shown.exit_code == 2 and "quarantined" in shown.output


class Waiting:
    """A client of a pool where one job waits."""

    def __enter__(self) -> Waiting:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def logs(self, job_id: str) -> str:
        return ""

    def job(self, job_id: str) -> dict[str, str]:
        return {"state": "PENDING", "message": "team ops holds 4 of its limit of 4 GPUs"}

    def status(self) -> dict[str, Any]:
        return {"nodes": STATUS["nodes"], "devices": STATUS["devices"], "teams": STATUS["teams"]}


def test_the_log_of_a_waiting_job_says_why_it_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "connect", lambda *_: Waiting())
    shown = CliRunner().invoke(cli, ["logs", "j"])
    assert shown.stdout == "" and "j has no log yet: PENDING, team ops holds 4" in shown.stderr


def test_status_says_none_instead_of_an_empty_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "connect", lambda *_: Waiting())
    shown = CliRunner().invoke(cli, ["status"])
    assert "Running: none" in shown.output and "Queue: none" in shown.output, shown.output
