"""What `placing.find` must answer, written for reading rather than speed: every node and device is tried."""

from __future__ import annotations

from dataclasses import dataclass

from moorage.kernels import placing_scores as rules
from moorage.kernels.placing_scores import WHOLE, Classes, Nodes, Scoring

_MASK64 = 2**64 - 1


@dataclass(slots=True)
class _Node:
    """One node in plain integers."""

    row: int
    model: int
    device_mib: int
    cpu: int
    mib: int
    free: list[int]
    mem: list[int]

    @classmethod
    def of(cls, nodes: Nodes, n: int) -> _Node:
        count = int(nodes.devices[n])
        return cls(
            row=n,
            model=int(nodes.model[n]),
            device_mib=int(nodes.device_mib[n]),
            cpu=int(nodes.cpu_free[n]),
            mib=int(nodes.mib_free[n]),
            free=[int(f) for f in nodes.milli_free[n, :count]],
            mem=[int(f) for f in nodes.mem_free[n, :count]],
        )

    def after(self, devices: tuple[int, ...], each: int, cpu: int, mib: int) -> _Node:
        left = [f - each if d in devices else f for d, f in enumerate(self.free)]
        return _Node(
            self.row, self.model, self.device_mib, self.cpu - cpu, self.mib - mib, left, list(self.mem)
        )


def find(
    nodes: Nodes, classes: Classes, scoring: Scoring, c: int, models: int, raylet: bool
) -> tuple[int, int]:
    """(node, device mask) for one task of class `c`, (-1, 0) when nothing fits."""
    milli, gpu_mib = int(classes.milli[c]), int(classes.gpu_mib[c])
    cpu, mib = int(classes.cpu[c]), int(classes.mib[c])
    stage = sum(int(nodes.milli_free.sum()) <= int(limit) for limit in scoring.stages)
    found: list[tuple[int, int, int, int, int]] = []  # score, tie, first device, node, mask
    for n in range(len(nodes.model)):
        node = _Node.of(nodes, n)
        usable = models < 0 or models >> node.model & 1
        if not usable or not classes.allowed[c, n] or node.cpu < cpu or node.mib < mib:
            continue
        for devices in _choices(node, milli, gpu_mib, raylet or scoring.kind not in _STEERING, raylet):
            score = _score(scoring, stage, node, devices, c, milli, cpu, mib)
            first = devices[0] if devices else 0
            found.append((score, int(scoring.tie[n]), first, n, sum(1 << d for d in devices)))
    if not found:
        return -1, 0
    *_, best, mask = min(found)
    return best, mask


_STEERING = (rules.POTENTIAL, rules.FGD)
"""The rules that choose the device of a fraction, where they may."""


def _choices(node: _Node, milli: int, gpu_mib: int, tightest: bool, raylet: bool) -> list[tuple[int, ...]]:
    """The sets of devices a task may take on a node."""
    if milli == 0:
        return [()]
    if milli >= WHOLE:
        idle = [d for d, free in enumerate(node.free) if free == WHOLE]
        fits = len(idle) >= milli // WHOLE and gpu_mib <= node.device_mib
        return [tuple(idle[: milli // WHOLE])] if fits else []
    need = gpu_mib or milli * node.device_mib // WHOLE
    room = [(free, d) for d, free in enumerate(node.free) if free >= milli]
    if not raylet:
        room = [(free, d) for free, d in room if node.mem[d] >= need]
    if tightest:
        room = [min(room)] if room else []
    return [(d,) for _, d in sorted(room, key=lambda r: r[1]) if node.mem[d] >= need]


def _score(
    scoring: Scoring,
    stage: int,
    node: _Node,
    devices: tuple[int, ...],
    c: int,
    milli: int,
    cpu: int,
    mib: int,
) -> int:
    after = node.after(devices, min(milli, WHOLE), cpu, mib)
    if scoring.kind == rules.BEST_FIT:
        if milli == 0:
            return sum(node.free) * 1_000_000 + node.cpu // 1000
        left = after.free[devices[0]] if milli < WHOLE else after.free.count(WHOLE)
        return left * 2**17 + sum(node.free)
    if scoring.kind == rules.POTENTIAL:
        return _potential(scoring, stage, node) - _potential(scoring, stage, after)
    if scoring.kind == rules.FGD:
        gain = _fragmentation(scoring, node) - _fragmentation(scoring, after)
        return 100 - sum(int(step) <= gain for step in scoring.steps)
    if scoring.kind == rules.DOT_PRODUCT:
        product = node.cpu / 128_000 * cpu / 128_000 + sum(node.free) / 8_000 * milli / 8_000
        return 100 - int(100 * (1 - product / 2))
    if scoring.kind == rules.RANDOM:
        return _mixed(scoring.salt, c, node)
    return 0


def _potential(scoring: Scoring, stage: int, node: _Node) -> int:
    """The least, over the price points, of what the holes, the CPU and the memory are worth."""
    row = stage * (len(scoring.value) // (len(scoring.stages) + 1)) + node.model
    worths = []
    for k in range(scoring.value.shape[2]):
        worth = int(scoring.value[row, WHOLE + 1 + node.free.count(WHOLE), k])
        worth += sum(int(scoring.value[row, free, k]) for free in node.free if free < WHOLE)
        worth += int(scoring.price[row, 0, k]) * node.cpu + int(scoring.price[row, 1, k]) * node.mib
        worths.append(worth)
    return min(worths)


def _fragmentation(scoring: Scoring, node: _Node) -> int:
    """What is free on the node and cannot be used by a typical task, by how often that task comes."""
    total = 0
    for level, count, cpu, frequency, models in scoring.typical.tolist():
        milli = int(scoring.levels[level])
        enough = sum(free >= milli for free in node.free) >= count
        if milli > 0 and enough and node.cpu >= cpu and models >> node.model & 1:
            total += frequency * sum(free for free in node.free if free < milli)
        else:
            total += frequency * sum(node.free)
    return total


def _mixed(salt: int, c: int, node: _Node) -> int:
    """The mixer of splitmix64 over what identifies the class, the node and its state."""
    x = (salt ^ c * 0x9E3779B97F4A7C15 ^ node.row << 40) & _MASK64
    x ^= (node.cpu * 0xD6E8FEB86659FD93 ^ sum(node.free)) & _MASK64
    for _ in range(2):
        x ^= x >> 30
        x = x * 0xBF58476D1CE4E5B9 & _MASK64
        x ^= x >> 27
        x = x * 0x94D049BB133111EB & _MASK64
        x ^= x >> 31
    return x >> 24
