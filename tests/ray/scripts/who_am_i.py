"""What a job's processes see of its own runtime environment, on every node, while another job runs there too.

python who_am_i.py MINE OTHERS      # files: mine says that I run, and I wait for the other's
"""

import os
import sys
import time

import flavour
import ray
import shared_part

ray.init()


@ray.remote(num_cpus=0.1)
def seen():
    import flavour
    import shared_part

    return [flavour.NAME, shared_part.VERSION, os.environ["FLAVOUR"], open("note.txt").read(), os.getpid()]


@ray.remote(num_cpus=0.1, runtime_env={"env_vars": {"EXTRA": "of the task"}})
def nested():
    import flavour

    return [flavour.NAME, os.environ["FLAVOUR"], os.environ["EXTRA"]]


@ray.remote(num_cpus=0.1)
class Keeper:
    def seen(self):
        return ray.get(seen.options(num_cpus=0).remote())


mine, others = sys.argv[1:]
open(mine, "w").close()
deadline = time.monotonic() + 150
while not os.path.exists(others):
    if time.monotonic() > deadline:
        sys.exit("the other job never ran beside this one")
    time.sleep(0.05)
print("driver", flavour.NAME, shared_part.VERSION, os.environ["FLAVOUR"])
for node in ("node-0", "node-1"):
    there = {"moorage.io/node": node}
    *found, _ = ray.get(seen.options(label_selector=there).remote())
    print(node, *found)
    print(node, "nested", *ray.get(nested.options(label_selector=there).remote()))
    *found, _ = ray.get(Keeper.options(label_selector=there).remote().seen.remote())
    print(node, "actor", *found)
