"""What a script does to a cluster of its own, in a pool that is everybody's. Part of `autobind`.

Examples and scripts from a laptop begin with `ray.init(num_gpus=2)` and end with `serve.shutdown()`, some with
`ray stop`. Ray refuses the first beside a cluster that is there already, does the second to all applications of all
teams, and the third to all of Ray on the machine.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from moorage.cluster import binding, following, leasegroup
from moorage.errors import InvalidRequest

INJECT = str(Path(__file__).parent / "inject")
_OVERRIDE = "RAY_OVERRIDE_JOB_RUNTIME_ENV"
_SIZES = ("num_cpus", "num_gpus", "object_store_memory", "resources")
"""How large a cluster of its own a script wants. Not `labels`: work that needs what no node has would wait for ever, so
that Ray's own refusal is better."""
_SERVERS = ("raylet", "gcs_server")
_clusters: dict[str, set[str]] = {}
"""The nodes of a cluster, as far as this process has asked, by the address of its GCS."""
_leased: tuple[str, int, list[dict[str, Any]]] = ("", 0, [])
"""What Ray said of the nodes, and of which lease it was asked."""


def here(lease: binding.LeaseView) -> bool:
    """Whether this process talks to the cluster of its lease: a job may start one of its own (`ray.init("local")`)."""
    import ray

    if not ray.is_initialized():
        ray.init()
    address = ray.get_runtime_context().gcs_address
    leased = {place.ray_node_id for place in (lease.head, *lease.workers) if place is not None}
    if leased.isdisjoint(_clusters.get(address, ())):
        # Nodes that are gone are still named: a lease whose nodes died is no reason to go elsewhere.
        _clusters[address] = {str(node["NodeID"]) for node in ray.nodes()}
    return not leased or not leased.isdisjoint(_clusters[address])


def nodes(lease: binding.LeaseView) -> list[dict[str, Any]]:
    """Ray's nodes as they were when this process first asked under this lease: those of a lease are there by then."""
    global _leased
    if _leased[:2] != (lease.lease_id, lease.epoch):
        import ray

        _leased = (lease.lease_id, lease.epoch, ray.nodes())
    return _leased[2]


def wrap_init(worker: ModuleType) -> None:
    """`ray.init` with a size joins the pool. `worker` is `ray._private.worker`."""
    original = worker.init

    @functools.wraps(original)
    def init(address: str | None = None, **options: Any) -> Any:
        joins = address in (None, "auto") and os.environ.get("RAY_ADDRESS") and not options.get("local_mode")
        given = {name: options[name] for name in _SIZES if options.get(name) is not None}
        if joins and given and binding.current() is not None:
            said = ", ".join(f"{name}={value}" for name, value in given.items())
            say(f"ray.init({said}) joins the pool; what this job may use is its lease")
            options = {name: value for name, value in options.items() if name not in given}
        else:
            given = {}
        if joins and (path := _path_of_both(options.get("runtime_env"))) is not None:
            options["runtime_env"] = _with_path(options["runtime_env"], path)
            with _overriding():
                context = original(address, **options)
        else:
            context = original(address, **options)
        if given.get("resources"):
            _there(given["resources"])
        return context

    worker.init = init  # type: ignore[attr-defined]


def wrap_state(state: ModuleType) -> None:
    """To a job the GPUs of the cluster are those of its lease: scripts take as many workers as `ray.cluster_resources`
    says there are. `state` is `ray._private.state`."""
    cluster, available = state.cluster_resources, state.available_resources

    @functools.wraps(cluster)
    def cluster_resources() -> dict[str, float]:
        found: dict[str, float] = cluster()
        return _of_lease(found, lambda lease: lease.gpus)

    @functools.wraps(available)
    def available_resources() -> dict[str, float]:
        found: dict[str, float] = available()
        return _of_lease(found, lambda lease: leasegroup.free(lease, found, cluster()))

    state.cluster_resources, state.available_resources = cluster_resources, available_resources  # type: ignore[attr-defined]


def _of_lease(found: dict[str, float], gpus: Callable[[binding.LeaseView], float]) -> dict[str, float]:
    lease = following.context()
    if lease is None or not here(lease):
        return found
    rest = {name: amount for name, amount in found.items() if name != "GPU"}
    amount = gpus(lease) if lease.gpus else 0.0
    return {**rest, "GPU": amount} if amount else rest


def _there(custom: Mapping[str, float]) -> None:
    """Raises `InvalidRequest` (code `no-such-resource`) for custom resources that no node of the pool has: work that
    needs them would wait for ever. The process is not connected then."""
    import ray

    missing = set(custom).difference(*(node["Resources"] for node in ray.nodes() if node["Alive"]))
    if missing:
        ray.shutdown()
        raise InvalidRequest(
            f"ray.init(resources={dict(custom)}) names what no node of the pool has: {', '.join(sorted(missing))}",
            why="a job joins the pool and adds nothing to it",
            todo="leave them out, or have a node started with them: ray start --resources",
            code="no-such-resource",
        )


