"""Which raylets are gone, seconds before Ray itself says so: their port refuses connections. No Ray import.

Ray's health checks need several misses in a row. Meanwhile the work of a lost node fails on others, and looks like its
user's fault.
"""

from __future__ import annotations

import errno
import selectors
import socket
import time
from collections.abc import Mapping

MAX_PROBED = 256
"""Above so many nodes only Ray's own word counts."""
WITHIN_S = 0.2


class Probe:
    """Only a node that once took a connection from here can be called gone: a firewall refuses too."""

    def __init__(self) -> None:
        self._answered: set[str] = set()

    def gone(self, raylets: Mapping[str, tuple[str, int]]) -> set[str]:
        """Of living nodes, by Ray's id and where their raylet listens, those that listen no more. Who does not answer
        in `WITHIN_S` is not among them."""
        if len(raylets) > MAX_PROBED:
            return set()
        self._answered &= raylets.keys()
        taken, refused = connections(raylets, WITHIN_S)
        gone = refused & self._answered
        self._answered |= taken
        return gone


def connections(addresses: Mapping[str, tuple[str, int]], within_s: float) -> tuple[set[str], set[str]]:
    """Who takes a connection, and who refuses it, within that time; all are tried at once."""
    taken: set[str] = set()
    refused: set[str] = set()
    with selectors.DefaultSelector() as waiting:
        for key, address in addresses.items():
            probe = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
            probe.setblocking(False)
            try:
                probe.connect_ex(address)
                waiting.register(probe, selectors.EVENT_WRITE, key)
            except OSError:
                probe.close()
        deadline = time.monotonic() + within_s
        while waiting.get_map() and (left := deadline - time.monotonic()) > 0:
            for ready, _ in waiting.select(left):
                found = ready.fileobj
                assert isinstance(found, socket.socket)
                error = found.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if error == 0:
                    taken.add(ready.data)
                elif error == errno.ECONNREFUSED:
                    refused.add(ready.data)
                waiting.unregister(found)
                found.close()
        for left_over in list(waiting.get_map().values()):
            assert isinstance(left_over.fileobj, socket.socket)
            left_over.fileobj.close()
    return taken, refused
