"""The stock `ray job` client against a real pool: front door, control plane, raylets (S2, S8, S9, S10).

What a job did is read from what the job printed or wrote, not from our database.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from pools import Pool, clean_environment
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient
from waiting import until

POOL = {"options": ["--cpus-per-node", "8"]}
MIB = 1 << 20


def submit(pool: Pool, job_id: str, *entrypoint: str, who: str = "ops", **metadata: str) -> None:
    """As the stock client does, without the seconds that its command takes to start; asserts that it was taken."""
    body = {"submission_id": job_id, "entrypoint": shlex.join(entrypoint), "metadata": metadata}
    with pool.http(who) as http:
        answer = http.post("/api/jobs/", json=body)
    assert answer.status_code == 200, answer.text


def job(pool: Pool, job_id: str, who: str = "admin") -> dict[str, Any]:
    with pool.http(who) as http:
        answer = http.get(f"/moorage/v1/jobs/{job_id}")
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found


def state(pool: Pool, job_id: str) -> str:
    return str(job(pool, job_id)["state"])


def finished(pool: Pool, job_id: str, timeout: float = 90) -> str:
    """The final state."""
    final = ("SUCCEEDED", "FAILED", "STOPPED", "QUARANTINED")
    return until(
        lambda: (now := state(pool, job_id)) in final and now, timeout, f"{job_id} has ended", every=0.3
    )


def logs(pool: Pool, job_id: str, who: str = "ops") -> str:
    with pool.http(who) as http:
        return str(http.get(f"/api/jobs/{job_id}/logs", timeout=120).json()["logs"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's working_dir with a `train.py` of their own."""
    (tmp_path / "train.py").write_text('WHOSE = "the user\'s own train.py"\n')
    (tmp_path / "main.py").write_text("import train\nprint(train.WHOSE)\nprint(open('note.txt').read())\n")
    (tmp_path / "note.txt").write_text("a file beside it")
    return tmp_path


