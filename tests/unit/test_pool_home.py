"""G3, G6: the pool's files, who a process is, and what its children's environment holds."""

from __future__ import annotations

import errno
import fcntl
import os
from dataclasses import replace

import pytest

from moorage.cluster.paths import ClusterPaths, read_json, write_json
from moorage.errors import DataError, InvalidRequest, NotFound
from moorage.runtime.pool import supervisor, up
from moorage.runtime.pool.environment import plain_environment, ray_environment
from moorage.runtime.pool.home import (
    PoolHome,
    PoolRecord,
    ProcessId,
    find_home,
    read_pool,
    running_pool,
    write_pool,
)

RECORD = PoolRecord(name="p", version="1", front_door="http://127.0.0.1:1", started_at="now")


def test_a_process_is_pid_and_create_time() -> None:
    me = ProcessId.of("me", os.getpid())
    assert me.alive()
    assert not replace(me, create_time=me.create_time - 1).alive(), "the pid is ours, the process is not"


def test_pool_json_round_trip(tmp_path) -> None:
    home = PoolHome(tmp_path)
    assert read_pool(home) is None
    record = RECORD.with_process(ProcessId.of("supervisor", os.getpid()))
    write_pool(home, record)
    assert read_pool(home) == record and running_pool(home) == record
    assert home.pool_json.stat().st_mode & 0o777 == 0o600
    write_json(home.pool_json, read_json(home.pool_json) | {"of": "a later version"})
    assert read_pool(home) == record


def test_a_dead_pool_is_not_up(tmp_path) -> None:
    home = PoolHome(tmp_path)
    mine = ProcessId.of("supervisor", os.getpid())
    write_pool(home, RECORD.with_process(replace(mine, create_time=1.0)))
    with pytest.raises(NotFound) as missing:
        running_pool(home)
    assert missing.value.code == "pool-not-up"


def test_where_the_home_is(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("MOORAGE_HOME", str(tmp_path / "from-env"))
    assert find_home().root == tmp_path / "from-env"
    assert find_home(tmp_path / "given").root == tmp_path / "given"
    monkeypatch.delenv("MOORAGE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_home().root == tmp_path / ".moorage"


def test_a_home_too_long_for_sockets_is_refused(tmp_path) -> None:
    with pytest.raises(InvalidRequest) as refused:
        PoolHome(tmp_path / ("x" * 90)).make()
    assert refused.value.code == "home-too-long"


def test_rays_folder_keeps_its_sockets_short_and_private(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    long = ClusterPaths(tmp_path / ("y" * 60))
    long.make()
    assert long.root not in long.ray_temp.parents
    assert long.ray_temp.parent.stat().st_mode & 0o077 == 0
    assert ClusterPaths(tmp_path / ("z" * 60)).ray_temp != long.ray_temp


SHELL = {
    "PATH": "/bin",
    "LC_ALL": "C",
    "AWS_SECRET_ACCESS_KEY": "s",
    "GITHUB_TOKEN": "s",
    "PYTHONSAFEPATH": "1",
    "RAY_ADDRESS": "other:1",
    "RAY_AUTH_TOKEN": "s",
    "RAY_JOB_CONFIG_JSON_ENV_VAR": "{}",
    "RAY_worker_register_timeout_seconds": "7",
    "MOORAGE_TOKEN": "s",
}


def test_only_what_is_allowed_reaches_children(tmp_path) -> None:
    """S10: jobs inherit this; what the operator's shell holds must not."""
    assert plain_environment(SHELL).keys() == {"PATH", "LC_ALL", "RAY_worker_register_timeout_seconds"}
    assert "GITHUB_TOKEN" in plain_environment(SHELL, passed=["GITHUB_TOKEN"])


def test_rays_environment(tmp_path) -> None:
    home = PoolHome(tmp_path)
    assert "RAY_AUTH_MODE" not in ray_environment(home, local=False, given=SHELL)
    home.ray_token.write_text("t")
    found = ray_environment(home, local=True, given=SHELL)
    assert (found["RAY_AUTH_MODE"], found["RAY_AUTH_TOKEN_PATH"]) == ("token", str(home.ray_token))
    assert found["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"
    assert found["RAY_worker_register_timeout_seconds"] == "7", "the operator's tuning wins"


def test_a_supervisor_writes_again_what_the_disk_did_not_take_or_somebody_tore(tmp_path, monkeypatch) -> None:
    """G6: neither a full disk nor a damaged pool.json ends the pool."""
    home = PoolHome(tmp_path)
    home.make()
    ours = supervisor.Supervisor(home, up._first_record(home, up.PoolOptions()))
    with monkeypatch.context() as full:

        def no_room(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        full.setattr(supervisor, "write_pool", no_room)
        ours._change(error="something happened")
    assert read_pool(home) is None
    ours._probe()
    assert read_pool(home) == ours._record and ours._record.error == "something happened"
    home.pool_json.write_text('{"name": "p", "proc')
    ours._next_probe = 0.0
    ours._probe()
    assert read_pool(home) == ours._record


def test_up_standby_reaches_the_control_plane(tmp_path) -> None:
    home = PoolHome(tmp_path)
    for asked in (True, False):
        settings = dict(up._first_record(home, up.PoolOptions(standby=asked)).settings)
        assert ("--standby" in supervisor.children_of(home, settings)["control"].command) is asked


def test_a_torn_pool_json_is_said_and_set_aside_by_up(tmp_path) -> None:
    home = PoolHome(tmp_path)
    home.make()
    home.pool_json.write_text("{torn")
    with pytest.raises(DataError, match="is damaged") as caught:
        running_pool(home)
    assert caught.value.code == "state-file-damaged"
    with home.supervisor_lock.open("w") as lock:  # a supervisor that lives writes it again itself
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DataError):
            up._set_aside_damaged(home, lambda _: None)
    told: list[str] = []
    up._set_aside_damaged(home, told.append)
    assert read_pool(home) is None and "pool.json.damaged" in told[0]
    assert home.pool_json.with_name("pool.json.damaged").read_text() == "{torn"
    home.ray_json.write_text("[1, 2")
    assert read_json(home.ray_json) is None, "what Ray's own process writes again counts as not there"
