"""S4: a live pool packs by the mix of what it was asked for, once it knows it; tables are never waited for."""

from __future__ import annotations

from pathlib import Path

import pytest
from control_world import World, world
from waiting import until

from moorage.configs.pool import PoolSettings, parse_pool
from moorage.errors import InvalidRequest
from moorage.kernels.placing_scores import POTENTIAL
from moorage.runtime.control import packing
from moorage.runtime.control.simbackend import SimNode

TEAMS = "teams: {ops: {}}"
NODES = tuple(SimNode(name=f"node-{n}") for n in range(3))


def kinds(pool: World) -> object:
    """The rule that the next decision packs by."""
    with pool.service.store.lock:
        scoring = pool.service.core.snapshot((), {}).scoring
    return "best-fit" if scoring is None else scoring.kind


def renew(pool: World) -> None:
    core = pool.service.core
    core.packing.close()
    core.packing.renew(core.book.ledger.copy(), pool.clock.now().control_ns)


def test_it_packs_by_best_fit_until_it_knows_the_mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "FEWEST_TASKS", 4)
    with world(tmp_path, teams=TEAMS, nodes=NODES) as pool:
        pool.submit("ops", gpus=0.3, workers=2, seconds="1")
        renew(pool)
        assert kinds(pool) == "best-fit"
        pool.submit("ops", gpus=0.7, workers=2, seconds="1")
        renew(pool)
        assert kinds(pool) == POTENTIAL
        with pool.service.store.lock:
            first, again = (pool.service.core.snapshot((), {}).scoring for _ in range(2))
        assert first is again, "a workspace keeps its scores only for the same tables"


def test_new_tables_are_asked_for_when_the_nodes_are_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "FEWEST_TASKS", 1)
    with world(tmp_path, teams=TEAMS, nodes=NODES[:2]) as pool:
        pool.submit("ops", gpus=0.3, seconds="1")
        renew(pool)
        assert kinds(pool) == POTENTIAL
        pool.backend.nodes += (SimNode(name="node-new", gpu_model="H100"),)
        pool.run(1)
        until(lambda: kinds(pool) == POTENTIAL, 30, "tables for the new model")
        scoring = pool.service.core.snapshot((), {}).scoring
        assert scoring is not None and len(scoring.tie) == 3


def test_an_operator_may_turn_it_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "FEWEST_TASKS", 0)
    settings = PoolSettings(packing="best-fit")
    with world(tmp_path, teams=TEAMS, nodes=NODES, settings=settings) as pool:
        pool.submit("ops", gpus=0.3, seconds="1")
        renew(pool)
        assert kinds(pool) == "best-fit"


def test_only_rules_that_a_pool_has(tmp_path: Path) -> None:
    assert parse_pool("packing: best-fit").packing == "best-fit"
    with pytest.raises(InvalidRequest, match="packing"):
        parse_pool("packing: tetris")
