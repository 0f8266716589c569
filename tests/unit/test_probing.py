"""A raylet that listens no more is gone at once; one that never took a connection may be behind a firewall. (G6)"""

from __future__ import annotations

import socket

from moorage.cluster import probing
from moorage.cluster.probing import Probe


def listener() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


def address(of: socket.socket) -> tuple[str, int]:
    host, port = of.getsockname()[:2]
    return host, port


def test_one_that_listened_and_does_no_more_is_gone() -> None:
    probe, stays, goes = Probe(), listener(), listener()
    raylets = {"stays": address(stays), "goes": address(goes)}
    assert probe.gone(raylets) == set()
    goes.close()
    assert probe.gone(raylets) == {"goes"}
    assert probe.gone(raylets) == {"goes"}, "it stays gone until Ray says so too"
    stays.close()


def test_one_that_never_took_a_connection_is_left_to_ray() -> None:
    probe, closed = Probe(), listener()
    where = address(closed)
    closed.close()
    assert probe.gone({"never": where}) == set()
    assert probe.gone({"never": where}) == set()


def test_a_node_that_ray_dropped_is_forgotten() -> None:
    probe, once = Probe(), listener()
    where = address(once)
    probe.gone({"n": where})
    probe.gone({})
    once.close()
    assert probe.gone({"n": where}) == set(), "another node may have that id's place: it has not answered yet"


def test_a_large_cluster_is_not_probed(monkeypatch) -> None:
    monkeypatch.setattr(probing, "MAX_PROBED", 0)
    assert Probe().gone({"n": ("127.0.0.1", 1)}) == set()
