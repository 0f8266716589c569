"""S4, S9: where plain Ray code of a job is put within its lease, and that a process without a lease is left alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage.cluster import autobind, binding, joining, leasegroup
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
        with pytest.raises(InvalidRequest, match="fits into no worker") as refused:
            check_fits(held, gpus, cpus)
        assert "2 workers, the largest of 2 GPUs and 0.5 CPUs" in refused.value.why


@pytest.mark.parametrize(
    ("held", "cpus", "why", "ask"),
    [
        (lease(), 1, "no workers", {}),
        (lease(("a", (), 0)), 4, "1 worker, of 0 GPUs and 1 CPUs", {"cpus_per_worker": "4"}),
    ],
)
def test_who_asked_for_no_gpu_reads_how_to(held: LeaseView, cpus: float, why: str, ask: Any) -> None:
    """What it says can be pasted, and is a lease that holds the task."""
    with pytest.raises(InvalidRequest) as refused:
        check_fits(held, 0.5, cpus)
    assert why in refused.value.why
    told = json.loads(refused.value.todo.split("'")[1])
    assert told == {"workers": "1", "gpus_per_worker": "0.5", **ask}


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
    "import sys; print([m for m in ('ray', 'moorage', 'importlib.metadata') if m in sys.modules]);"
    "import importlib.machinery as m; own = m.PathFinder.find_spec;"
    "m.PathFinder.find_spec = lambda name, *more: None if name == 'ray' else own(name, *more)\n"
    "try: import ray\nexcept ImportError: pass\n"
    "print(any(type(f).__name__ == '_Importing' for f in sys.meta_path))"
)


def test_a_job_is_hooked_when_it_imports_ray_and_others_are_not(tmp_path: Path) -> None:
    """Before that nothing is loaded: each process of a job would pay for it."""
    under = {"MOORAGE_LEASE": encode(lease(("a", (0,), 1000))), "MOORAGE_BIND": "on"}
    assert python(HOOKED, tmp_path, **under) == "[]\nTrue"
    assert python(HOOKED, tmp_path, **(under | {"MOORAGE_BIND": "off"})) == "[]\nFalse"
    assert python(HOOKED, tmp_path) == "[]\nFalse"


SENT = (
    "import ray, ray.serve, pickle;"
    "from ray import cloudpickle;"
    "from ray.util.placement_group import placement_group, remove_placement_group;"
    "ours = [placement_group, remove_placement_group, ray.init, ray.shutdown, ray.serve.shutdown];"
    "ours += [ray.cluster_resources, ray.available_resources, ray.util.get_current_placement_group];"
    "print([pickle.loads(cloudpickle.dumps(one)) is one and hasattr(one, '__wrapped__') for one in ours])"
)


def test_what_is_wrapped_can_be_sent_with_a_task_that_uses_it(tmp_path: Path) -> None:
    """As a reference, as Ray's own would be."""
    under = {"MOORAGE_LEASE": encode(lease(("a", (0,), 1000))), "MOORAGE_BIND": "on"}
    assert python(SENT, tmp_path, **under) == str([True] * 8)


ENVS = """
import ray
from ray.runtime_env import RuntimeEnv
def f(): pass
class A: pass
for env in ({"env_vars": {"PYTHONPATH": "/x", "B": "1"}}, RuntimeEnv(env_vars={"PYTHONPATH": "/x", "B": "1"})):
    found = [
        ray.remote(runtime_env=env)(f)._runtime_env,
        ray.remote(runtime_env=env)(A).__ray_metadata__.runtime_env,
    ]
    assert env["env_vars"] == {"PYTHONPATH": "/x", "B": "1"}, "what was given is left as it is"
    for one in found:
        print(type(one).__name__, one["env_vars"]["PYTHONPATH"], one["env_vars"]["B"])
print(ray.remote(runtime_env={"env_vars": {"B": "1"}})(f)._runtime_env.get("env_vars"))
print(ray.remote(f)._runtime_env)
"""


