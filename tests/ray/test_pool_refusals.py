"""S9, G6: what `up` refuses before it starts anything, what it rolls back, and what `down` leaves."""

from __future__ import annotations

import os
import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import processes
import psutil
import pytest
from pools import Pool, discard, free_port, moorage, short_folder, start
from waiting import until


@pytest.fixture()
def home() -> Iterator[Path]:
    folder = short_folder()
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def processes_of(home: Path) -> list[int]:
    """Processes that name this folder on their command line or stand in it."""
    found = []
    for process in psutil.process_iter():
        try:
            mine = str(home) in " ".join(process.cmdline()) or process.cwd().startswith(str(home))
        except psutil.Error:
            continue
        if mine and process.pid != os.getpid():
            found.append(process.pid)
    return found


def test_a_taken_port_is_refused_before_anything_starts(home) -> None:
    """Bad input: the error names the port and who holds it; no process, no pool.json."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused = moorage("up", "--port", str(port), home=home)
    assert refused.returncode == 2
    assert (
        "port-taken" in refused.stderr and str(port) in refused.stderr and str(os.getpid()) in refused.stderr
    )
    assert len(refused.stderr.strip().splitlines()) == 1
    assert not (home / "pool.json").exists() and not processes_of(home)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--nodes", "0"), "bad-option"),
        (("--logical-gpus", "-1"), "bad-option"),
        (("--logical-gpus", "63"), "bad-option"),
        (("--gpu-model", "a b"), "bad-option"),
        (("--address", "10.0.0.1"), "bad-option"),
        (("--address", "127.0.0.1:1"), "cluster-not-reachable"),
        (("--teams", "/nowhere/teams.yaml"), "config-unreadable"),
        (("--pool", "/nowhere/pool.yaml"), "config-unreadable"),
    ],
)
def test_bad_options_start_nothing(home, arguments, code) -> None:
    """Bad input: one line, exit code 2, nothing started."""
    refused = moorage("up", "--port", str(free_port()), *arguments, home=home)
    assert refused.returncode == 2 and code in refused.stderr, refused.stderr
    assert "Traceback" not in refused.stderr and not processes_of(home)


def test_malformed_teams_start_nothing(home) -> None:
    """Bad input: malformed YAML is refused with its place."""
    teams = home / "t.yaml"
    teams.write_text("teams: {ops: [", encoding="utf-8")
    refused = moorage("up", "--port", str(free_port()), "--teams", teams, home=home)
    assert refused.returncode == 2 and "t.yaml" in refused.stderr, refused.stderr
    assert not processes_of(home)


def test_a_half_started_pool_is_rolled_back(home) -> None:
    """G6: when the control plane cannot start, nothing stays and the error quotes its log."""
    refused = moorage("up", "--port", str(free_port()), "--control", "moorage.nowhere", home=home)
    assert refused.returncode == 2
    assert "pool-did-not-start" in refused.stderr and "moorage.nowhere" in refused.stderr
    assert not (home / "pool.json").exists() and not processes_of(home)


def test_down_without_a_pool_is_fine(home) -> None:
    """`down` is idempotent."""
    assert moorage("down", home=home).returncode == 0


@pytest.mark.parametrize("how", ["down", "supervisor killed"])
def test_nothing_is_left(how) -> None:
    """G6: after `down`, and after a SIGKILL of the supervisor with a job running, no process and no listener
    stay."""
    pool: Pool = start({"nodes": 1, "logical_gpus": 1})
    ports = {
        c.laddr.port
        for c in psutil.net_connections("inet")
        if c.status == psutil.CONN_LISTEN and c.pid in {p.pid for p in pool.tree()}
    }
    tree = pool.tree()
    assert pool.port in ports and len(tree) > 8
    if how == "supervisor killed":
        os.kill(pool.process("supervisor").pid, signal.SIGKILL)
        until(lambda: not any(alive(p) for p in tree), 60, "the kernel's word to reach the children")
    home = pool.home
    discard(pool)
    assert [p for p in tree if alive(p)] == []
    assert processes_of(home) == []
    mine = {
        p.pid for p in processes.marked(os.environ[processes.VARIABLE])
    }  # others' may have taken a port since
    listening = [c for c in psutil.net_connections("inet") if c.status == psutil.CONN_LISTEN]
    assert not [c for c in listening if c.laddr.port in ports and (c.pid is None or c.pid in mine)]


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:  # it ended between the two looks
        return False
