"""The admission loop of one decision (numba): jobs in order, under quotas, placed as gangs.

Two passes. In the first, every job that fits its team's own quota is tried in the given order. What may only start
by borrowing waits for the second, where the next job is always that of the team furthest below its fair share
(`kernels.sharing`), among jobs of the highest priority. Where nobody has a quota the caller may put all jobs there.

The loop keeps its position in `state`, and returns early when the caller must help: `GROW` (the output columns are
full), `JUDGE` (is `state[ROW]` a job that even an idle pool could never start?), `RESERVE` (find room in the future for
row `state[ROW]`, which lacks it now) or `HELP` (row `state[ROW]` was not placed, and why stands in `state[ANSWER]`:
borrow, push others out or start beside a reservation, and say what came of it there, placements in `out`). Called
again, it goes on. What is rare stays outside so that the loop stays small: numba compiles it again for whoever changes
it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from moorage.kernels.gang import Pool, place_within, undo
from moorage.kernels.jit import inner, outer, small
from moorage.kernels.moving import scattered
from moorage.kernels.sharing import at_its_share, next_team
from moorage.kernels.teams import Teams, charge, hold, in_quota, limits, narrower, room

I64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

UNLIMITED = 2**62
WHOLE = 1000
NOBODY = -(2**62)
"""The greatest index of nobody."""

# what the loop returns
DONE, GROW, JUDGE, HELP, RESERVE = 0, 1, 2, 3, 4
# state[...]: where the loop is
PASS, AT, ROW, HELD, ADMITTED, TASKS, DEFERRED, ANSWERED, ANSWER, FIRST, OF, LEFT, HELPED, STATE_SIZE = range(
    14
)
# verdicts of `judge`
UNKNOWN, POSSIBLE, NEVER = 0, 1, 2
# what became of asking for a reservation
UNASKED, PROMISED, NO_PROMISE = 0, 1, 2
# reason codes of deferred rows
TEAM_UNKNOWN, TEAM_LIMIT, TEAM_QUOTA, NO_ROOM, BEHIND, BUDGET, RESERVED, DELAYS = 0, 1, 2, 3, 4, 5, 6, 7
# what became of a row that was not placed
WAITS, BORROWS, WAITS_BEHIND, MAY_BORROW, MAY_PUSH, WAITS_DELAYS, MAY_OVERTAKE = -1, -2, -3, -4, -5, -6, -7


class Rows(NamedTuple):
    """R waiting jobs; see `scheduling.queue.Queue`. `team` is a row of `Teams`, -1 unknown."""

    team: I64
    head: I64
    worker: I64
    workers: I64
    min_workers: I64
    least: I64
    priority: I64
    key: I64
    """A policy's index: lower goes first at equal priority. All 0: in order of submission."""
    submitted_ns: I64
    column: I64
    """The one GPU model asked for, 0 when any or several."""
    alike: I64
    """The class of the tasks of a job for which others may be moved aside, else -1."""
    old: Bool
    """Has waited so long that nothing ordered after it may take room it could use."""
    ends: I64
    """When it ends at the latest if it starts now; UNLIMITED where nobody knows."""
    kind: I64
    """Rows of one kind are of one team and ask for the same."""


class Out(NamedTuple):
    """The plan under construction; grown by the caller."""

    admitted: I64
    workers: I64
    task_admission: I64
    task_index: I64
    task_node: I64
    task_mask: I64
    task_mem: I64
    task_class: I64
    deferred: I64
    code: I64
    figures: I64
    """[D, 4] for a deferred row: team row, model column, held, allowed; BEHIND, DELAYS: the row waited for.
    BUDGET: the account."""


class Later(NamedTuple):
    """Rows that may only start by borrowing: a linked list by team, in the order of the first pass."""

    head: I64
    """[T] -1 when empty."""
    tail: I64
    next: I64
    """[R]"""


class Asking(NamedTuple):
    """What a row may do to others."""

    margin: int
    lowest: int
    greatest: int
    moves: bool
    """Running jobs may be moved."""
    stuck: I64
    """[C] the cache's clock when moving last failed for a class, -1 = never."""
    held: int
    """The row that nothing ordered after it may overtake; -1 when there is none."""
    reserved: int
    """When the first reservation begins; UNLIMITED when there is none."""
    refused: I64
    """[K] by kind: a row that ends then or later would delay a reservation."""


class Promises(NamedTuple):
    """Reservations, as far as the loop must know of them; `scheduling.reservations` makes them."""

    promised: I64
    """[R] UNASKED, PROMISED or NO_PROMISE."""
    refused: I64
    """See `Asking`."""


