"""What jobs bring with them, through the front door (S9, S10): modules, variables and large packages of their own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import psutil
from pools import Pool

POOL = {"teams": "teams: {ops: {quota: 4}, research: {quota: 4}}\n", "settings": "package_limit_mib: 130\n"}
SCRIPTS = Path(__file__).parent / "scripts"
MIB = 1 << 20


def brought(folder: Path, name: str, version: str) -> tuple[Path, Path]:
    """(working_dir, py_modules folder) of a team: the modules have the same names as everybody's."""
    home, modules = folder / name / "home", folder / name / "shared_part"
    home.mkdir(parents=True)
    modules.mkdir()
    (home / "flavour.py").write_text(f"NAME = {name!r}\n")
    (home / "note.txt").write_text(f"note-of-{name}")
    (home / "who_am_i.py").write_text((SCRIPTS / "who_am_i.py").read_text())
    (modules / "__init__.py").write_text(f"VERSION = {version!r}\n")
    return home, modules


def start(
    pool: Pool, who: str, home: Path, environment: dict[str, Any], *arguments: str, ask: tuple[str, ...] = ()
) -> Any:
    """The stock client's `submit`, following. `ask`: more of its options."""
    command = [str(Path(sys.executable).with_name("ray")), "job", "submit", "--working-dir", str(home), *ask]
    command += ["--runtime-env-json", json.dumps(environment), "--", "python", *arguments]
    return subprocess.Popen(
        command, env=pool.env(who), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_two_teams_bring_different_modules_of_one_name(pool: Pool, tmp_path: Path) -> None:
    """At the same time on the same nodes, each sees its own working_dir, py_modules and env_vars: in the driver, in
    tasks, in an actor's tasks, and in tasks with an environment of their own."""
    marks = {who: str(tmp_path / f"{who}-runs") for who in ("ops", "research")}
    running = {}
    for who, other, version in (("ops", "research", "1.0"), ("research", "ops", "2.0")):
        home, modules = brought(tmp_path, who, version)
        environment = {"env_vars": {"FLAVOUR": f"for-{who}"}, "py_modules": [str(modules)]}
        running[who] = start(pool, who, home, environment, "who_am_i.py", marks[who], marks[other])
    for who, version in (("ops", "1.0"), ("research", "2.0")):
        said, _ = running[who].communicate(timeout=170)
        assert running[who].returncode == 0, said
        lines = [line for line in said.splitlines() if line.startswith(("driver", "node-"))]
        own = f"{who} {version} for-{who}"
        assert lines == [
            f"driver {own}",
            *(
                line
                for node in ("node-0", "node-1")
                for line in (
                    f"{node} {own} note-of-{who}",
                    f"{node} nested {who} for-{who} of the task",
                    f"{node} actor {own} note-of-{who}",
                )
            ),
        ], said


def test_a_script_from_a_laptop_runs_as_it_is(pool: Pool, tmp_path: Path) -> None:
    """S9: as Ray's own examples: `ray.init(num_gpus=2)`, twice over, groups, Serve, `serve.shutdown()`; what another
    team serves meanwhile stays."""
    done, folder = tmp_path / "done", tmp_path / "scripts"
    folder.mkdir()
    for name in ("laptop.py", "stays.py"):
        (folder / name).write_text((SCRIPTS / name).read_text())
    port = str(pool.record().settings["serve_port"])
    with start(pool, "research", folder, {}, "stays.py", str(done)) as others:
        said = []
        for line in others.stdout:
            said.append(line)
            if "serving" in line:
                break
        assert said and "serving" in said[-1], said
        ask = ("--metadata-json", '{"workers": "2", "gpus_per_worker": "1"}')
        laptop = start(pool, "ops", folder, {}, "laptop.py", port, ask=ask)
        said = laptop.communicate(timeout=170)[0]
        answer = httpx.get(f"http://127.0.0.1:{port}/stays", timeout=30, trust_env=False)
        done.touch()
        others.communicate(timeout=60)
    assert laptop.returncode == 0, said
    for line in (
        "cluster 2.0 free 2.0",
        "actor 1 tasks [1, 1, 1, 1]",
        "beside the actor 1.0 in None",
        "printed in a task",
        "again [1, 1, 1]",
        "typed 1",
        "group 1",
        "served hello",
    ):
        assert line in said, said
    assert "ray.init(num_cpus=2, num_gpus=2) joins the pool" in said
    assert "serve.shutdown() deletes laptop" in said and answer.text == "here", said


def test_rays_dashboard_is_what_the_front_door_lets_through(pool: Pool) -> None:
    """L2, G3: the pages and answers that Ray's dashboard needs, from a real one; no log, no secret of a job's."""
    environment = {"env_vars": {"SECRET": "hush-hush"}}
    assert start(pool, "ops", SCRIPTS, environment, "-c", "pass").wait(120) == 0
    with pool.http("admin") as http:
        view = http.post("/moorage/v1/ray-dashboard").json()["path"]
        page = http.get(view)
        assert page.status_code == 200 and "Ray Dashboard" in page.text
        scripts = re.findall(r'(?:src|href)="\./(static/[^"]+)"', page.text)
        assert len(scripts) >= 2 and all(http.get(view + one).status_code == 200 for one in scripts)
        for path in (
            "nodes?view=summary",
            "logical/actors",
            "api/v0/tasks?limit=5",
            "api/serve/applications/",
        ):
            assert http.get(view + path).status_code == 200, path
        assert http.get(f"{view}api/authentication_mode").json() == {"authentication_mode": "disabled"}
        jobs = http.get(f"{view}api/jobs/")
        assert "SECRET" in jobs.text and "hush-hush" not in jobs.text and "mrj_" not in jobs.text
        assert http.get(f"{view}api/v0/logs?node_id=x").status_code == 404
        assert http.post(f"{view}api/jobs/", json={"entrypoint": "true"}).status_code == 405
    with pool.http("ops") as http:
        assert http.post("/moorage/v1/ray-dashboard").status_code == 403


def test_a_package_larger_than_rays_dashboard_takes(pool: Pool, tmp_path: Path) -> None:
    """104 MiB: more than Ray's own Jobs API reads. The front door never holds it in memory; one byte over the pool's
    limit is told at once."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "weights.bin").write_bytes(os.urandom(104 * MIB))
    (data / "size.py").write_text("import os; print('SIZE', os.path.getsize('weights.bin'))\n")
    control = psutil.Process(pool.process("control").pid)
    before, most = control.memory_info().rss, 0
    submitting = start(pool, "ops", data, {}, "size.py")
    while submitting.poll() is None:
        most = max(most, control.memory_info().rss)
        try:
            submitting.wait(0.05)
        except subprocess.TimeoutExpired:
            continue
    said = submitting.communicate()[0]
    assert submitting.returncode == 0 and f"SIZE {104 * MIB}" in said, said[-3000:]
    assert most - before < 60 * MIB, f"the front door grew by {(most - before) / MIB:.0f} MiB"

    (data / "more.bin").write_bytes(os.urandom(30 * MIB))
    refused = start(pool, "ops", data, {}, "size.py")
    said = refused.communicate(timeout=120)[0]
    assert refused.returncode != 0 and "130 MiB" in said and ".rayignore" in said, said[-3000:]
    assert not list((pool.home / "packages").glob(".incoming-*")), "nothing of it is left"
