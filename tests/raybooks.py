"""An observer of a Ray cluster that trusts nobody: it reads Ray's own books, and says where they break the rules.

    python tests/raybooks.py --gcs HOST:PORT|FILE --limits '{"ops": 3000}' --out FILE    # until SIGTERM

It is a process of its own, no Ray driver, and imports nothing of Moorage: the GCS's tables of nodes, actors, placement
groups and jobs, and each raylet's workers, by gRPC with the cluster's token (RAY_AUTH_MODE, RAY_AUTH_TOKEN_PATH). Whose
a Ray job is, is in the name that its user gave it: `<team>-<anything>`; what has no such name is nobody's.

`FILE` has one JSON line per violation, and `{"samples": ..., "blind": ...}` as the last line. Amounts are milli-GPU.
"""

from __future__ import annotations

import argparse
import json
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

EVERY_S = 0.2
RPC_TIMEOUT_S = 3.0
NOBODY = "(nobody)"
_SUPERVISOR = "_ray_internal_job_actor_"


@dataclass(frozen=True)
class Held:
    """One process and what it holds: `devices` {index: milli-GPU} of `node`. `job` is Ray's submission id, or ""."""

    node: str
    pid: int
    job: str
    devices: Mapping[int, int]

    @property
    def milli(self) -> int:
        return sum(self.devices.values())


@dataclass(frozen=True)
class Books:
    """What one book says at one moment: `gcs` (one answer of the GCS) or the node of one raylet."""

    book: str
    at: float
    held: tuple[Held, ...]
    reserved: Mapping[str, int] = field(default_factory=dict)
    """Milli-GPU of placement groups by submission id, which count whether or not somebody works in them."""


@dataclass(frozen=True)
class Violation:
    rule: str
    book: str
    at: float
    who: str
    amount: int
    most: int
    holders: tuple[str, ...]


def team_of(job: str) -> str:
    return job.partition("-")[0] if "-" in job else NOBODY


def judge(books: Books, limits: Mapping[str, int]) -> Iterator[Violation]:
    """What is wrong in `books`: a team above its limit (who is not in `limits` may hold nothing), more than a device
    has, and a device with a whole owner and another one."""
    use: dict[str, int] = defaultdict(int)
    owners: dict[str, list[str]] = defaultdict(list)
    for held in books.held:
        use[team_of(held.job)] += held.milli
        owners[team_of(held.job)].append(f"{held.job or '?'}@{held.pid}")
    for job, milli in books.reserved.items():
        use[team_of(job)] += milli
        owners[team_of(job)].append(f"{job}@group")
    for team, milli in sorted(use.items()):
        if milli > limits.get(team, 0):
            yield Violation(
                "team-above-limit",
                books.book,
                books.at,
                team,
                milli,
                limits.get(team, 0),
                tuple(owners[team]),
            )
    yield from _devices(books)


def _devices(books: Books) -> Iterator[Violation]:
    parts: dict[tuple[str, int], list[tuple[int, str]]] = defaultdict(list)
    for held in books.held:
        for device, milli in held.devices.items():
            parts[held.node, device].append((milli, f"{held.job or '?'}@{held.pid}"))
    for (node, device), there in sorted(parts.items()):
        total = sum(milli for milli, _ in there)
        if total > 1000:
            rule = "two-owners" if any(milli >= 1000 for milli, _ in there) else "over-committed"
            who = tuple(name for _, name in there)
            yield Violation(rule, books.book, books.at, f"{node[:8]}/{device}", total, 1000, who)


