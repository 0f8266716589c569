"""Plain Ray Data for tests, which knows nothing of Moorage: argv[1] rows through a pool of three actors of a GPU
each, a line of argv[2] for every batch, and what came out in argv[3]."""

import json
import os
import sys
import time

import ray

ROWS, LINES, SAID = int(sys.argv[1]), sys.argv[2], sys.argv[3]


class Model:
    def __call__(self, batch):
        time.sleep(0.3)
        with open(LINES, "a") as out:
            out.write(
                json.dumps({"rows": batch["id"].tolist(), "pid": os.getpid(), "at": time.time()}) + "\n"
            )
        batch["twice"] = batch["id"] * 2
        return batch


ray.init(log_to_driver=False)
rows = ray.data.range(ROWS, override_num_blocks=ROWS // 2)
found = rows.map_batches(Model, batch_size=2, num_gpus=1, concurrency=3)
twice = sorted(int(one) for batch in found.iter_batches(batch_size=8) for one in batch["twice"])
with open(SAID, "w") as out:
    json.dump(twice, out)
