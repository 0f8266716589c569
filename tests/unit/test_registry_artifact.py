"""Artifacts are sealed and hold nothing that could run code (T6, G4)."""

from __future__ import annotations

import pickle  # noqa: TID251 - made here only to be refused
import zipfile
from pathlib import Path

import pytest
import torch

from moorage.errors import InvalidRequest
from moorage.runtime.registry import sealed
from moorage.runtime.registry.artifact import UnsafeArtifact, adopt, load_model, save_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save_model(tmp_path / "model", {"w": torch.arange(4.0)}, {"hparams": {"hidden": [4]}})
    return tmp_path / "model"


def test_a_saved_model_loads_as_it_was(model: Path) -> None:
    weights, card, seal = load_model(model)
    assert torch.equal(weights["w"], torch.arange(4.0)) and card == {"hparams": {"hidden": [4]}}
    assert set(seal.files) == {"model.safetensors", "model.json"}


def test_a_changed_byte_is_noticed_before_anything_is_parsed(model: Path) -> None:
    (model / "model.json").write_text("{ not json")
    with pytest.raises(sealed.Damaged, match=r"model\.json"):
        load_model(model)


def torch_zip(path: Path) -> None:
    torch.save({"w": torch.zeros(2)}, path)


def plain_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"w": 1}))


def archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as out:
        out.writestr("a", "b")


@pytest.mark.parametrize("write", [torch_zip, plain_pickle, archive])
@pytest.mark.parametrize("name", ["weights.pt", "weights.pkl", "model.safetensors", "notes.json"])
def test_pickles_and_archives_are_refused_under_any_name(
    model: Path, tmp_path: Path, write: object, name: str
) -> None:
    assert callable(write)
    write(model / name)
    (model / sealed.MANIFEST).unlink()  # as from a user who brought the folder from elsewhere
    with pytest.raises(UnsafeArtifact):
        adopt(model, tmp_path / "root")
    assert not list((tmp_path / "root").glob("*")) if (tmp_path / "root").exists() else True


def test_a_resealed_pickle_is_refused_on_load_too(tmp_path: Path) -> None:
    sealed.commit(tmp_path / "m", lambda work: plain_pickle(work / "model.pkl"))
    with pytest.raises(UnsafeArtifact):
        load_model(tmp_path / "m")


def test_a_link_out_of_the_folder_is_refused(model: Path, tmp_path: Path) -> None:
    (model / "readme.md").symlink_to("/etc/hostname")
    with pytest.raises(UnsafeArtifact, match="link"):
        adopt(model, tmp_path / "root")


def test_truncated_weights_are_refused_even_without_a_manifest(model: Path, tmp_path: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    (model / sealed.MANIFEST).unlink()
    with pytest.raises(UnsafeArtifact, match="safetensors"):
        adopt(model, tmp_path / "root")


def test_adopting_twice_is_one_copy(model: Path, tmp_path: Path) -> None:
    first, seal = adopt(model, tmp_path / "root")
    again, _ = adopt(model, tmp_path / "root")
    assert first == again and first.name == seal.sha256
    assert [p.name for p in (tmp_path / "root").iterdir()] == [seal.sha256]


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidRequest, match="not a model directory"):
        adopt(tmp_path / "empty", tmp_path / "root")
    with pytest.raises(InvalidRequest, match="no model directory"):
        adopt(tmp_path / "nowhere", tmp_path / "root")


def test_a_manifest_further_down_is_a_file_like_any_other(model: Path, tmp_path: Path) -> None:
    """G4: only the seal's own manifest may be outside the seal."""
    path, seal = adopt(model, tmp_path / "root")
    (path / "inner").mkdir()
    (path / "inner" / sealed.MANIFEST).write_text("{}")
    with pytest.raises(sealed.Damaged, match="does not hold"):
        sealed.verify(path)
    other = tmp_path / "other"
    sealed.commit(other, lambda work: _with_inner_manifest(model, work), {"kind": "model"})
    assert f"inner/{sealed.MANIFEST}" in adopt(other, tmp_path / "root")[1].files
    assert seal.sha256 != sealed.verify(other).sha256


def _with_inner_manifest(model: Path, work: Path) -> None:
    for name in ("model.safetensors", "model.json"):
        (work / name).write_bytes((model / name).read_bytes())
    (work / "inner").mkdir()
    (work / "inner" / sealed.MANIFEST).write_text("{}")