class Rooms(NamedTuple):
    """Scratch: milli-GPU by model column."""

    own: I64
    allowed: I64
    within: I64
    left: I64
    full: I64
    """[K] by kind: the moment at which a row of it was found to lack room; -1 = never."""
    why: I64
    """[K] where that row stands among the deferred."""


@inner
def _put_off(later: Later, team: int, row: int) -> None:
    if later.tail[team] < 0:
        later.head[team] = row
    else:
        later.next[later.tail[team]] = row
    later.tail[team] = row


@inner
def _why(teams: Teams, rows: Rows, row: int, left: I64, out: Out, at: int) -> int:
    """The rule that binds, tried from the outermost: limit, quota, then room on devices."""
    team, column, least = rows.team[row], rows.column[row], rows.least[row]
    out.figures[at, 0], out.figures[at, 1] = team, column
    if teams.free[team]:
        return NO_ROOM
    limits(teams, team, left)
    for c in (column, 0):
        if left[c] < least:
            binding, smallest, walk = team, np.int64(UNLIMITED), team
            while walk >= 0:
                gap = teams.limit[walk, c] - teams.total[walk, c]
                if gap < smallest:
                    binding, smallest = walk, gap
                walk = teams.parent[walk]
            out.figures[at, 0], out.figures[at, 1] = binding, c
            out.figures[at, 2], out.figures[at, 3] = teams.total[binding, c], teams.limit[binding, c]
            return TEAM_LIMIT
    room(teams, team, left)
    for c in (column, 0):
        if left[c] < least:
            out.figures[at, 0], out.figures[at, 1] = team, c
            out.figures[at, 2], out.figures[at, 3] = teams.used[team, c], teams.used[team, c] + left[c]
            return TEAM_QUOTA
    return NO_ROOM


