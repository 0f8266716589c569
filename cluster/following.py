"""The lease of this process's job as it is now, and following it while it grows and shrinks. No Ray, no database.

    def resize(lease):              # called whenever the job may use other workers than before
        pool.scale_to(len(lease.workers))

    moorage.follow(resize)          # when it returns, what is not in that lease is the pool's again

One thread per process waits at the front door. A job that never follows is told to leave as a whole, as ever.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from moorage.cluster import binding
from moorage.cluster.binding import LeaseView

log = logging.getLogger("moorage.lease")
ELASTIC_VARIABLE = "MOORAGE_ELASTIC"
"""Set in jobs whose lease may change: the least and the most workers, as in `1,4`."""
_WAIT_S = 25
_AGAIN_S, _AGAIN_MOST_S = 0.5, 10.0
_FIRST_S = 5.0
_OVER = (401, 403, 404)
Ask = Callable[[str, dict[str, Any] | None, dict[str, str]], Any]
"""(method, body, query) -> the answer's JSON; httpx.HTTPError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The pool wants workers back. `deadline` is Unix time, of this machine's clock; then the job has to leave."""

    reason: str
    rule: str
    for_job: str
    deadline: float

    @property
    def left_s(self) -> float:
        return max(0.0, self.deadline - time.time())


@dataclass(frozen=True, slots=True, kw_only=True)
class Now:
    """What the job holds, of which it may use the first `workers` workers; between `least` and `most` of them."""

    version: str
    lease: LeaseView
    workers: int
    least: int
    most: int
    follows: bool
    asked: Asked | None = None

    @property
    def usable(self) -> LeaseView:
        """The lease less what the pool wants back."""
        return replace(self.lease, workers=self.lease.workers[: self.workers])


def now_of(raw: Mapping[str, Any]) -> Now:
    """From the front door's answer."""
    asked = raw["asked"]
    return Now(
        version=str(raw["version"]),
        lease=binding.decode(json.dumps(raw["lease"])),
        workers=int(raw["workers"]),
        least=int(raw["min_workers"]),
        most=int(raw["max_workers"]),
        follows=bool(raw["follows"]),
        asked=None
        if asked is None
        else Asked(
            reason=asked["text"],
            rule=asked["rule"],
            for_job=asked["for_job"],
            deadline=time.time() + float(asked["left_s"]),
        ),
    )


class Feed:
    """`now` is what was heard last, None before the first answer. Thread-safe."""

    def __init__(self, ask: Ask) -> None:
        self.now: Now | None = None
        self.over = False
        """The attempt has ended, or this is no job's process: nothing more will be heard."""
        self._ask, self._heard = ask, threading.Condition()
        self._following = False
        self._first_until = time.monotonic() + _FIRST_S
        threading.Thread(target=self._listen, name="moorage-lease", daemon=True).start()

    def wait(self, version: str = "", timeout: float | None = None) -> Now | None:
        """Wait until another version than that was heard; what was heard last."""
        with self._heard:
            self._heard.wait_for(lambda: self.over or (self.now and self.now.version != version), timeout)
            return self.now

    def first(self) -> Now | None:
        """What was heard last. Who asks early waits a little for the first answer; later nobody does, though a front
        door that does not answer has given none: each task of a script would wait for it again."""
        return self.wait(timeout=max(0.0, self._first_until - time.monotonic()))

    @property
    def follows(self) -> bool:
        """Whether the job follows its lease: this process said so, or the pool says that it did."""
        return self._following or (self.now is not None and self.now.follows)

    def follow(self) -> None:
        """The job follows its lease from now on: it may be asked to give workers up. Whoever says so listens."""
        if self._following:
            return
        self._following = True
        self.say(follows=True)

    def say(self, **said: Any) -> bool:
        """`workers`: the job holds no more than its first so many; `wants`: how many it has use for. True when the
        lease is that small now. False also when the front door does not answer: the pool will see what the job
        holds."""
        import httpx

        try:
            return bool(self._ask("POST", said, {})["resized"])
        except (httpx.HTTPError, KeyError, TypeError, ValueError) as error:
            log.warning("the pool was not told %s: %s", said, error)
            return False

    def stop(self) -> None:
        with self._heard:
            self.over = True
            self._heard.notify_all()

    def _listen(self) -> None:
        import httpx

        pause = _AGAIN_S
        while not self.over:
            told = self.now is not None and (self.now.follows or not self._following)
            after = self.now.version if self.now and told else ""
            try:
                raw = self._ask("GET", None, {"after": after, "wait_s": str(_WAIT_S)})["now"]
                if raw is None:
                    return self.stop()
                found = now_of(raw)
                if self._following and not found.follows:  # it was said before the pool saw this attempt run
                    self.say(follows=True)
                    time.sleep(_AGAIN_S)
                pause = _AGAIN_S
            except httpx.HTTPStatusError as error:
                if error.response.status_code in _OVER:
                    return self.stop()
                time.sleep(pause := min(2 * pause, _AGAIN_MOST_S))
                continue
            except (httpx.HTTPError, KeyError, TypeError, ValueError):
                time.sleep(pause := min(2 * pause, _AGAIN_MOST_S))
                continue
            with self._heard:
                self.now = found
                self._heard.notify_all()
        return None


