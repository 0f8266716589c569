"""Checkpoints are atomic, verified and survive damage and full disks (T2)."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moorage.errors import DataError
from moorage.runtime.registry import sealed
from moorage.train.checkpoint import CheckpointError, CheckpointStore
from moorage.train.pack import pack, unpack


def state_of(step: int) -> dict[str, object]:
    return {
        "net": {"w": torch.full((50, 50), float(step))},
        "groups": [{"lr": 0.1, "params": [0, 1]}],
        "n": step,
    }


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    made = CheckpointStore(tmp_path / "run", keep=3)
    for step in (10, 20, 30):
        made.save(step, state_of(step))
    return made


def newest_step(store: CheckpointStore) -> int:
    found = store.latest()
    assert found is not None
    assert torch.equal(found.state()["net"]["w"], torch.full((50, 50), float(found.step)))
    return found.step


def test_the_newest_checkpoint_comes_back_with_its_state(store: CheckpointStore) -> None:
    found = store.latest()
    assert found is not None and found.step == 30
    state = found.state()
    assert state["groups"] == [{"lr": 0.1, "params": [0, 1]}] and state["n"] == 30
    assert newest_step(store) == 30


def test_only_the_newest_are_kept(store: CheckpointStore) -> None:
    store.save(40, state_of(40))
    assert store.steps() == [20, 30, 40]
    assert [p.name for p in store.root.iterdir() if p.name.startswith(".")] == []


def test_an_empty_store_has_no_latest(tmp_path: Path) -> None:
    assert CheckpointStore(tmp_path / "none").latest() is None


@pytest.mark.parametrize(
    "damage", ["truncate", "flip", "remove", "manifest", "extra", "empty-manifest", "other-step"]
)
def test_a_damaged_newest_falls_back_to_the_previous_and_says_so(tmp_path: Path, damage: str) -> None:
    told: list[tuple[int, str]] = []
    store = CheckpointStore(tmp_path, on_damage=lambda step, why: told.append((step, why)))
    for step in (10, 20):
        store.save(step, state_of(step))
    weights = store.path(20) / "state.safetensors"
    data = weights.read_bytes()
    if damage == "truncate":
        weights.write_bytes(data[:-100])
    elif damage == "flip":
        weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "remove":
        weights.unlink()
    elif damage == "manifest":
        (store.path(20) / sealed.MANIFEST).unlink()
    elif damage == "extra":
        (store.path(20) / "extra.bin").write_bytes(b"x")
    elif damage == "empty-manifest":
        (store.path(20) / sealed.MANIFEST).write_bytes(b"")
    else:
        os.rename(store.path(20), store.path(25))
    assert newest_step(store) == 10
    assert [step for step, _ in told] == [25 if damage == "other-step" else 20]
    assert told[0][1]


def test_by_default_the_fallback_is_a_logged_warning(
    store: CheckpointStore, caplog: pytest.LogCaptureFixture
) -> None:
    (store.path(30) / "state.json").write_bytes(b"{")
    assert newest_step(store) == 20
    assert any("step 30" in record.message and record.levelname == "WARNING" for record in caplog.records)


@contextmanager
def file_size_limit(limit: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def test_no_room_for_a_checkpoint_leaves_the_previous_usable(store: CheckpointStore) -> None:
    """Bad input: disk full while a checkpoint is written, the portable way (a file size limit)."""
    with file_size_limit(4000), pytest.raises(CheckpointError) as caught:
        store.save(40, state_of(40))
    assert caught.value.code == "checkpoint-disk-full"
    assert "step 40" in str(caught.value) and "step 30 is still usable" in str(caught.value)
    assert newest_step(store) == 30
    assert sorted(p.name for p in store.root.iterdir()) == [store.path(s).name for s in (10, 20, 30)]
    store.save(40, state_of(40))
    assert newest_step(store) == 40


def test_a_really_full_disk_leaves_the_previous_usable(tmp_path: Path) -> None:
    """Bad input: disk full, on a real filesystem of 64 KiB, in a mount namespace of a process of its own."""
    script = textwrap.dedent("""
        import sys, torch
        from moorage.train.checkpoint import CheckpointError, CheckpointStore
        store = CheckpointStore(sys.argv[1] + "/run", keep=3)
        store.save(1, {"w": torch.zeros(4000)})
        try:
            store.save(2, {"w": torch.zeros(40000)})
        except CheckpointError as error:
            print(error.code, store.latest().step, [p.name for p in store.root.iterdir()])
    """)
    mount = 'mount -t tmpfs -o size=64k tmpfs "$1" || exit 77; exec "$2" -c "$3" "$1"'
    command = ["unshare", "--mount", "sh", "-c", mount, "sh", str(tmp_path), sys.executable, script]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        pytest.skip("no unshare on this machine: the file size limit test covers the same path")
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"mounting is not permitted here: {done.stderr.strip()[:100]}")
    assert done.stdout.split(maxsplit=2) == ["checkpoint-disk-full", "1", "['step-000000001']\n"], done.stderr


def test_a_crash_in_the_middle_of_writing_is_invisible(store: CheckpointStore) -> None:
    """SIGKILL between the files and the rename: nothing but a temporary folder, which `tidy` removes."""
    script = textwrap.dedent("""
        import os, signal, sys, torch
        from moorage.runtime.registry import sealed
        from moorage.train.checkpoint import CheckpointStore
        sealed._replace = lambda work, final: os.kill(os.getpid(), signal.SIGKILL)
        CheckpointStore(sys.argv[1]).save(40, {"w": torch.zeros(10)})
    """)
    done = subprocess.run([sys.executable, "-c", script, str(store.root)], capture_output=True, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert newest_step(store) == 30
    assert len(store.tidy()) == 1
    assert sorted(p.name for p in store.root.iterdir()) == [store.path(s).name for s in (10, 20, 30)]


def test_saving_a_step_again_replaces_it(store: CheckpointStore) -> None:
    store.save(30, state_of(30), {"again": True})
    found = store.latest()
    assert found is not None and found.meta["again"] is True


def test_no_pickle_in_or_out(store: CheckpointStore) -> None:
    with pytest.raises(DataError, match="object"):
        store.save(40, {"hook": object()})
    assert store.steps() == [10, 20, 30]
    for path in store.path(30).iterdir():
        assert path.suffix in {".json", ".safetensors"}
        if path.suffix == ".json":
            json.loads(path.read_bytes())


trees = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(st.one_of(st.text(max_size=5), st.integers()), inner, max_size=4),
    ),
    max_leaves=12,
)


@given(trees)
@settings(max_examples=100, deadline=None)
def test_any_plain_structure_survives_the_round_trip_through_json(tree: object) -> None:
    tensors, skeleton = pack({"tree": tree, "t": torch.arange(3)})
    back = unpack(tensors, json.loads(json.dumps(skeleton)))
    assert back["tree"] == tree and torch.equal(back["t"], torch.arange(3))


def test_tensors_that_share_storage_are_saved_apart(tmp_path: Path) -> None:
    shared = torch.arange(6.0)
    CheckpointStore(tmp_path).save(1, {"a": shared, "b": shared.view(2, 3)})
    found = CheckpointStore(tmp_path).latest()
    assert found is not None and found.state()["b"].shape == (2, 3)