def test_a_path_that_a_task_is_given_goes_behind_ours(tmp_path: Path) -> None:
    """Or a process of the job knows of no lease, and what it starts waits for ever."""
    under = {"MOORAGE_LEASE": encode(lease(("a", (0,), 1000))), "MOORAGE_BIND": "on"}
    plain = python(ENVS, tmp_path, **under | {"MOORAGE_BIND": "off"}).splitlines()
    bound = python(ENVS, tmp_path, **under).splitlines()
    assert plain[:4] == ["RuntimeEnv /x 1"] * 4
    assert bound[:4] == [f"RuntimeEnv {joining.INJECT}:/x 1"] * 4
    assert bound[4:] == plain[4:]


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


@pytest.fixture
def under_a_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOORAGE_LEASE", encode(lease(("a", (0,), 1000))))
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")


def init_of() -> Any:
    worker = ModuleType("ray._private.worker")
    worker.init = lambda address=None, **options: (address, options)  # type: ignore[attr-defined]
    worker.shutdown = lambda: None  # type: ignore[attr-defined]
    autobind.patch(worker)
    return worker.init


def test_a_size_given_to_ray_init_joins_the_pool(
    under_a_lease: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """S9: as Ray's own examples have it, which Ray refuses beside a cluster."""
    init = init_of()
    assert init(num_cpus=4, num_gpus=0, namespace="n") == (None, {"namespace": "n"})
    assert "ray.init(num_cpus=4, num_gpus=0) joins the pool" in capsys.readouterr().err
    assert init("auto", object_store_memory=10**9) == ("auto", {})
    assert "object_store_memory" in capsys.readouterr().err
    init(namespace="n")
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("address", "options"),
    [
        ("local", {"num_cpus": 4}),  # a cluster of its own, in the job
        ("10.0.0.9:6379", {"num_cpus": 4}),
        (None, {"num_cpus": 4, "local_mode": True}),
        (None, {"labels": {"rack": "r1"}}),  # Ray refuses, which is better than to wait for ever
    ],
)
def test_what_ray_init_means_otherwise_is_left(under_a_lease: None, address: Any, options: Any) -> None:
    assert init_of()(address, **options) == (address, options)