_lock = threading.Lock()
_feed: Feed | None = None


def feed() -> Feed | None:
    """The one of this process, begun at the first call; None outside of a pool's job."""
    global _feed
    if _feed is None:
        with _lock:
            if _feed is None and (ask := _asks()) is not None:
                _feed = Feed(ask)
    return _feed


def context() -> LeaseView | None:
    """The lease that this process's job may use now; None outside of a pool. Of a job that is not elastic it is the one
    it was started with; of another the first call asks the front door, the others cost nothing."""
    found = feed() if os.environ.get(ELASTIC_VARIABLE) else None
    if found is None:
        return binding.current()
    now = found.now or found.first()
    return now.usable if now else binding.current()


def follow(resize: Callable[[LeaseView], object]) -> Feed | None:
    """Follow the job's lease from now on: `resize(lease)` is called, in a thread, whenever the job may use other
    workers than in the call before (in the first: than it was started with). When it returns, workers that are not in
    that lease count as given back. If it raises, it is called again. None outside of a pool.

    Call it once in a job, where its workers are started from.
    """
    found = feed()
    if found is not None:
        threading.Thread(target=_follow, args=(found, resize), name="moorage-follow", daemon=True).start()
        found.follow()
    return found


def _follow(heard: Feed, resize: Callable[[LeaseView], object]) -> None:
    applied, version = binding.current(), ""
    while not heard.over:
        now = heard.wait(version)
        if now is None or heard.over:
            continue
        usable = now.usable
        if applied is None or usable.workers != applied.workers:
            try:
                resize(usable)
            except Exception:
                log.exception("the job could not be resized to %d workers; again in a moment", now.workers)
                time.sleep(_AGAIN_S)
                continue
            applied = usable
        if now.asked is not None:
            heard.say(workers=now.workers)
        version = now.version


def _asks() -> Ask | None:
    url, token, job = (os.environ.get(f"MOORAGE_{name}") for name in ("URL", "TOKEN", "JOB_ID"))
    if not (url and token and job):
        return None
    import httpx  # every process that imports Ray imports this module: it need not load a client that few use

    client = httpx.Client(
        base_url=url,
        headers={"Authorization": f"Bearer {token}"},
        timeout=httpx.Timeout(_WAIT_S + 30.0, connect=5.0),
        trust_env=False,
    )

    def ask(method: str, body: dict[str, Any] | None, query: dict[str, str]) -> Any:
        answer = client.request(method, f"/moorage/v1/jobs/{job}/lease", json=body, params=query)
        answer.raise_for_status()
        return answer.json()

    return ask