class Ray:
    """Ray's books by gRPC. Any method raises what gRPC raises while Ray is away."""

    def __init__(self, address: Callable[[], str]) -> None:
        from ray._private.grpc_utils import init_grpc_channel
        from ray.core.generated import node_manager_pb2_grpc

        self._connect, self._address, self._gcs = init_grpc_channel, address, ""
        self._raylet = node_manager_pb2_grpc.NodeManagerServiceStub
        self._raylets: dict[str, Any] = {}
        self._names: dict[str, str] = {}
        self._actors_of: dict[bytes, str] = {}
        self.follow()

    def follow(self) -> None:
        """Read where the cluster may be another one now. Ids of jobs begin anew in each."""
        from ray.core.generated import gcs_service_pb2_grpc

        gcs = self._address()
        if not gcs or gcs == self._gcs:
            return
        self._gcs = gcs
        self._names.clear()
        self._actors_of.clear()
        channel = self._connect(gcs)
        self._nodes = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
        self._actors = gcs_service_pb2_grpc.ActorInfoGcsServiceStub(channel)
        self._groups = gcs_service_pb2_grpc.PlacementGroupInfoGcsServiceStub(channel)
        self._jobs = gcs_service_pb2_grpc.JobInfoGcsServiceStub(channel)

    def gcs_books(self) -> Books:
        """Living actors on living nodes, and what placement groups hold. Bundles count in `reserved`, and the actors
        within them not again."""
        from ray.core.generated import gcs_pb2
        from ray.core.generated import gcs_service_pb2 as ask

        wanted = ask.GetAllActorInfoRequest.Filters(state=gcs_pb2.ActorTableData.ALIVE)
        at = time.time()

        def living() -> Iterable[Any]:
            question = ask.GetAllActorInfoRequest(limit=100_000, filters=wanted)
            found: Iterable[Any] = self._actors.GetAllActorInfo(
                question, timeout=RPC_TIMEOUT_S
            ).actor_table_data
            return found

        before = {row.actor_id for row in living()}
        groups = self._groups.GetAllPlacementGroup(
            ask.GetAllPlacementGroupRequest(limit=100_000), timeout=RPC_TIMEOUT_S
        ).placement_group_table_data
        # Those that lived before the groups were read and after: one that ended meanwhile is not held beside a group
        # that came in its place.
        actors = [row for row in living() if row.actor_id in before]
        alive = self.raylets()
        held = []
        for row in actors:
            slots = _slots((entry.name, entry.resource_ids) for entry in row.resource_mapping)
            node = row.node_id.hex()
            if slots and node in alive:
                job = self._known(row)
                held.append(Held(node, row.pid, job, slots))
        reserved: dict[str, int] = defaultdict(int)
        states = gcs_pb2.PlacementGroupTableData.PlacementGroupState
        for row in groups:
            if states.Name(row.state) in ("CREATED", "RESCHEDULING"):
                for bundle in row.bundles:
                    if bundle.node_id.hex() in alive and bundle.unit_resources.get("GPU"):
                        reserved[self._job(row.creator_job_id)] += round(bundle.unit_resources["GPU"] * 1000)
        return Books("gcs", at, tuple(held), dict(reserved))

    def raylet_books(self, node: str, address: str) -> Books:
        """What the workers of one node hold, as its raylet hears it from each of them: tasks too."""
        from ray.core.generated import node_manager_pb2

        if address not in self._raylets:
            self._raylets[address] = self._raylet(self._connect(address))
        question = node_manager_pb2.GetNodeStatsRequest(include_memory_info=False)
        at, held = time.time(), []
        stats = self._raylets[address].GetNodeStats(question, timeout=RPC_TIMEOUT_S)
        for worker in stats.core_workers_stats:
            devices: dict[int, int] = {}
            for name, found in worker.used_resources.items():
                if name == "GPU":
                    for slot in found.resource_slots:
                        devices[int(slot.slot)] = round(slot.allocation * 1000)
            if devices:
                held.append(Held(node, worker.pid, self._whose(worker.actor_id, worker.job_id), devices))
        return Books(node, at, tuple(held))

    def raylets(self) -> dict[str, str]:
        """Living nodes: Ray's id -> address of the raylet."""
        from ray.core.generated import gcs_pb2
        from ray.core.generated import gcs_service_pb2 as ask

        rows = self._nodes.GetAllNodeInfo(ask.GetAllNodeInfoRequest(), timeout=RPC_TIMEOUT_S).node_info_list
        alive = gcs_pb2.GcsNodeInfo.ALIVE
        return {
            row.node_id.hex(): f"{row.node_manager_address}:{row.node_manager_port}"
            for row in rows
            if row.state == alive
        }

    def _whose(self, actor: bytes, ray_job: bytes) -> str:
        """The submission of a worker that runs an actor, or a task when `actor` is nil."""
        from ray.core.generated import gcs_service_pb2 as ask

        if not actor.strip(b"\xff"):  # nil is nothing but ones; one of 256 ids begins with eight of them
            return self._job(ray_job)
        if actor not in self._actors_of:
            question = ask.GetActorInfoRequest(actor_id=actor)
            self._known(self._actors.GetActorInfo(question, timeout=RPC_TIMEOUT_S).actor_table_data)
        return self._actors_of[actor]

    def _known(self, row: Any) -> str:
        """The submission of an actor. That of a job's own supervisor is in its name: it runs for Ray."""
        if row.actor_id not in self._actors_of:
            mine = row.name.startswith(_SUPERVISOR)
            self._actors_of[row.actor_id] = row.name[len(_SUPERVISOR) :] if mine else self._job(row.job_id)
        return self._actors_of[row.actor_id]

    def _job(self, ray_job: bytes) -> str:
        """The submission behind a Ray job; a name once known stays known."""
        from ray.core.generated import gcs_service_pb2 as ask

        key = ray_job.hex()
        if key not in self._names:
            question = ask.GetAllJobInfoRequest(
                skip_submission_job_info_field=True, skip_is_running_tasks_field=True
            )
            for row in self._jobs.GetAllJobInfo(question, timeout=RPC_TIMEOUT_S).job_info_list:
                self._names[row.job_id.hex()] = dict(row.config.metadata).get("job_submission_id", "")
        return self._names.get(key, "")