def test_custom_resources_given_to_ray_init_must_be_there(
    under_a_lease: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Work that needs what no node has would wait for ever, and Ray's own refusal does not say what to do."""
    import ray

    left: list[str] = []
    there = [
        {"Alive": True, "Resources": {"CPU": 8.0, "disk": 2.0}},
        {"Alive": False, "Resources": {"tpu": 1.0}},
    ]
    monkeypatch.setattr(ray, "nodes", lambda: there)
    monkeypatch.setattr(ray, "shutdown", lambda: left.append("left"))
    init = init_of()
    assert init(num_gpus=2, resources={"disk": 1}, namespace="n") == (None, {"namespace": "n"})
    assert not left
    with pytest.raises(InvalidRequest, match="has: special, tpu") as refused:
        init(resources={"disk": 1, "tpu": 1, "special": 1})
    assert refused.value.code == "no-such-resource" and left == ["left"]
    assert "ray start --resources" in refused.value.todo


def test_ray_init_outside_of_a_job_is_rays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MOORAGE_LEASE", raising=False)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert init_of()(num_cpus=4) == (None, {"num_cpus": 4})


def test_the_cluster_of_a_job_has_the_gpus_of_its_lease(
    under_a_lease: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`num_workers=int(ray.cluster_resources()["GPU"])` is what scripts say."""
    state: Any = ModuleType("ray._private.state")
    left = {"CPU": 8.0, "GPU": 12.0, "GPU_group_g1": 1.0, "GPU_group_0_g1": 1.0, "GPU_group_other": 4.0}
    known = {"CPU": 16.0, "GPU": 32.0, "GPU_group_g1": 1.0}
    state.cluster_resources = lambda: dict(known)
    state.available_resources = lambda: dict(left)
    autobind.patch(state)
    lease = binding.current()
    assert lease is not None
    monkeypatch.setattr(joining, "here", lambda held: True)
    bundles = (("a", 1.0),)
    groups = [
        SimpleNamespace(id="g1", name=f"{leasegroup.PREFIX}l", bundles=bundles),
        SimpleNamespace(id="g2", name="own", bundles=bundles),
    ]
    monkeypatch.setattr(leasegroup, "_groups", lambda: groups)
    monkeypatch.setattr(leasegroup, "taken", lambda: [("a", lease.gpus)])
    assert state.cluster_resources() == {**known, "GPU": lease.gpus}
    assert state.available_resources() == {**left, "GPU": 1.0}, (
        "of what the lease's group covers one is unused"
    )
    del left["GPU_group_g1"]
    assert "GPU" not in state.available_resources(), "as Ray says it of nothing"
    del known["GPU_group_g1"]
    assert state.available_resources()["GPU"] == 1.0, "made just now: nothing can be in it"
    monkeypatch.setattr(joining, "here", lambda held: False)
    assert state.available_resources() == left, "a cluster of its own is what Ray says"
    monkeypatch.delenv("MOORAGE_LEASE")
    assert state.cluster_resources()["GPU"] == 32.0


def test_the_leases_group_is_none_that_a_library_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray Data and vLLM put their work into the group that they run in."""
    module: Any = ModuleType("ray.util.placement_group")
    module.placement_group = module.remove_placement_group = lambda *given: None
    around: list[Any] = [None]
    module.get_current_placement_group = lambda: around[0]
    autobind.patch(module)
    asked = [SimpleNamespace(id="g1", name=f"{leasegroup.PREFIX}l"), SimpleNamespace(id="g2", name="own")]
    looks: list[int] = []
    monkeypatch.setattr(leasegroup, "_groups", lambda: looks.append(1) or asked)
    monkeypatch.setattr(leasegroup, "_known", {})
    assert module.get_current_placement_group() is None and not looks
    for name, shown in (("g1", False), ("g2", True), ("g1", False)):
        around[0] = SimpleNamespace(id=SimpleNamespace(hex=lambda name=name: name))
        assert (module.get_current_placement_group() is around[0]) is shown
    assert len(looks) == 2, "once for each"


def test_serve_shutdown_ends_what_the_job_deployed(
    under_a_lease: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """V1: Serve is one for all teams; `serve.shutdown()` of one job used to take everybody's endpoints with it."""
    import ray

    ended: list[str] = []
    serve = ModuleType("ray.serve.api")
    serve.shutdown = lambda: ended.append("all")  # type: ignore[attr-defined]
    serve.shutdown_async = None  # type: ignore[attr-defined]
    serve.delete = ended.append  # type: ignore[attr-defined]
    autobind.patch(serve)
    monkeypatch.setattr(joining, "_own_apps", lambda: ["mine"])
    serve.shutdown()
    assert ended == ["mine"]
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(joining, "here", lambda held: False)
    serve.shutdown()
    assert ended == ["mine", "all"], "on a cluster of its own it is the job's"
    monkeypatch.delenv("MOORAGE_LEASE")
    serve.shutdown()
    assert ended == ["mine", "all", "all"]


def test_the_apps_of_a_job_are_those_its_driver_deployed(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    from moorage.cluster import rayapi

    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_job_id=lambda: "0a"))
    monkeypatch.setattr(rayapi, "serve_deployers", lambda: {"b": "0a", "other": "0b", "a": "0a"})
    assert joining._own_apps() == ["a", "b"]


class Machine:
    """psutil with these processes: pid -> (parent, name, job)."""

    Error = OSError

    def __init__(self, processes: dict[int, tuple[int, str, str]]) -> None:
        self.processes = processes

    def process_iter(self, attributes: Any = None) -> Any:
        for pid, (parent, name, job) in self.processes.items():
            variables = {"MOORAGE_JOB_ID": job} if job else {}
            yield SimpleNamespace(
                pid=pid, info={"ppid": parent, "name": name}, environ=lambda given=variables: given
            )


MACHINE = Machine(
    {
        1: (0, "init", ""),
        10: (1, "gcs_server", ""),
        11: (1, "raylet", ""),
        12: (11, "ray::JobSupervisor", ""),
        13: (12, "python", "mine"),  # the entrypoint
        14: (11, "ray::task", "mine"),  # a task of the job in the pool
        15: (13, "ray", "mine"),  # `ray stop`
        20: (1, "gcs_server", "mine"),
        21: (1, "raylet", "mine"),
        22: (21, "ray::task", ""),  # its title has overwritten its variables
        23: (1, "python", "mine"),  # a dashboard
        24: (13, "raylet", "mine"),  # `ray start --block`
        30: (1, "raylet", "theirs"),
        31: (30, "ray::task", "theirs"),
    }
)


def test_ray_stop_in_a_job_ends_what_the_job_started(
    under_a_lease: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """S9: examples of Ray's end with it; it used to end the pool's Ray on that machine, and all jobs there."""
    ended: list[list[int]] = []
    scripts: Any = ModuleType("ray.scripts.scripts")
    scripts.psutil = Machine(MACHINE.processes)

    def stop(force: bool, grace_period: int) -> None:
        ended.append([one.pid for one in scripts.psutil.process_iter(["name", "cmdline"])])

    scripts.stop = SimpleNamespace(callback=stop)
    autobind.patch(scripts)
    monkeypatch.setenv("MOORAGE_JOB_ID", "mine")
    scripts.stop.callback(force=True, grace_period=1)
    assert ended.pop() == [20, 21, 22, 23, 24] and "the 5 processes" in capsys.readouterr().err
    monkeypatch.setenv("MOORAGE_JOB_ID", "another")
    scripts.stop.callback(force=True, grace_period=1)
    assert not ended, "nothing to stop, and Ray's own is not asked"
    monkeypatch.delenv("MOORAGE_LEASE")
    scripts.stop.callback(force=True, grace_period=1)
    assert ended == [list(MACHINE.processes)], "outside of a job it is Ray's"


def test_a_job_without_a_name_owns_nothing() -> None:
    assert joining.own_processes(MACHINE, "") == set()


def test_a_cluster_that_a_job_starts_itself_is_not_the_lease_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tasks would wait there for nodes of the pool."""
    import ray

    asked: list[str] = []

    def connected(address: str, *nodes: str) -> bool:
        def found() -> list[dict[str, str]]:
            asked.append(address)
            return [{"NodeID": node} for node in nodes]

        monkeypatch.setattr(ray, "is_initialized", lambda: True)
        monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address=address))
        monkeypatch.setattr(ray, "nodes", found)
        return joining.here(lease(("a", (0,), 1000)))

    monkeypatch.setattr(joining, "_clusters", {})
    assert connected("pool:1", "a", "b") and connected("pool:1", "a", "b")
    assert not connected("own:2", "x")
    assert asked == ["pool:1", "own:2"], "asked once of each"


@pytest.mark.parametrize(
    ("job", "asked", "taken"),
    [
        ({"env_vars": {"PYTHONPATH": "INJECT:${PYTHONPATH}", "MOORAGE_URL": "u"}}, {}, True),
        ({"env_vars": {"PYTHONPATH": "INJECT:${PYTHONPATH}"}, "working_dir": "gcs://w.zip"}, {}, True),
        ({"env_vars": {"PYTHONPATH": "INJECT:/the/jobs/own"}}, {}, False),
        ({"env_vars": {"PYTHONPATH": "INJECT:${PYTHONPATH}", "A": "2"}}, {"A": "1"}, False),
        ({"env_vars": {"PYTHONPATH": "/elsewhere"}}, {}, False),
        ({}, {}, False),
    ],
)
def test_a_path_that_a_script_gives_ray_goes_beside_ours(
    under_a_lease: None, monkeypatch: pytest.MonkeyPatch, job: Any, asked: dict[str, str], taken: bool
) -> None:
    """Ray refuses a variable that is in the job's environment too; that it is there is not the script's doing."""
    text = json.dumps({"runtime_env": job}).replace("INJECT", joining.INJECT)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", text)
    monkeypatch.delenv("RAY_OVERRIDE_JOB_RUNTIME_ENV", raising=False)
    given = {"env_vars": {"PYTHONPATH": "/theirs", **asked}}
    worker = ModuleType("ray._private.worker")
    worker.shutdown = lambda: None  # type: ignore[attr-defined]
    worker.init = lambda address=None, **options: (  # type: ignore[attr-defined]
        options["runtime_env"]["env_vars"]["PYTHONPATH"],
        os.environ.get("RAY_OVERRIDE_JOB_RUNTIME_ENV"),
    )
    autobind.patch(worker)
    path = f"{joining.INJECT}:/theirs" if taken else "/theirs"
    assert worker.init(runtime_env=given) == (path, "1" if taken else None)
    assert "RAY_OVERRIDE_JOB_RUNTIME_ENV" not in os.environ and given["env_vars"]["PYTHONPATH"] == "/theirs"
