"""A job on one GPU that says its processes' ids in files: `on_devices.py FOLDER`, used by test_devices.py.

`leased` is an actor with the leased GPU, `stray` one that asked for none, `left` a process that outlives the job.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import ray


@ray.remote(num_cpus=0)
class Worker:
    def __init__(self, folder: str, name: str) -> None:
        self.file = Path(folder) / name
        write(Path(folder) / f"{name}.pid", os.getpid())

    def work(self) -> None:
        while True:
            with self.file.open("a", encoding="utf-8") as out:
                out.write(f"{time.time()}\n")
            time.sleep(0.1)


def write(path: Path, pid: int) -> None:
    """Whole or not at all."""
    draft = path.with_suffix(".draft")
    draft.write_text(str(pid), encoding="utf-8")
    draft.rename(path)


def main(folder: str) -> None:
    ray.init(log_to_driver=False)
    work = [
        Worker.options(num_gpus=1).remote(folder, "leased").work.remote(),
        Worker.remote(folder, "stray").work.remote(),
    ]
    left = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    write(Path(folder) / "left.pid", left.pid)
    while not (Path(folder) / "end").exists():
        time.sleep(0.1)
    del work


if __name__ == "__main__":
    main(*sys.argv[1:])
