"""What a job's Python processes run at their start: the binding of the lease, and whatever site customisation there is.

This folder is put at the head of a job's PYTHONPATH. Nothing here may fail: it is a user's process.
"""

import importlib.machinery
import os
import sys


class _WithRay:
    """Binds once Ray is imported: a process that never does pays nothing, not even the imports."""

    @staticmethod
    def find_spec(fullname: str, path: object = None, target: object = None) -> None:
        if fullname == "ray" and _WithRay in sys.meta_path:
            sys.meta_path.remove(_WithRay)
            try:
                from moorage.cluster import autobind
            except ImportError:
                return  # the job brought an environment of its own without Moorage
            autobind.install()


def _bind() -> None:
    if os.environ.get("MOORAGE_LEASE") and os.environ.get("MOORAGE_BIND") == "on":
        sys.meta_path.insert(0, _WithRay)


def _tidy() -> None:
    """Where the node had no PYTHONPATH ours ends with an empty entry, which would be the working directory."""
    given = os.environ.get("PYTHONPATH", "")
    if given.endswith(os.pathsep):
        os.environ["PYTHONPATH"] = given.rstrip(os.pathsep)
        here = os.getcwd()
        named = [os.path.abspath(entry) for entry in given.split(os.pathsep) if entry]
        if (
            here in sys.path and here not in named
        ):  # a job's working_dir is named, and is where its processes run
            sys.path.remove(here)


def _others() -> None:
    """The `sitecustomize` that this one hides."""
    here = os.path.dirname(os.path.abspath(__file__))
    path = [entry for entry in sys.path if os.path.abspath(entry or ".") != here]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", path)
    if spec is not None and spec.loader is not None:
        from importlib import util

        spec.loader.exec_module(util.module_from_spec(spec))


_tidy()
_bind()
_others()
