"""Who uses the placement group that a job's plain tasks and actors run in (`leasegroup`), as keys in the GCS.

A process joins before it puts anything in and leaves when nothing of its own is in it; the last one removes the group,
or whoever finds that all its users have ended. Another key says that somebody is about to: each side writes its own key
before it reads the others', so that of one who joins and one who removes at least one sees the other.
"""

from __future__ import annotations

from moorage.cluster import rayapi

USERS, CLOSING, WANTED = "lease-group-users/", "lease-group-closing/", "lease-group-wanted/"
"""Behind them the group's id, and who says it (of the third: anybody)."""


def join(group_id: str) -> bool:
    """Put this process among the group's users; False when the group is gone or about to go."""
    me = rayapi.own_id()
    rayapi.kv_put(f"{USERS}{group_id}/{me}", b"1")
    there = False
    try:
        # In this order: who did not see us either says still that it is about to remove it, or has removed it.
        closing = [who for who in _named(f"{CLOSING}{group_id}/") if who != me and not rayapi.has_ended(who)]
        there = not closing and not rayapi.group_is_gone(group_id)
    finally:
        if not there:
            rayapi.kv_delete(f"{USERS}{group_id}/{me}")
    return there


def close(group_id: str, *, leaving: bool = False) -> bool:
    """Remove the group if all that used it have ended or left; `leaving`: this process does now. A detached actor in it
    outlives who made it."""
    me = rayapi.own_id()
    rayapi.kv_put(f"{CLOSING}{group_id}/{me}", b"1")
    try:
        if leaving:
            rayapi.kv_delete(f"{USERS}{group_id}/{me}")
        users = _named(f"{USERS}{group_id}/")
        if not all(rayapi.has_ended(user) for user in users) or rayapi.has_detached(group_id):
            return False
        rayapi.remove_group(group_id, patient=True)
        for user in users:
            rayapi.kv_delete(f"{USERS}{group_id}/{user}")
        return True
    finally:
        rayapi.kv_delete(f"{CLOSING}{group_id}/{me}")


def want(group_id: str, *, over: bool = False) -> None:
    """Say that somebody waits for the group's room, or that it is over."""
    if over:
        rayapi.kv_delete(WANTED + group_id)
    else:
        rayapi.kv_put(WANTED + group_id, b"1")


def is_wanted(group_id: str) -> bool:
    """Whether somebody waits for the group's room."""
    return rayapi.kv_get(WANTED + group_id) is not None


def _named(prefix: str) -> list[str]:
    return [key.removeprefix(prefix) for key in rayapi.kv_keys(prefix)]