def test_submit_follow_with_a_working_dir(pool: Pool, folder: Path) -> None:
    """S9: upload, queue, run, follow, exit 0; `import train` in the job is the user's file."""
    done = pool.ray_job(
        "ops",
        "submit",
        "--working-dir",
        str(folder),
        "--submission-id",
        "own-train",
        "--",
        "python",
        "main.py",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the user's own train.py\na file beside it\n" in done.stdout
    assert "Job 'own-train' succeeded" in done.stdout + done.stderr
    again = pool.ray_job("ops", "logs", "own-train")
    assert "the user's own train.py" in again.stdout
    followed = pool.ray_job("ops", "logs", "--follow", "own-train")
    assert followed.returncode == 0 and "a file beside it" in followed.stdout


def test_a_working_dir_stays_when_a_second_node_uses_it(pool: Pool, folder: Path) -> None:
    """S10: nodes of one machine share Ray's session folder; unpacking for one must not take it from another."""
    (folder / "both.py").write_text(
        "import os, ray\n"
        "ray.init()\n"
        "@ray.remote(num_cpus=0.1)\n"
        "def note():\n"
        "    return os.getcwd(), open('note.txt').read()\n"
        "for node in ('node-0', 'node-1', 'node-0'):\n"
        "    there, text = ray.get(note.options(label_selector={'moorage.io/node': node}).remote())\n"
        "    print(node, text, there != os.getcwd())\n"
        "print('still here:', open('note.txt').read())\n"
    )
    done = pool.ray_job("ops", "submit", "--working-dir", str(folder), "--", "python", "both.py", timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "node-1 a file beside it True" in done.stdout, done.stdout
    assert "still here: a file beside it" in done.stdout, done.stdout


def test_a_failing_entrypoint(pool: Pool) -> None:
    """Bad input: the entrypoint exits 1; so does the CLI, and the status says why."""
    done = pool.ray_job(
        "ops", "submit", "--submission-id", "exits-1", "--", "sh", "-c", "echo about to fail; exit 1"
    )
    assert done.returncode == 1, done.stdout
    assert "about to fail" in done.stdout
    status = pool.ray_job("ops", "status", "exits-1")
    assert "failed" in status.stdout + status.stderr and "exit" in status.stdout + status.stderr


def test_a_job_over_quota_waits_with_its_reason(pool: Pool) -> None:
    """S2, S8: research may use 2 GPUs; the second job waits, says why, and starts when the first has ended."""
    submit(pool, "first", "sleep", "600", who="research", workers="1", gpus_per_worker="2")
    until(lambda: state(pool, "first") == "RUNNING", 60, "the first job runs")
    submit(pool, "second", "echo", "at last", who="research", workers="1", gpus_per_worker="1")
    until(lambda: job(pool, "second")["reason"], 20, "the second job has a reason")
    status = pool.ray_job("research", "status", "second")
    text = status.stdout + status.stderr
    assert "PENDING" in text and "research" in text and "2" in text, text
    why = pool.moorage("why", "second")
    assert why.returncode == 0 and "rule     team-limit" in why.stdout, why.stdout + why.stderr
    found = json.loads(pool.moorage("why", "second", "--as", "research", "--json").stdout)["explanation"]
    assert (found["reason"]["held"], found["reason"]["allowed"], found["ends_unknown"]) == (2000, 2000, 1)
    assert {"change": "ends", "jobs": ["first"]}.items() <= found["suggestions"][-1].items(), found
    assert f"- {found['suggestions'][-1]['text']}" in why.stdout and "not known" in why.stdout
    other = pool.moorage("why", "second", "--as", "ops")
    assert other.returncode == 2 and "job-not-found" in other.stderr, other.stdout + other.stderr
    shown = pool.moorage("status")
    assert "second" in shown.stdout and "first (research) 1" in shown.stdout, shown.stdout
    stopped = pool.ray_job("research", "stop", "first")
    assert stopped.returncode == 0 and "was stopped" in stopped.stdout + stopped.stderr
    assert finished(pool, "second") == "SUCCEEDED"
    assert "at last" in logs(pool, "second", "research")


def test_a_change_of_quotas_is_replayed_on_what_the_pool_did(pool: Pool, tmp_path: Path) -> None:
    """S8: research waits for its limit of 2; with 4 it would not have. Nothing is applied."""
    for number in (1, 2):
        submit(pool, f"week-{number}", "sleep", "3", who="research", workers="2", gpus_per_worker="1")
    assert [finished(pool, f"week-{number}") for number in (1, 2)] == ["SUCCEEDED"] * 2
    file = tmp_path / "quotas.yaml"
    file.write_text("teams: {ops: {quota: 4, limit: 6}, research: {quota: 2, limit: 4}}\n")
    shown = pool.moorage("plan", str(file), timeout=300)
    assert shown.returncode == 0 and "research: limit 2 -> 4" in shown.stdout, shown.stdout + shown.stderr
    found = json.loads(pool.moorage("plan", str(file), "--json", timeout=300).stdout)
    research = next(one for one in found["teams"] if one["team"] == "research")
    assert research["before"]["wait_longest_s"] > 2.5 > research["after"]["wait_longest_s"], found
    assert found["as_it_was"]["wait_longest_s"] > 2.5
    limits = {
        one["team"]: one["limit_milli_gpu"]
        for one in json.loads(pool.moorage("status", "--json").stdout)["teams"]
    }
    assert limits["research"] == 2000, "as before"


def test_a_hanging_job_is_stopped(pool: Pool, tmp_path: Path) -> None:
    """Bad input: an entrypoint that hangs and ignores SIGTERM; `ray job stop` ends its process."""
    mark = tmp_path / "pid"
    code = (
        "import os,signal,time; signal.signal(15, signal.SIG_IGN); "
        f"open({str(mark)!r}, 'w').write(str(os.getpid())); time.sleep(9e4)"
    )
    submit(pool, "hangs", sys.executable, "-c", code)
    until(lambda: mark.exists() and mark.read_text(), 60, "the job runs")
    done = pool.ray_job("ops", "stop", "hangs")
    assert done.returncode == 0 and "was stopped" in done.stdout + done.stderr
    until(lambda: not psutil.pid_exists(int(mark.read_text())), 20, "its process is gone")
    deleted = pool.ray_job("ops", "delete", "hangs")
    assert deleted.returncode == 0, deleted.stdout + deleted.stderr
    assert pool.ray_job("ops", "status", "hangs").returncode == 1


def test_a_flooded_log(pool: Pool, tmp_path: Path) -> None:
    """Bad input: 50 MB of log. The follower gets every byte, /logs its head and tail, the front door's memory
    stays where it was."""
    front_door = psutil.Process(pool.process("control").pid)
    before = front_door.memory_info().rss
    code = (
        "import sys\nfor n in range(1_000_000): "
        "sys.stdout.write('line %07d of a flood of words and more words\\n' % n)"
    )
    followed = tmp_path / "followed.txt"
    with open(followed, "w") as out:
        done = subprocess.run(
            [
                str(Path(sys.executable).with_name("ray")),
                *("job", "submit", "--submission-id", "flood", "--", sys.executable, "-c", code),
            ],
            env=pool.env("ops"),
            stdout=out,
            stderr=subprocess.STDOUT,
            timeout=170,
        )
    assert done.returncode == 0, followed.read_text()[-2000:]
    seen = [line for line in followed.read_text().splitlines() if line.startswith("line ")]
    assert len(seen) == 1_000_000 and seen == sorted(seen)
    text = logs(pool, "flood")
    assert len(text) < 9 * MIB and "are left out here" in text
    assert "line 0000000 of a flood" in text and text.endswith(
        "line 0999999 of a flood of words and more words\n"
    )
    grown = front_door.memory_info().rss - before
    assert grown < 120 * MIB, f"the control plane grew by {grown / MIB:.0f} MiB"


def test_lines_that_break_rays_tail(pool: Pool) -> None:
    """One line of 6 MiB and bytes that are no UTF-8: the follower still gets all of it, and the right end."""
    code = (
        "import sys,time\nw=sys.stdout.buffer.write\nw(b'begin\\n'); sys.stdout.flush(); time.sleep(2)\n"
        "w(b'x'*(6<<20)+b'\\n'); w(b'\\xff\\xfe bad bytes\\n'); sys.stdout.flush(); time.sleep(2); w(b'the end\\n')"
    )
    done = pool.ray_job("ops", "submit", "--submission-id", "odd", "--", sys.executable, "-c", code)
    assert done.returncode == 0, done.stdout[-500:] + done.stderr[-2000:]
    assert done.stdout.count("x") >= 6 << 20 and "bad bytes\nthe end\n" in done.stdout
    assert done.stdout.count("\nbegin\n") == 1


def refusal(pool: Pool, *arguments: str, who: str = "ops") -> str:
    done = pool.ray_job(who, "submit", "--no-wait", *arguments)
    assert done.returncode != 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--metadata-json", '{"gpus_per_workers": "2"}', "--", "true"], "gpus_per_worker"),
        (["--metadata-json", "{team: ops", "--", "true"], ""),
    ],
)
def test_refusals_reach_the_screen(pool: Pool, arguments: list[str], expected: str) -> None:
    """Bad input through the stock command: refused at once, with the field named; nothing is queued."""
    with pool.http("admin") as http:
        before = len(http.get("/api/jobs/").json())
        output = refusal(pool, *arguments)
        assert expected in output, output[-1500:]
        assert len(http.get("/api/jobs/").json()) == before


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"metadata": {"team": "research"}}, "team"),
        ({"metadata": {"team": "nobody"}}, "team"),
        ({"metadata": {"worker": "2"}}, "workers"),
        ({"metadata": {"gpus_per_worker": "-1"}}, "gpus_per_worker"),
        ({"metadata": {"gpus_per_worker": "nan"}}, "gpus_per_worker"),
        ({"metadata": {"workers": "64", "gpus_per_worker": "1"}}, "infeasible"),
        ({"metadata": {"job_submission_id": "x"}}, "reserved"),
        ({"entrypoint_num_gpus": 1e9}, "entrypoint_num_gpus"),
    ],
)
def test_refusals_reach_a_script(pool: Pool, given: dict[str, Any], expected: str) -> None:
    """The same through the stock SDK, whose error the command prints."""
    client = JobSubmissionClient(pool.url, headers={"Authorization": f"Bearer {pool.token('ops')}"})
    before = len(client.list_jobs())
    with pytest.raises((RuntimeError, AuthenticationError), match=expected):
        client.submit_job(entrypoint="true", **given)
    assert len(client.list_jobs()) == before