@inner
def _admit(teams: Teams, rows: Rows, row: int, workers: int, pool: Pool, out: Out, state: I64) -> None:
    at, team = state[TASKS], rows.team[row]
    heads = 1 if rows.head[row] >= 0 else 0
    cpu, mib, gpu_mib = np.int64(0), np.int64(0), np.int64(0)
    for t in range(heads + workers):
        c = rows.head[row] if t < heads else rows.worker[row]
        cpu += pool.classes.cpu[c]
        mib += pool.classes.mib[c]
        out.task_admission[at + t] = state[ADMITTED]
        out.task_index[at + t] = t - heads
        out.task_class[at + t] = c
        milli = pool.classes.milli[c]
        if milli > 0:
            charge(teams, team, 0, milli)
            gpu_mib += out.task_mem[at + t] * max(milli // WHOLE, np.int64(1))
            m = pool.nodes.model[out.task_node[at + t]]
            if m > 0:
                charge(teams, team, m, milli)
    hold(teams, team, cpu, mib, gpu_mib)
    out.admitted[state[ADMITTED]] = row
    out.workers[state[ADMITTED]] = workers
    state[ADMITTED] += 1
    state[TASKS] += heads + workers


@inner
def _defer(out: Out, state: I64, row: int, code: int) -> None:
    out.deferred[state[DEFERRED]] = row
    out.code[state[DEFERRED]] = code
    state[DEFERRED] += 1


@inner
def _alike(rows: Rows, a: int, b: int) -> bool:
    """Whether two rows of one team ask for the same: where one cannot start, neither can the other."""
    same = rows.head[a] == rows.head[b] and rows.worker[a] == rows.worker[b]
    same &= rows.workers[a] == rows.workers[b] and rows.min_workers[a] == rows.min_workers[b]
    return bool(same and rows.priority[a] == rows.priority[b] and rows.key[a] == rows.key[b])


@inner
def _defer_alike(rows: Rows, row: int, later: Later, out: Out, state: I64) -> int:
    """Defer for the same reason what waits right behind a row that was just deferred and asks for the same: nothing
    changed in between. Returns the last row that was deferred."""
    why = state[DEFERRED] - 1
    behind = later.next[row]
    while behind >= 0 and not rows.old[behind] and _alike(rows, row, behind):
        for f in range(4):
            out.figures[state[DEFERRED], f] = out.figures[why, f]
        _defer(out, state, behind, out.code[why])
        row, behind = behind, later.next[behind]
    return int(row)


@inner
def worth_trying(rows: Rows, row: int, entitled: bool, asking: Asking, teams: Teams) -> bool:
    """A quick look before the long one of `asking.make_room`."""
    if asking.greatest == NOBODY:
        return False
    if entitled and teams.counted[0] > 0:
        return True
    return rows.priority[row] > asking.lowest or rows.key[row] + asking.margin < asking.greatest


@inner
def may_move(pool: Pool, c: int, stuck: I64) -> bool:
    """Whether moving others aside may make a place for class `c`: not when that failed and nothing changed since."""
    return stuck[c] != pool.scores.clock[0] and scattered(pool, c)


@inner
def _try_row(
    pool: Pool,
    rows: Rows,
    row: int,
    teams: Teams,
    asking: Asking,
    first: bool,
    room_of: Rooms,
    out: Out,
    at: int,
) -> int:
    """The workers placed for a row, or WAITS, BORROWS (it may only start by borrowing), WAITS_BEHIND, WAITS_DELAYS, or
    what the caller is to find out: MAY_BORROW, MAY_PUSH, MAY_OVERTAKE (it fits, but may take what is reserved)."""
    team, asked, column = rows.team[row], rows.least[row], rows.column[row]
    allowed, within, own = room_of.allowed, room_of.within, room_of.own
    bounded = not teams.free[team]
    if bounded:
        room(teams, team, allowed)
        for m in range(len(allowed)):
            within[m] = allowed[m]
        if first and asked == 0 and teams.counted[0] > 0 and at_its_share(teams, team):
            return BORROWS
        if first and asked > 0:
            in_quota(teams, team, own)
            if asked > own[0] or asked > own[column]:
                return BORROWS
            for m in range(len(own)):
                within[m] = min(within[m], own[m])
    else:
        allowed[:] = UNLIMITED
        within[:] = UNLIMITED
    if asking.held >= 0 and asked > 0:
        return WAITS_BEHIND
    node, mask, mem = out.task_node[at:], out.task_mask[at:], out.task_mem[at:]
    head, worker, least = rows.head[row], rows.worker[row], rows.min_workers[row]
    # whoever has bounds may take what a reserved job needs of its own, however short it runs
    long = rows.ends[row] > asking.reserved or (bounded and asking.reserved < UNLIMITED)
    if long and rows.ends[row] >= asking.refused[rows.kind[row]]:
        return WAITS_DELAYS
    workers = rows.workers[row]
    if long:
        workers = min(workers, max(least, 1 if head < 0 else 0))
    placed = place_within(pool, head, worker, workers, least, within, room_of.left, node, mask, mem)
    if placed >= 0:
        if not long:
            return placed
        undo(pool, head, worker, placed, node, mask)
        return MAY_OVERTAKE
    # its quota may be enough, but of other models than those free: these it may borrow
    if bounded and first and narrower(within, allowed):
        return MAY_BORROW
    if asked > 0 and worth_trying(rows, row, first, asking, teams):
        return MAY_PUSH
    if asking.moves and rows.alike[row] >= 0 and may_move(pool, rows.alike[row], asking.stuck):
        return MAY_PUSH
    return WAITS


@small
def _moment(rows: Rows, row: int, teams: Teams, state: I64) -> int:
    """A number that is another one once anything was placed, or taken from anybody; or for a row that must look out
    for reservations."""
    long = rows.ends[row] > state[FIRST] or (state[FIRST] < UNLIMITED and not teams.free[rows.team[row]])
    return 2 * (state[ADMITTED] + state[HELPED]) + (1 if long else 0)


@small
def _as_before(
    rows: Rows,
    row: int,
    teams: Teams,
    bounds: tuple[int, int, int, bool],
    promises: Promises,
    rooms: Rooms,
    state: I64,
) -> int:
    """NO_ROOM or DELAYS where the row waits for that as one of its kind did a moment ago, and there is nothing that it
    could do and the other could not; -1 where it must be tried. In long queues nearly all rows are of this sort."""
    team, kind = rows.team[row], rows.kind[row]
    if team < 0 or state[HELD] >= 0 or (state[LEFT] > 0 and promises.promised[row] == UNASKED):
        return -1
    if teams.free[team] and rows.ends[row] > state[FIRST] and rows.ends[row] >= promises.refused[kind]:
        return DELAYS
    if rooms.full[kind] != _moment(rows, row, teams, state) or rows.ends[row] >= promises.refused[kind]:
        return -1
    if (rows.old[row] and state[FIRST] == UNLIMITED) or (bounds[3] and rows.alike[row] >= 0):
        return -1
    if bounds[2] != NOBODY:
        ahead = rows.priority[row] > bounds[1] or rows.key[row] + bounds[0] < bounds[2]
        if ahead or teams.counted[0] > 0:
            return -1
    return NO_ROOM


@outer
def admit(
    order: I64,
    rows: Rows,
    teams: Teams,
    pool: Pool,
    bounds: tuple[int, int, int, bool],
    stuck: I64,
    max_admissions: int,
    judged: I64,
    promises: Promises,
    later: Later,
    rooms: Rooms,
    out: Out,
    state: I64,
) -> int:
    """Try every row once; see the module. `judged[R]` holds verdicts; `later` links each team's borrowers in order.

    `bounds`: the least lead of an index that may push out, and of all who may be pushed out the lowest priority and
    the greatest index; and whether running jobs may be moved, with `stuck` as in `Asking`.
    """
    while True:
        first = state[PASS] == 0
        if first and state[AT] >= len(order):
            state[PASS] = 1
            continue
        answered = state[ANSWERED] != 0
        if (
            answered
        ):  # for the row that was asked about: who was pushed out for it may have changed whose turn it is
            row = state[ROW]
            team = 0 if first else rows.team[row]
        else:
            team = 0 if first else next_team(teams, later.head, rows.priority, rows.key, rows.submitted_ns)
            if team < 0:
                return DONE
            row = order[state[AT]] if first else later.head[team]
        if state[TASKS] + 1 + rows.workers[row] > len(out.task_node):
            state[ROW] = row
            return GROW
        tried = WAITS
        state[ANSWERED] = 0
        if first and not answered and state[ADMITTED] < max_admissions:
            code = _as_before(rows, row, teams, bounds, promises, rooms, state)
            if code >= 0:
                out.figures[state[DEFERRED], 0] = state[OF]
                if code == NO_ROOM:
                    code = out.code[rooms.why[rows.kind[row]]]
                    for f in range(4):
                        out.figures[state[DEFERRED], f] = out.figures[rooms.why[rows.kind[row]], f]
                _defer(out, state, row, code)
                state[AT] += 1
                continue
        if rows.team[row] < 0:
            _defer(out, state, row, TEAM_UNKNOWN)
        elif state[ADMITTED] >= max_admissions:
            _defer(out, state, row, _why(teams, rows, row, rooms.own, out, state[DEFERRED]))
        else:
            asking = Asking(
                bounds[0],
                bounds[1],
                bounds[2],
                bounds[3],
                stuck,
                state[HELD],
                state[FIRST],
                promises.refused,
            )
            if answered:
                tried = state[ANSWER]
            else:
                tried = _try_row(pool, rows, row, teams, asking, first, rooms, out, state[TASKS])
            if tried in (MAY_BORROW, MAY_PUSH, MAY_OVERTAKE):
                state[ROW] = row
                state[ANSWER] = tried
                state[HELPED] += 1
                return HELP
            if tried >= 0:
                _admit(teams, rows, row, tried, pool, out, state)
            elif tried == WAITS_BEHIND:
                out.figures[state[DEFERRED], 0] = state[HELD]
                _defer(out, state, row, BEHIND)
            elif promises.promised[row] == PROMISED:
                _defer(out, state, row, RESERVED)
            elif tried != BORROWS:
                code = DELAYS
                if tried == WAITS:
                    code = _why(teams, rows, row, rooms.own, out, state[DEFERRED])
                else:
                    out.figures[state[DEFERRED], 0] = state[OF]
                lacks = code in (NO_ROOM, DELAYS)
                if lacks and state[LEFT] > 0 and promises.promised[row] == UNASKED:
                    # what was found out of it still holds when the loop goes on
                    state[ROW], state[ANSWERED], state[ANSWER] = row, 1, tried
                    return RESERVE
                if code == NO_ROOM and rows.old[row] and state[FIRST] == UNLIMITED:
                    if judged[row] == UNKNOWN:
                        state[ROW] = row
                        return JUDGE
                    if judged[row] == POSSIBLE:
                        state[HELD] = row
                if tried == WAITS and not answered:
                    rooms.full[rows.kind[row]] = _moment(rows, row, teams, state)
                    rooms.why[rows.kind[row]] = state[DEFERRED]
                _defer(out, state, row, code)
        if not first:
            same = tried == WAITS and rows.team[row] >= 0 and not rows.old[row]
            if same and state[LEFT] == 0 and promises.promised[row] != PROMISED:
                row = _defer_alike(rows, row, later, out, state)
            later.head[team] = later.next[row]
            continue
        state[AT] += 1
        if tried == BORROWS:
            _put_off(later, rows.team[row], row)
