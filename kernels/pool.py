"""What the kernels place on: the pool, the classes of tasks, the scores, and the limits beyond a single node."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from moorage.kernels.placing import Scores
from moorage.kernels.placing_scores import Classes, Nodes, Scoring

I64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

REQUIRED, PREFERRED, SPREAD, SPREAD_BY, FIRST, ANY, RULES = range(7)
"""Columns of `Limits.rules`."""


class Limits(NamedTuple):
    """What binds a gang beyond each task's own node. K keys that part the nodes into domains, N nodes, C classes.

    A key is a level of the topology (`rack`, `zone`); a node is in one domain of each, or in none. Domains of a key are
    numbered in the order of their names.
    """

    on: bool
    """Anything binds at all."""
    rules: I64
    """[C,6] by class: the key whose domain must hold the whole gang, the key of which few domains are to be used
    (-1 = none); at most so many workers (0 = any number) on a node (key -1) or in a domain of the key; the same class
    without the nodes that are only a last resort (-1 = there are none); 1 = any of these."""
    domain: I64
    """[K,N] the node's domain, -1 = none"""
    member: I64
    """[K+1,N] nodes by domain, those in none first; the last row is all nodes in order"""
    start: I64
    """[K,D+1] where each domain begins in `member`; the one after the last begins at N"""
    domains: I64
    """[K] how many domains there are"""
    power_by: int
    """The key whose domains have a power cap, -1 = no caps"""
    watts: I64
    """[N] rated power of one device in use"""
    cap: I64
    """[D] W by domain of that key"""
    tally: I64
    """Scratch, 0 between calls: workers of the gang on each node or in each domain."""
    hold: I64
    """[2,D] scratch: how many tasks each domain has room for, when one is required and when few are preferred"""
    tried: Bool
    """[2,D] scratch"""


class Pool(NamedTuple):
    """What tasks are placed on, with what, and how."""

    nodes: Nodes
    classes: Classes
    scores: Scores
    scoring: Scoring
    raylet: bool
    """Ray's raylet picks the device; else the planner."""
    limits: Limits


def unlimited(nodes: int, classes: int) -> Limits:
    """Limits that say nothing."""
    rules = np.full((classes, RULES), -1, np.int64)
    rules[:, [SPREAD, ANY]] = 0
    none, nobody = np.zeros(nodes, np.int64), np.zeros((2, 0), np.int64)
    return Limits(
        on=False,
        rules=rules,
        domain=np.zeros((0, nodes), np.int64),
        member=np.arange(nodes).reshape(1, nodes),
        start=np.zeros((0, 1), np.int64),
        domains=np.zeros(0, np.int64),
        power_by=-1,
        watts=none,
        cap=np.zeros(0, np.int64),
        tally=none.copy(),
        hold=nobody,
        tried=nobody.astype(np.bool_),
    )
