"""A Ray cluster of four raylets with two GPUs each, as an operator's own would be: Ray's labels say the rack of each,
and that the last one is tainted. Neighbours by name are in different racks, so that a gang which nothing holds together
falls into two of them."""

import sys
from typing import Any

from moorage.cluster import local

LABELS = (
    {"rack": "r0"},
    {"rack": "r1"},
    {"rack": "r0"},
    {"rack": "r2", "moorage.io/no-schedule.team": "ml"},
)
plain = local.node_arguments


def labelled(index: int, options: Any) -> dict[str, Any]:
    found = plain(index, options)
    return found | {"labels": found["labels"] | LABELS[index]}


if __name__ == "__main__":
    local.node_arguments = labelled
    shape = ["--nodes", str(len(LABELS)), "--logical-gpus", "2", "--cpus-per-node", "4"]
    sys.exit(local.main([*sys.argv[1:], *shape]))