def _path_of_both(asked: Any) -> str | None:
    """The PYTHONPATH for a script that gives `ray.init` one of its own, where all that speaks against it is that
    Moorage put one into the job's environment: Ray refuses a variable that is in both. None elsewhere."""
    theirs = (asked or {}).get("env_vars") or {}
    if "PYTHONPATH" not in theirs:
        return None
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}").get("runtime_env") or {}
    ours = job.get("env_vars") or {}
    first, _, more = str(ours.get("PYTHONPATH", "")).partition(os.pathsep)
    only_moorages = first == INJECT and more in ("", "${PYTHONPATH}")
    fields = {name for name, value in asked.items() if value} & {name for name, value in job.items() if value}
    if not only_moorages or fields - {"env_vars"} or theirs.keys() & ours.keys() != {"PYTHONPATH"}:
        return None
    return f"{INJECT}{os.pathsep}{theirs['PYTHONPATH']}"


def wrap_runtime_env(module: ModuleType) -> None:
    """A PYTHONPATH that a task or an actor is given goes behind ours: without it the process knows of no lease, and
    what it starts waits for what the job itself holds. `module` is `ray.remote_function` or `ray.actor`."""
    original = module.parse_runtime_env_for_task_or_actor

    @functools.wraps(original)
    def parse_runtime_env_for_task_or_actor(runtime_env: Any) -> Any:
        theirs = ((runtime_env or {}).get("env_vars") or {}).get("PYTHONPATH")
        if theirs and INJECT not in theirs.split(os.pathsep):
            changed = _with_path(runtime_env, f"{INJECT}{os.pathsep}{theirs}")
            runtime_env = changed if type(runtime_env) is dict else type(runtime_env)(**changed)
        return original(runtime_env)

    module.parse_runtime_env_for_task_or_actor = parse_runtime_env_for_task_or_actor  # type: ignore[attr-defined]


def _with_path(asked: Any, path: str) -> dict[str, Any]:
    return {**asked, "env_vars": {**asked["env_vars"], "PYTHONPATH": path}}


@contextmanager
def _overriding() -> Iterator[None]:
    """Ray's own switch for it, for one call."""
    before = os.environ.get(_OVERRIDE)
    os.environ[_OVERRIDE] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_OVERRIDE]
        else:
            os.environ[_OVERRIDE] = before


def wrap_shutdown(serve: ModuleType) -> None:
    """`serve.shutdown` deletes the applications of this job and leaves Serve to others. `serve`: `ray.serve.api`."""
    original, original_async = serve.shutdown, serve.shutdown_async

    @functools.wraps(original)
    def shutdown() -> None:
        if not _in_the_pool():
            original()
            return
        for app in _own_apps():
            serve.delete(app)

    @functools.wraps(original_async)
    async def shutdown_async() -> None:
        if not _in_the_pool():
            await original_async()
            return
        for app in _own_apps():
            serve.delete(app, _blocking=False)

    serve.shutdown, serve.shutdown_async = shutdown, shutdown_async  # type: ignore[attr-defined]


def wrap_stop(scripts: ModuleType) -> None:
    """`ray stop` ends what this job started, not all of Ray on the machine. `scripts` is `ray.scripts.scripts`."""
    command: Any = scripts.stop
    psutil: Any = scripts.psutil
    original, every = command.callback, psutil.process_iter

    @functools.wraps(original)
    def stop(**options: Any) -> None:
        if binding.current() is None:
            original(**options)
            return
        mine = own_processes(psutil, os.environ.get("MOORAGE_JOB_ID", ""))
        say(f"ray stop ends the {len(mine)} processes of clusters that this job started; Ray is the pool's")
        if not mine:
            return
        psutil.process_iter = lambda *more: [process for process in every(*more) if process.pid in mine]
        try:
            original(**options)
        finally:
            psutil.process_iter = every

    command.callback = stop


def own_processes(psutil: Any, job: str) -> set[int]:
    """Process ids of clusters that `job` started on this machine by `ray start`: what has its variables, less what runs
    under a raylet that has not (the job's tasks in the pool), and all that runs under a raylet that has."""
    seen = {
        process.pid: (
            process.info["ppid"],
            process.info["name"],
            bool(job) and _job_of(psutil, process) == job,
        )
        for process in psutil.process_iter(["ppid", "name"])
    }

    def own(pid: int) -> bool:
        above, name, named = seen[pid]
        if name in _SERVERS:
            return named
        while above in seen and seen[above][1] != "raylet":
            above = seen[above][0]
        return seen[above][2] if above in seen else named

    return {pid for pid in seen if own(pid)}


def _job_of(psutil: Any, process: Any) -> str:
    try:
        return str(process.environ().get("MOORAGE_JOB_ID", ""))
    except (psutil.Error, OSError):
        return ""


def _in_the_pool() -> bool:
    """False also on a cluster that the job started itself: all of its Serve is the job's."""
    import ray

    lease = binding.current()
    return lease is not None and (not ray.is_initialized() or here(lease))


def _own_apps() -> list[str]:
    import ray

    from moorage.cluster import rayapi

    if not ray.is_initialized():
        return []
    job = ray.get_runtime_context().get_job_id()
    mine = sorted(app for app, deployer in rayapi.serve_deployers().items() if deployer == job)
    say(
        f"serve.shutdown() deletes {', '.join(mine) or 'nothing'}: what this job deployed; Serve is the pool's"
    )
    return mine


def say(text: str) -> None:
    """To the job's log."""
    print(f"moorage: {text}", file=sys.stderr)
