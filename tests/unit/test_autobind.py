"""S4, S9: where plain Ray code of a job is put within its lease, and that a process without a lease is left alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage.cluster import binding
from moorage.cluster.binding import LeaseView, WorkerView, bundle_selectors, check_fits, encode
from moorage.errors import InvalidRequest

INJECT = Path(binding.__file__).resolve().parent / "inject"


def lease(*workers: tuple[str, tuple[int, ...], int], cpu: int = 1000) -> LeaseView:
    """(node, devices, milli-GPU of each) per worker."""
    return LeaseView(
        lease_id="l",
        epoch=1,
        head=None,
        workers=tuple(
            WorkerView(
                node=node, ray_node_id=node, devices=devices, milli_gpu=milli, gpu_mib=0, milli_cpu=cpu
            )
            for node, devices, milli in workers
        ),
    )


def nodes(found: list[dict[str, str]] | None) -> list[str]:
    assert found is not None
    return [one.get("ray.io/node-id", "") for one in found]


def test_bundles_go_where_the_lease_has_room() -> None:
    held = lease(("a", (0,), 1000), ("a", (1,), 1000), ("b", (3,), 1000))
    assert nodes(bundle_selectors(held, [{"GPU": 1}, {"GPU": 2}, {"CPU": 4}])) == ["b", "a", ""]
    assert bundle_selectors(held, [{"CPU": 1}]) is None
    assert nodes(bundle_selectors(held, [{"GPU": 1}, {"GPU": 1}], one_node=True)) == ["a", "a"]


def test_fractions_share_a_device_only_if_they_fit() -> None:
    held = lease(("a", (0,), 600), ("a", (1,), 600), ("b", (0,), 600))
    assert sorted(nodes(bundle_selectors(held, [{"GPU": 0.6}] * 3))) == ["a", "a", "b"]
    assert nodes(bundle_selectors(held, [{"GPU": 0.3}] * 6)).count("b") == 2
    with pytest.raises(InvalidRequest, match="does not fit") as refused:
        bundle_selectors(held, [{"GPU": 0.4}] * 4)  # 1.6 of 1.8, but 0.2 is left on each device
    assert refused.value.code == "lease-too-small"


def test_what_other_groups_hold_is_left_to_them_while_there_is_room() -> None:
    held = lease(("a", (0,), 1000), ("b", (0,), 1000))
    first = nodes(bundle_selectors(held, [{"GPU": 1}]))
    second = nodes(bundle_selectors(held, [{"GPU": 1}], taken=[(first[0], 1.0)]))
    assert {*first, *second} == {"a", "b"}
    full = [(first[0], 1.0), (second[0], 1.0)]
    assert nodes(bundle_selectors(held, [{"GPU": 1}, {"GPU": 1}], taken=full)) == ["a", "b"], "waits for them"


@pytest.mark.parametrize(
    ("bundles", "one_node"),
    [([{"GPU": 4}], False), ([{"GPU": 1}] * 4, False), ([{"GPU": 1}] * 3, True)],
)
def test_what_does_not_fit_is_refused_at_once(bundles: list[dict[str, float]], one_node: bool) -> None:
    held = lease(("a", (0,), 1000), ("a", (1,), 1000), ("b", (3,), 1000))
    with pytest.raises(InvalidRequest) as refused:
        bundle_selectors(held, bundles, one_node=one_node)
    assert refused.value.code == "lease-too-small"


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from([250, 300, 600, 1000])), min_size=1, max_size=8
    ),
    st.lists(st.sampled_from([0.0, 0.25, 0.3, 0.5, 0.6, 1.0, 2.0]), min_size=1, max_size=8),
)
def test_no_node_is_asked_for_more_than_the_lease_has_there(
    workers: list[tuple[str, int]], asked: list[float]
) -> None:
    held = lease(*((node, (i,), milli) for i, (node, milli) in enumerate(workers)))
    try:
        found = bundle_selectors(held, [{"GPU": one} for one in asked])
    except InvalidRequest:
        return
    if found is None:
        assert not any(asked)
        return
    for node in "abc":
        put = sum(
            one for one, selector in zip(asked, found, strict=True) if selector.get("ray.io/node-id") == node
        )
        assert put <= sum(milli for at, milli in workers if at == node) / 1000 + 1e-9
    assert all(bool(selector) == bool(one) for one, selector in zip(asked, found, strict=True))


def test_a_task_must_fit_into_a_worker() -> None:
    held = lease(("a", (0, 1), 1000), ("b", (0,), 1000), cpu=500)
    assert check_fits(held, 2, 0).ray_node_id == "a"
    assert check_fits(held, 1, 0.5).ray_node_id == "a"
    for gpus, cpus in ((3, 0.0), (1, 0.6)):
        with pytest.raises(InvalidRequest, match="fits into no worker"):
            check_fits(held, gpus, cpus)


def python(code: str, folder: Path, **variables: str) -> str:
    """A Python process as a job has it."""
    path = os.pathsep.join([str(INJECT), variables.pop("PYTHONPATH", ""), os.environ.get("PYTHONPATH", "")])
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MOORAGE_")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=plain | {"PYTHONPATH": path} | variables,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


HOOKED = (
    "import sys; print(any(type(f).__name__ == '_Importing' for f in sys.meta_path), 'ray' in sys.modules)"
)


def test_a_job_is_hooked_and_others_are_not(tmp_path: Path) -> None:
    under = {"MOORAGE_LEASE": encode(lease(("a", (0,), 1000))), "MOORAGE_BIND": "on"}
    assert python(HOOKED, tmp_path, **under) == "True False"
    assert python(HOOKED, tmp_path, **(under | {"MOORAGE_BIND": "off"})) == "False False"
    assert python(HOOKED, tmp_path) == "False False"


def test_a_site_of_the_users_own_still_runs(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "sitecustomize.py").write_text("import sys; sys.mine = True\n")
    assert python("import sys; print(sys.mine)", tmp_path, PYTHONPATH=str(tmp_path / "own")) == "True"


@pytest.mark.parametrize("named", [False, True])
def test_the_working_directory_is_on_the_path_only_if_it_was_named(tmp_path: Path, named: bool) -> None:
    """`${PYTHONPATH}` of a node that has none leaves an empty entry behind. Ray names a job's working_dir, which is
    where its processes run: modules there must be found."""
    path = [str(tmp_path)] * named + [str(INJECT), ""]
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import os, sys; print(os.getcwd() in sys.path[1:], os.environ['PYTHONPATH'][-1:])",
        ],
        cwd=tmp_path,
        env={"PYTHONPATH": os.pathsep.join(path), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == f"{named} t", done.stderr
