"""Fractional GPUs that fit: how many of N actors of a fraction run, in a job of Moorage and in Ray alone, side by side.

Both jobs are the same script (`tests/ray/scripts/pieces.py`: `@ray.remote` actors with `num_gpus`, nothing about nodes)
on the same pool of 2 nodes x 4 logical GPUs on real raylets; one job keeps the binding to its lease, the other turns it
off (`bind: off`), which leaves it to Ray. The pool has room for all of them.
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

from _frame import Figure, main

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "tests" / "ray" / "scripts" / "pieces.py"
sys.path.insert(0, str(ROOT / "tests"))

from pools import Pool, discard, start  # noqa: E402
from waiting import until  # noqa: E402

from moorage.runtime.client import Client  # noqa: E402
from moorage.runtime.control.api import FINAL  # noqa: E402

SETS = ((6, 0.6, 40), (8, 0.6, 40), (40, 0.18, 120))
"""Actors, GPU each, seconds they have to start."""


def running(pool: Pool, count: int, gpus: float, within_s: int, bind: str) -> int:
    job = f"{bind}-{count}-{round(gpus * 100)}"
    out = pool.home / f"{job}.json"
    with Client(pool.url, pool.token("ops")) as client:
        client.submit(
            {
                "entrypoint": shlex.join([sys.executable, *map(str, (SCRIPT, out, count, gpus, within_s, "count"))]),
                "submission_id": job,
                "metadata": {
                    "workers": str(count), "gpus_per_worker": str(gpus), "cpus_per_worker": "0.1", "bind": bind
                },
            }
        )  # fmt: skip
        ended = until(
            lambda: [one for one in [client.job(job)] if one["state"] in FINAL],
            3 * within_s + 120,
            job,
            every=1,
        )[0]
    if ended["state"] != "SUCCEEDED":
        raise RuntimeError(f"{job}: {ended['message']}")
    found = len(json.loads(out.read_text(encoding="utf-8"))["running"])
    print(f"{job}: {found} of {count}", file=sys.stderr, flush=True)
    return found


def measure(quick: bool) -> list[Figure]:
    pool = start({"nodes": 2, "logical_gpus": 4, "teams": "teams: {ops: {quota: 8}}"})
    try:
        found = []
        for count, gpus, within_s in SETS[: 1 if quick else len(SETS)]:
            alone, ours = (running(pool, count, gpus, within_s, bind) for bind in ("off", "on"))
            found.append(
                Figure(
                    metric=f"{count} actors of {gpus} GPU: how many run",
                    ours=ours,
                    better="higher",
                    peer_name=f"all of them; Ray alone, same run: {alone}",
                    target=count,
                )
            )
        return found
    finally:
        discard(pool)


if __name__ == "__main__":
    raise SystemExit(main(measure, "Fractional GPUs that fit, beside Ray alone"))