def test_a_foreign_team_sees_nothing(pool: Pool) -> None:
    """G1, S10: research can neither see, read, stop nor delete a job of ops."""
    submit(pool, "secret", "echo", "for ops only")
    done = pool.ray_job("research", "logs", "secret")
    assert done.returncode == 1 and "for ops only" not in done.stdout + done.stderr
    assert "404" in done.stdout + done.stderr, done.stdout + done.stderr
    with pool.http("research") as http:
        for method, path in (("GET", ""), ("GET", "/logs"), ("POST", "/stop"), ("DELETE", "")):
            answer = http.request(method, f"/api/jobs/secret{path}")
            assert answer.status_code == 404 and "for ops only" not in answer.text, answer.text
        assert "secret" not in {one["submission_id"] for one in http.get("/api/jobs/").json()}
    assert finished(pool, "secret") == "SUCCEEDED"


def test_a_lease_grows_inside_a_job(pool: Pool, tmp_path: Path) -> None:
    """`moorage.lease` in a user's script: granted where it says, refused with the reason at its timeout."""
    (tmp_path / "grow.py").write_text(
        "import json, moorage\n"
        "from moorage.errors import MoorageError\n"
        "with moorage.lease(gpus=1, timeout=30) as room:\n"
        "    print('GRANTED', json.dumps([[w.node, list(w.devices), w.gpus] for w in room.workers]))\n"
        "with moorage.lease(gpus=1, timeout=30) as room:\n"
        "    print('AGAIN', len(room.workers))\n"
        "try:\n"
        "    with moorage.lease(gpus=1, workers=6, timeout=2):\n"
        "        print('IMPOSSIBLE')\n"
        "except MoorageError as error:\n"
        "    print('REFUSED', error.code, error)\n"
    )
    done = pool.ray_job(
        "ops",
        *("submit", "--submission-id", "grows", "--working-dir", str(tmp_path)),
        *("--metadata-json", '{"workers": "1", "gpus_per_worker": "1"}', "--", sys.executable, "grow.py"),
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert 'GRANTED [["node-' in done.stdout and "AGAIN 1" in done.stdout
    assert "IMPOSSIBLE" not in done.stdout and "REFUSED" in done.stdout
    with pool.http("admin") as http:
        devices = http.get("/moorage/v1/status").json()["devices"]
    assert not [one for device in devices for one in device["holders"] if one["job"] == "grows"]


def test_a_kill_of_the_control_plane_is_no_success(pool: Pool, tmp_path: Path) -> None:
    """G6: SIGKILL under a follower. The CLI reports an error; the job runs on, once, and ends."""
    mark, enough = tmp_path / "ran", tmp_path / "enough"
    code = (
        f"import os,time\nopen({str(mark)!r}, 'a').write('x')\nprint('working', flush=True)\n"
        f"while not os.path.exists({str(enough)!r}): time.sleep(0.1)"
    )
    command = [
        str(Path(sys.executable).with_name("ray")),
        "job",
        "submit",
        "--submission-id",
        "survives",
        "--",
    ]
    follower = subprocess.Popen(
        [*command, sys.executable, "-c", code],
        env=pool.env("ops"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert follower.stdout is not None
    until(lambda: "working" in follower.stdout.readline(), 60, "the log is followed")
    victim = pool.process("control")
    psutil.Process(victim.pid).kill()
    follower.communicate(timeout=60)
    assert follower.returncode != 0
    until(lambda: pool.process("control").pid != victim.pid, 30, "the supervisor started another one")

    def answers() -> bool:
        try:
            with pool.http(None) as http:
                return http.get("/healthz").status_code == 200
        except Exception:
            return False

    until(answers, 60, "the front door answers again")
    assert state(pool, "survives") == "RUNNING"
    enough.touch()
    followed = pool.ray_job("ops", "logs", "--follow", "survives")
    assert followed.returncode == 0 and "working" in followed.stdout
    assert finished(pool, "survives") == "SUCCEEDED"
    assert mark.read_text() == "x"


def moorage_json(pool: Pool, *arguments: str) -> Any:
    done = pool.moorage(*arguments, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_the_moorage_command(pool: Pool, folder: Path) -> None:
    """`moorage submit job.yaml` and the reading commands, as tables and as JSON."""
    spec = folder / "job.yaml"
    spec.write_text(
        "entrypoint: python main.py\nworking_dir: .\nteam: ops\nworkers: 1\ngpus_per_worker: 0.5\n"
        "env_vars: {GREETING: hello}\nmetadata: {note: from a file}\n"
    )
    found = moorage_json(pool, "submit", str(spec))
    job_id = found["job_id"]
    assert found["team"] == "ops" and found["metadata"]["note"] == "from a file"
    assert finished(pool, job_id) == "SUCCEEDED"
    assert "the user's own train.py" in moorage_json(pool, "logs", job_id)["logs"]
    assert job_id in [one["job_id"] for one in moorage_json(pool, "jobs", "--state", "succeeded")]
    cost = moorage_json(pool, "cost")
    assert next(one for one in cost["jobs"] if one["job"] == job_id)["micro_dollars"] > 0
    kinds = [one["kind"] for one in moorage_json(pool, "events", "--job", job_id)]
    assert "lease.granted" in kinds and "lease.released" in kinds
    for command in ("status", "jobs", "cost", "events"):
        done = pool.moorage(command)
        assert done.returncode == 0 and "ops" in done.stdout, done.stdout + done.stderr


def test_the_moorage_command_refuses_in_one_line(pool: Pool, tmp_path: Path) -> None:
    spec = tmp_path / "bad.yaml"
    spec.write_text("entrypoint: python main.py\nworkers: [1\nteam: ops\n")
    done = pool.moorage("submit", str(spec))
    assert done.returncode == 2 and "line 3" in done.stderr and len(done.stderr.splitlines()) == 1
    spec.write_text("entrypoint: x\nworker: 2\n")
    done = pool.moorage("submit", str(spec))
    assert done.returncode == 2 and "'workers'" in done.stderr
    done = pool.moorage("why", "no-such-job")
    assert done.returncode == 2 and "not-found" in done.stderr
    outside = subprocess.run(
        [sys.executable, "-P", "-m", "moorage.cli", "status", "--home", str(tmp_path / "nothing")],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert outside.returncode == 2 and "No pool is up" in outside.stderr


def test_the_ray_token_stays_inside(pool: Pool) -> None:
    """G3: no log of ours holds Ray's token or a team's."""
    secrets = [pool.files.ray_token.read_text().strip(), *(pool.token(who) for who in ("ops", "admin"))]
    for path in pool.files.logs.glob("*"):
        text = path.read_text(errors="replace")
        assert not [one for one in secrets if one in text], path.name
    assert os.stat(pool.files.ray_token).st_mode & 0o077 == 0
