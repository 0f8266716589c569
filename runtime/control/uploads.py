"""Packages of jobs on their way to Ray, beside the reconcile loop: hundreds of MiB must not hold up everybody's starts.

Only a head start: a launch itself looks whether Ray has its packages, and brings them where it does not. So nothing
here needs to be durable. A package is named by its content: to bring it twice, or for nothing, changes nothing.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable

from moorage.cluster.backend import PackageRef

log = logging.getLogger(__name__)
AT_ONCE = 2
_QUICK_S = 0.1
"""So long the loop waits for one that was just begun: most are small, and need no further round."""


class _Try:
    def __init__(self) -> None:
        self.done = threading.Event()
        self.error: Exception | None = None
        self.asked = True
        """Since the last sweep."""


class Uploads:
    """`stage` brings one package, in one of `AT_ONCE` threads; `wake` is called after each. `ready` and `sweep` are for
    the loop's thread."""

    def __init__(self, stage: Callable[[PackageRef], None], wake: Callable[[], None]) -> None:
        self._stage, self._wake = stage, wake
        self._tries: dict[str, _Try] = {}
        self._lock = threading.Lock()
        self._waiting: deque[tuple[PackageRef, _Try]] = deque()
        self._workers = 0

    def ready(self, packages: Iterable[PackageRef]) -> bool:
        """Whether all of these were brought; what was not yet is begun. Raises what a try failed with, once: who asks
        again has it tried again."""
        missing = 0
        for package in packages:
            tried = self._tries.get(package.uri)
            if tried is None:
                tried = self._begin(package)
            tried.asked = True
            if not tried.done.is_set():
                missing += 1
            elif tried.error is not None:
                del self._tries[package.uri]
                raise tried.error
        return not missing

    def sweep(self) -> None:
        """Forget what was brought and is not asked for any more: Ray drops packages that nobody uses."""
        self._tries = {uri: one for uri, one in self._tries.items() if one.asked or not one.done.is_set()}
        for one in self._tries.values():
            one.asked = False

    def _begin(self, package: PackageRef) -> _Try:
        tried = self._tries[package.uri] = _Try()
        with self._lock:
            alone = not self._workers
            self._waiting.append((package, tried))
            if self._workers < AT_ONCE:
                self._workers += 1
                # A daemon: the end of the control plane waits for no upload.
                threading.Thread(target=self._work, name="upload", daemon=True).start()
        if alone:
            tried.done.wait(_QUICK_S)
        return tried

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._workers -= 1
                    return
                package, tried = self._waiting.popleft()
            began = time.monotonic()
            try:
                self._stage(package)
            except Exception as error:
                tried.error = error
            took = time.monotonic() - began
            if took > 1:
                log.info(
                    "package %s: %.1f s to Ray%s", package.uri, took, ", in vain" * (tried.error is not None)
                )
            tried.done.set()
            self._wake()
