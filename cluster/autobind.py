"""Plain Ray code in a job stays within the job's lease, without a word about it in the script.

`@ray.remote(num_gpus=0.6)` leaves the choice of the node to Ray, which adds up what is free per node: it sends a task
of 0.6 to a node with four remainders of 0.4, and the task hangs (ray-project/ray issues 20933 and 52133). And nothing
keeps it to what the job may use. So tasks and actors that ask for GPUs run in one placement group that has a bundle for
each worker of the lease, on that worker's node; what is more than the lease holds waits until some of it is free.
Placement groups that a script makes itself get the lease's nodes.

The lease of a job that follows it changes while it runs, and a group holds what it holds: there such tasks and actors
are kept to the nodes of the lease of now, and how many there are is the job's own care (Ray Data's is taken, see
`raydata`).

What says where it wants to run is left alone: a placement group, a label selector, a node. What a script does to a
cluster that is its own is in `joining`. `install` hooks imports, so that a process that never imports Ray pays nothing.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import logging
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

from moorage.cluster import binding, demands, following, joining, known, leasegroup, raydata, servebind

PATCHED = (
    "ray._private.state",
    "ray._private.worker",
    "ray.scripts.scripts",
    "ray.serve._private.api",
    "ray.serve._private.client",
    "ray.remote_function",
    "ray.actor",
    "ray.serve.api",
    "ray.util.placement_group",
)
_BESIDE = ("accelerator_type", "memory", "resources")
"""What a task may ask for that the lease does not speak of."""
_HINTS = (None, "DEFAULT", "SPREAD")
"""Scheduling strategies that do not say where."""
log = logging.getLogger("moorage.lease")
_lock = threading.Lock()


class _Importing(importlib.abc.MetaPathFinder):
    """Finds the modules of PATCHED as everybody would, and patches each once it was run."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in patched():
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return None
        run: Callable[[ModuleType], None] = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run(module)
            patch(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def install() -> None:
    """From now on, what this process asks of Ray is bound to its lease. Again is nothing more; nor is a Ray that was
    never checked against this."""
    if not known.is_known() or any(isinstance(finder, _Importing) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _Importing())
    for name in patched():
        if name in sys.modules:
            patch(sys.modules[name])


def _elastic() -> bool:
    return bool(os.environ.get(following.ELASTIC_VARIABLE))


def _follows() -> bool:
    found = following.feed() if _elastic() else None
    return found is not None and found.follows


def patched() -> tuple[str, ...]:
    """Modules that are changed once they were imported."""
    return PATCHED + raydata.PATCHED if _elastic() else PATCHED


def patch(module: ModuleType) -> None:
    """Wrap what the module starts things with."""
    match module.__name__:
        case name if name in raydata.PATCHED:
            raydata.patch(module)
        case "ray._private.state":
            joining.wrap_state(module)
        case "ray._private.worker":
            joining.wrap_init(module)
            _wrap_shutdown(module)
        case "ray.scripts.scripts":
            joining.wrap_stop(module)
        case "ray.serve.api":
            joining.wrap_shutdown(module)
        case "ray.serve._private.api":
            servebind.wrap_start(module)
        case "ray.serve._private.client":
            servebind.wrap_deploy(module)
        case "ray.remote_function":
            joining.wrap_runtime_env(module)
            _wrap_options(module.RemoteFunction)
        case "ray.actor":
            joining.wrap_runtime_env(module)
            _wrap_options(module.ActorClass)
        case "ray.util.placement_group":
            _wrap_group(module)


def _wrap_options(owner: Any) -> None:
    original = owner._remote

    def _remote(self: Any, args: Any = None, kwargs: Any = None, *more: Any, **options: Any) -> Any:
        bound = _governs(options)
        if bound is None:
            return original(self, args, kwargs, *more, **options)
        lease, worker = bound
        added, nodes = _asked(lease, worker, options)
        if nodes is not None:
            if not _follows():
                leasegroup.make_room()
            there = {"label_selector": {binding.NODE_ID_LABEL: f"in({','.join(nodes)})"}}
            return original(self, args, kwargs, *more, **{**options, **there, **added})
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        from moorage.cluster import rayapi

        gpus, cpus = options["num_gpus"], options.get("num_cpus")
        with leasegroup.using(lease, gpus, cpus or 0) as (used, most):
            inside: dict[str, Any] = {"scheduling_strategy": PlacementGroupSchedulingStrategy(used.group)}
            if cpus is None and most < 1:
                inside["num_cpus"] = most
            started = original(self, args, kwargs, *more, **{**options, **added, **inside})
            used.note(rayapi.current_task(), started)
        return started

    owner._remote = _remote


def _wrap_shutdown(module: ModuleType) -> None:
    original = module.shutdown

    @functools.wraps(original)
    def shutdown(*arguments: Any, **options: Any) -> None:
        leasegroup.stop()
        original(*arguments, **options)

    module.shutdown = shutdown  # type: ignore[attr-defined]


def _wrap_group(module: ModuleType) -> None:
    original, remove, current = (
        module.placement_group,
        module.remove_placement_group,
        module.get_current_placement_group,
    )

    # By its name a task that uses it is sent with a reference to it; by value it cannot be sent.
    @functools.wraps(original)
    def placement_group(bundles: list[dict[str, float]], *more: Any, **options: Any) -> Any:
        lease = following.context() if any(bundle.get("GPU") for bundle in bundles) else None
        if lease is None or not joining.here(lease):
            return original(bundles, *more, **options)
        one_node = (more[0] if more else options.get("strategy")) == "STRICT_PACK"
        taken, waits = leasegroup.taken(), False
        if not binding.fits_beside(lease, bundles, taken, one_node):
            leasegroup.refuse_own_wait(lease, bundles, one_node)
            waits = not leasegroup.make_room()
            taken = leasegroup.taken()
        if waits:
            log.warning("a placement group of this job waits: tasks or actors of its own use the lease")
        if options.get("bundle_label_selector") or len(more) > 4:
            return original(bundles, *more, **options)
        with _lock:
            found = binding.bundle_selectors(lease, bundles, one_node=one_node, taken=taken)
            if found is None:
                return original(bundles, *more, **options)
            group = original(bundles, *more, **{**options, "bundle_label_selector": found})
            leasegroup.scripts[group.id.hex()] = [
                (selector[binding.NODE_ID_LABEL], float(bundle["GPU"]))
                for bundle, selector in zip(bundles, found, strict=True)
                if selector
            ]
        if waits:
            leasegroup.keep_asking()
        return group

    @functools.wraps(remove)
    def remove_placement_group(placement_group: Any) -> Any:
        leasegroup.scripts.pop(placement_group.id.hex(), None)
        return remove(placement_group)

    @functools.wraps(current)
    def get_current_placement_group() -> Any:
        # Libraries put their own work into the group that they find themselves in: into one that the script made.
        found = current()
        return None if found is not None and leasegroup.is_a_leases(found.id.hex()) else found

    placement_group.unbound = original  # type: ignore[attr-defined]
    module.placement_group = placement_group  # type: ignore[attr-defined]
    module.remove_placement_group = remove_placement_group  # type: ignore[attr-defined]
    module.get_current_placement_group = get_current_placement_group  # type: ignore[attr-defined]


def _governs(options: Mapping[str, Any]) -> tuple[binding.LeaseView, binding.WorkerView] | None:
    """The lease that a task or an actor with these options is put into, and a worker of it that it fits into; None
    where it is Ray's to place it."""
    gpus, cpus = options.get("num_gpus") or 0, options.get("num_cpus")
    lease = following.context() if gpus else None
    if lease is None or _says_where(options) or not joining.here(lease):
        return None
    worker = binding.check_fits(lease, gpus, cpus or 0)
    from moorage.cluster import rayapi

    return None if rayapi.children_stay_in_group() else (lease, worker)


def _asked(
    lease: binding.LeaseView, worker: binding.WorkerView, options: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str] | None]:
    """What is added to the options, and the nodes that are named to Ray; None where the lease's group says it all."""
    # Ray's own default is a whole CPU, which a lease of less would never have.
    added = {"num_cpus": worker.cpus} if options.get("num_cpus") is None and worker.cpus < 1 else {}
    nodes = sorted({one.ray_node_id for one in lease.workers}) if _follows() else None
    if any(options.get(name) for name in _BESIDE):
        asked = demands.of(lease, options, joining.nodes(lease))
        added |= asked.options
        nodes = list(asked.nodes) if asked.nodes is not None else nodes
    return added, nodes


def _says_where(options: Mapping[str, Any]) -> bool:
    strategy = options.get("scheduling_strategy")
    return (
        options.get("label_selector") is not None
        or options.get("placement_group", "default") not in ("default", None)
        or not (strategy is None or (isinstance(strategy, str) and strategy in _HINTS))
    )
