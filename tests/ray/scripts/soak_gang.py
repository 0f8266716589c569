"""A gang of the soak: one actor with one GPU per worker of the lease: `soak_gang.py FOLDER SECONDS`.

The driver says `start` and `end` in the job's own file, and a beat while all of its actors answer: for so many
seconds from the first time that they did, however long Ray took to start them.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import ray

FOLDER, SECONDS = Path(sys.argv[1]), float(sys.argv[2])
ATTEMPT = os.environ["MOORAGE_ATTEMPT"]


def say(word: str) -> None:
    with (FOLDER / os.environ["MOORAGE_JOB_ID"]).open("a", encoding="utf-8") as out:
        out.write(f"{word} {ATTEMPT} {time.time():.3f} {os.getppid()}\n")


@ray.remote(num_gpus=1, num_cpus=0, max_restarts=0)
class Worker:
    def here(self) -> int:
        return os.getpid()


say("start")
ray.init(log_to_driver=False)
workers = [Worker.remote() for _ in json.loads(os.environ["MOORAGE_LEASE"])["workers"]]
ended = None
while True:
    ray.get([worker.here.remote() for worker in workers])
    ended = ended or time.monotonic() + SECONDS
    say("beat")
    if time.monotonic() >= ended:
        break
    time.sleep(0.5)
say("end")
