"""Plain Ray code in a job stays within the job's lease, without a word about it in the script.

`@ray.remote(num_gpus=0.6)` leaves the choice of the node to Ray, which adds up what is free per node: it sends a task
of 0.6 to a node with four remainders of 0.4, and the task hangs (ray-project/ray issues 20933 and 52133). And nothing
keeps it to what the job may use. So tasks and actors that ask for GPUs run in one placement group that has a bundle for
each worker of the lease, on that worker's node; what is more than the lease holds waits until some of it is free.
Placement groups that a script makes itself get the lease's nodes.

What says where it wants to run is left alone: a placement group, a label selector, a node. `install` hooks imports, so
that a process that never imports Ray pays nothing.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

from moorage.cluster import binding, known

PATCHED = ("ray.remote_function", "ray.actor", "ray.util.placement_group")
_HINTS = (None, "DEFAULT", "SPREAD")
"""Scheduling strategies that do not say where."""
_lock = threading.Lock()
_group: Any = None
_groups: dict[Any, list[tuple[str, float]]] = {}
"""What the script's own placement groups hold: (node, GPUs) of each bundle."""


class _Importing(importlib.abc.MetaPathFinder):
    """Finds the modules of PATCHED as everybody would, and patches each once it was run."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in PATCHED:
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
    for name in PATCHED:
        if name in sys.modules:
            patch(sys.modules[name])


def patch(module: ModuleType) -> None:
    """Wrap what the module starts things with."""
    match module.__name__:
        case "ray.remote_function":
            _wrap_options(module.RemoteFunction)
        case "ray.actor":
            _wrap_options(module.ActorClass)
        case "ray.util.placement_group":
            _wrap_group(module)


def _wrap_options(owner: Any) -> None:
    original = owner._remote

    def _remote(self: Any, args: Any = None, kwargs: Any = None, *more: Any, **options: Any) -> Any:
        return original(self, args, kwargs, *more, **{**options, **_bound(options)})

    owner._remote = _remote


def _wrap_group(module: ModuleType) -> None:
    original, remove = module.placement_group, module.remove_placement_group

    def placement_group(bundles: list[dict[str, float]], *more: Any, **options: Any) -> Any:
        lease = binding.current()
        if lease is None or options.get("bundle_label_selector") or len(more) > 4:
            return original(bundles, *more, **options)
        one_node = (more[0] if more else options.get("strategy")) == "STRICT_PACK"
        with _lock:
            taken = [one for group in _groups.values() for one in group]
            found = binding.bundle_selectors(lease, bundles, one_node=one_node, taken=taken)
            if found is None:
                return original(bundles, *more, **options)
            group = original(bundles, *more, **{**options, "bundle_label_selector": found})
            _groups[group.id] = [
                (selector[binding.NODE_ID_LABEL], float(bundle["GPU"]))
                for bundle, selector in zip(bundles, found, strict=True)
                if selector
            ]
        return group

    def remove_placement_group(placement_group: Any) -> Any:
        _groups.pop(placement_group.id, None)
        return remove(placement_group)

    placement_group.__doc__, remove_placement_group.__doc__ = original.__doc__, remove.__doc__
    placement_group.unbound = original  # type: ignore[attr-defined]
    module.placement_group = placement_group  # type: ignore[attr-defined]
    module.remove_placement_group = remove_placement_group  # type: ignore[attr-defined]


def _bound(options: Mapping[str, Any]) -> dict[str, Any]:
    """What to add to the options of a task or an actor."""
    gpus, cpus = options.get("num_gpus") or 0, options.get("num_cpus")
    lease = binding.current()
    if not gpus or lease is None or _says_where(options):
        return {}
    worker = binding.check_fits(lease, gpus, cpus or 0)
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    from moorage.cluster import rayapi

    if not ray.is_initialized():
        ray.init()
    if rayapi.children_stay_in_group():
        return {}
    # Ray's own default is a whole CPU, which a lease of less would never have.
    less = {"num_cpus": worker.cpus} if cpus is None and worker.cpus < 1 else {}
    return {"scheduling_strategy": PlacementGroupSchedulingStrategy(_lease_group(lease)), **less}


def _says_where(options: Mapping[str, Any]) -> bool:
    strategy = options.get("scheduling_strategy")
    return (
        options.get("label_selector") is not None
        or options.get("placement_group", "default") not in ("default", None)
        or not (strategy is None or (isinstance(strategy, str) and strategy in _HINTS))
    )


def _lease_group(lease: binding.LeaseView) -> Any:
    """The placement group of the lease: one per job, made by the process that needs it first."""
    global _group
    import ray

    module: Any = sys.modules["ray.util.placement_group"]
    name = f"moorage-{lease.lease_id}-{lease.epoch}"
    with _lock:
        if _group is None or _group[0] != (name, ray.get_runtime_context().get_job_id()):
            _group = ((name, ray.get_runtime_context().get_job_id()), _made(module, name, lease))
        return _group[1]


def _made(module: Any, name: str, lease: binding.LeaseView) -> Any:
    workers = [worker for worker in lease.workers if worker.gpus]
    try:
        return module.get_placement_group(name)
    except ValueError:
        pass
    try:
        return module.placement_group.unbound(
            [worker.resources() for worker in workers],
            "PACK",
            name,
            bundle_label_selector=[binding.node_selector(worker.ray_node_id) for worker in workers],
        )
    except ValueError:  # another process of the job was quicker
        return module.get_placement_group(name)