def _slots(mapping: Iterable[tuple[str, Any]]) -> dict[int, int]:
    """{device: milli-GPU} outside placement groups."""
    return {
        int(slot.index): round(float(slot.quantity) * 1000)
        for name, slots in mapping
        if name == "GPU"
        for slot in slots
    }


def watch(ray: Ray, limits: Mapping[str, int], ended: threading.Event, out: Any) -> dict[str, Any]:
    """Look every `EVERY_S` until `ended`; violations go to `out` as they are seen. What it counts: `samples` of the
    GCS, `raylet_samples`, `blind` (Ray did not answer), `busiest` (most milli-GPU in use at once), `most` per team."""
    count: dict[str, Any] = {"samples": 0, "raylet_samples": 0, "blind": 0, "violations": 0, "busiest": 0}
    most: dict[str, int] = defaultdict(int)
    while not ended.wait(EVERY_S):
        for books in _look(ray, count):
            count["samples" if books.book == "gcs" else "raylet_samples"] += 1
            if books.book == "gcs":
                use: dict[str, int] = defaultdict(int)
                for held in books.held:
                    use[team_of(held.job)] += held.milli
                count["busiest"] = max(count["busiest"], sum(use.values()))
                for team, milli in use.items():
                    most[team] = max(most[team], milli)
            for found in judge(books, limits):
                count["violations"] += 1
                out.write(json.dumps(asdict(found)) + "\n")
                out.flush()
    return {**count, "most": dict(most)}


def _look(ray: Ray, count: dict[str, Any]) -> Iterator[Books]:
    import grpc

    try:
        yield ray.gcs_books()
        raylets = ray.raylets()
    except grpc.RpcError:
        count["blind"] += 1
        ray.follow()
        return
    for node, address in raylets.items():
        try:
            yield ray.raylet_books(node, address)
        except grpc.RpcError:
            count["blind"] += 1


def where(gcs: str) -> str:
    """The address now; "" while the file that tells it is not there."""
    if not gcs.endswith(".json"):
        return gcs
    try:
        return str(json.loads(Path(gcs).read_text(encoding="utf-8")).get("ray_address") or "")
    except FileNotFoundError:
        return ""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gcs", required=True, help="HOST:PORT, or a JSON file whose `ray_address` says it")
    parser.add_argument("--limits", required=True, help='{"team": milli-GPU}')
    parser.add_argument("--out", required=True, type=Path)
    options = parser.parse_args()
    ended = threading.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: ended.set())
    with options.out.open("w", encoding="utf-8") as out:
        counted = watch(Ray(lambda: where(options.gcs)), json.loads(options.limits), ended, out)
        out.write(json.dumps(counted) + "\n")


if __name__ == "__main__":
    main()
