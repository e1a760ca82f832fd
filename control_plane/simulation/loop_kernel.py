"""The cluster's event loop, compiled: arrivals, and the iterations of all replicas in order of time.

A tournament over the replicas' next moments tells who is first; of two at one moment the lower number is. At one
moment iterations end before KV caches arrive, and requests come last.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from control_plane.compiled import compiled
from control_plane.hardware.replica_kernel import (
    NEVER,
    NONE,
    Batches,
    Floats,
    Integers,
    Numbers,
    Outcomes,
    ReplicaRow,
    Scratch,
    Seat,
    Speeds,
    Tally,
    fire,
    set_clock,
    submit,
)
from control_plane.simulation.event_loop import NO_DECODER, SENT_ON, TOO_LARGE
from control_plane.simulation.governor_kernel import ATTENTION, CLOCK, PS_PER_S, TABLE, Rules, wished
from control_plane.simulation.phase_kernel import (
    Routes,
    book_links,
    leave_decode,
    to_decode,
    to_prefill,
)

DONE, ARRIVAL, LOG_FULL, SEATS_FULL, DRAINED, HANDED, UNDELIVERED, LOOK, STRANDED, FLYING_FULL = range(10)
"""Why ``play`` returned; its answer's upper bits count log entries and, above them, name the row it is about."""
STATUS_BITS, LOG_BITS = 4, 28

UNTIL, THROUGH, CHOSEN, SENT, FLYING, MOMENT, ABOUT, TARGET, RULED = range(9)
"""Places in ``post``, the numbers that Python and ``play`` exchange. To ``play``: until when, whether KV caches that
arrive at that very moment are taken too, the row of the arrival that it asked about (or ``NONE``), how many KV
caches were sent, and whether requests are routed by ``Routes``. Both ways: how many are on their way. Back: the moment
of what it returned for, how many requests are handed over or could not be or which one could not be delivered, and the
number of the replica that it was meant for."""


class Transfers(NamedTuple):
    """KV caches between replicas, one a row: (arrival in ps, order of sending, request, source row, target row,
    target number). ``flying`` is a heap of those on their way, ``sent`` holds those that ``play`` is yet to add."""

    flying: Integers
    sent: Integers


class Offer(NamedTuple):
    """The rows that arrivals may go to, in order of their replicas' ids, and how fast each prefills."""

    rows: Integers
    base_s: Floats
    token_s: Floats


class Demand(NamedTuple):
    """The trace."""

    arrival_ps: Integers
    input_tokens: Numbers
    output_tokens: Numbers
    types: NDArray[np.int8]


@compiled
def settle(tree: Integers, rows: Sequence[ReplicaRow], r: int) -> None:
    """Play again the matches of a row whose next moment has changed. ``tree[1]`` is the winner, ``tree[leaves + r]``
    row r; ``NONE`` loses to everyone."""
    node = (r + len(tree) // 2) >> 1
    while node:
        left = tree[2 * node]
        right = tree[2 * node + 1]
        winner = left
        if left == NONE or (right != NONE and sooner(rows[right], rows[left])):
            winner = right
        tree[node] = winner
        node >>= 1


@compiled
def sooner(one: ReplicaRow, other: ReplicaRow) -> bool:
    return one.wake_ps < other.wake_ps or (one.wake_ps == other.wake_ps and one.number < other.number)


@compiled
def quickest(offer: Offer, load: Integers, input_tokens: int) -> int:
    """The row with the least ``RouterLedger.expected_ttft_s``; candidates are in order of their ids: the first wins."""
    best = NONE
    best_s = 0.0
    for i in range(len(offer.rows)):
        r = offer.rows[i]
        ttft_s = offer.base_s[i] + (load[r] + input_tokens) * offer.token_s[i]
        if best == NONE or ttft_s < best_s:
            best = r
            best_s = ttft_s
    return best


@compiled
def enter(
    rows: Sequence[ReplicaRow],
    r: int,
    position: int,
    now_ps: int,
    kv_arrived: int,
    due_s: float,
    seats: Sequence[Seat],
    tallies: Sequence[Tally],
    tree: Integers,
    demand: Demand,
    speeds: Speeds,
    batches: Batches,
    outcomes: Outcomes,
    scratch: Scratch,
) -> None:
    """Submit a request to a row; there is a free seat. A row that only prefills answers with one token, due at
    ``due_s`` where that matters."""
    row = rows[r]
    woke_ps = row.wake_ps
    kind = int(demand.types[position])
    inputs = int(demand.input_tokens[position])
    outputs = int(demand.output_tokens[position])
    leaves = 0
    if row.prefills_only:
        leaves = 1 if outputs > 1 else 0
        outputs = 1
    tally = tallies[0]
    seats[tally.free_seat].due_s = due_s
    submit(
        row,
        r,
        position,
        inputs,
        outputs,
        kind,
        kv_arrived,
        leaves,
        now_ps,
        seats,
        tally,
        speeds,
        batches,
        outcomes,
        scratch,
    )
    if row.wake_ps != woke_ps:
        settle(tree, rows, r)


@compiled
def change_clock(
    rows: Sequence[ReplicaRow],
    r: int,
    tree: Integers,
    now_ps: int,
    freq_mhz: int,
    table: int,
    attention_ps: int,
) -> None:
    """``set_clock`` of a row."""
    row = rows[r]
    woke_ps = row.wake_ps
    set_clock(row, now_ps, freq_mhz, table, attention_ps)
    if row.wake_ps != woke_ps:
        settle(tree, rows, r)


@compiled
def look(
    rows: Sequence[ReplicaRow],
    r: int,
    now_ps: int,
    seats: Sequence[Seat],
    tree: Integers,
    demand: Demand,
    rules: Rules,
) -> None:
    """A row's rule is asked for a clock, which is set."""
    row = rows[r]
    clock = wished(row, now_ps, seats, demand.arrival_ps, rules)
    row.wished = clock
    entry = rules.clocks[r, clock]
    change_clock(rows, r, tree, now_ps, entry[CLOCK], entry[TABLE], entry[ATTENTION])


@compiled
def look_at_all(
    rows: Sequence[ReplicaRow],
    which: Integers,
    now_ps: int,
    seats: Sequence[Seat],
    tree: Integers,
    demand: Demand,
    rules: Rules,
) -> None:
    for r in which:
        look(rows, r, now_ps, seats, tree, demand, rules)


@compiled
def send_on(
    rows: Sequence[ReplicaRow],
    r: int,
    key: int,
    now_ps: int,
    due_s: float,
    post: Integers,
    tally: Tally,
    demand: Demand,
    outcomes: Outcomes,
    transfers: Transfers,
    routes: Routes,
) -> int:
    """Send a request that a row has prefilled to a decode replica; there is room among those on their way. Returns
    what became of it."""
    inputs = int(demand.input_tokens[key])
    target = to_decode(routes, inputs, now_ps, due_s)
    if target == NONE:
        return NO_DECODER
    if inputs + demand.output_tokens[key] > rows[target].room:
        leave_decode(routes, target, inputs)
        return TOO_LARGE
    inside = 1 if rows[r].node != NONE and rows[r].node == rows[target].node else 0
    started_ps: int = outcomes.started_ps[key]
    arrives_ps = book_links(routes, r, target, inside, inputs, started_ps, now_ps)
    launch(transfers.flying, post, tally, arrives_ps, key, r, target, rows[target].number)
    return SENT_ON


@compiled
def play(
    post: Integers,
    rows: Sequence[ReplicaRow],
    seats: Sequence[Seat],
    tallies: Sequence[Tally],
    tree: Integers,
    offer: Offer,
    demand: Demand,
    speeds: Speeds,
    batches: Batches,
    outcomes: Outcomes,
    scratch: Scratch,
    transfers: Transfers,
    rules: Rules,
    routes: Routes,
) -> int:
    """Iterations up to and at a moment, KV caches and arrivals before it. Arrivals go where ``Routes`` say, or to the
    quickest of the offer; where both are empty each comes back as ``ARRIVAL``, to be called again with its row. Returns
    a status, the log's length and a row, as said above."""
    until_ps: int = post[UNTIL]
    tally = tallies[0]
    count = len(demand.arrival_ps)
    crowd = len(scratch.done)
    tally.logged = 0
    for i in range(post[SENT]):
        take_off(transfers, post, tally, i)
    post[SENT] = 0
    chosen: int = post[CHOSEN]
    if chosen != NONE:
        came = tally.arrived - 1
        at_ps = demand.arrival_ps[came]
        post[CHOSEN] = NONE
        enter(rows, chosen, came, at_ps, 0, 0.0, seats, tallies, tree, demand, speeds, batches, outcomes, scratch)
        if rows[chosen].rule != NONE:
            look(rows, chosen, at_ps, seats, tree, demand, rules)
        if rows[chosen].governed:
            post[MOMENT] = at_ps
            return LOOK | chosen << STATUS_BITS + LOG_BITS
    position: int = tally.arrived
    at_ps = demand.arrival_ps[position] if position < count else NEVER
    due_ps = transfers.flying[0, 0] if post[FLYING] else NEVER
    said = tally.drained == NONE
    ruled = post[RULED] != 0
    while True:
        if not said:
            drained: int = tally.drained
            tally.drained = NONE
            post[MOMENT] = tally.drained_ps
            return DRAINED | tally.logged << STATUS_BITS | drained << STATUS_BITS + LOG_BITS
        first: int = tree[1]
        wake_ps = rows[first].wake_ps if first != NONE else NEVER
        if wake_ps <= at_ps and wake_ps <= due_ps and wake_ps <= until_ps and wake_ps != NEVER:
            if tally.keep_log and tally.logged + 3 * crowd > len(scratch.log):
                return LOG_FULL | tally.logged << STATUS_BITS
            row = rows[first]
            if ruled and row.prefills_only and post[FLYING] + row.prefilling > len(transfers.flying):
                return FLYING_FULL | tally.logged << STATUS_BITS
            finished = fire(row, first, wake_ps, seats, tally, speeds, batches, outcomes, scratch)
            settle(tree, rows, first)
            if ruled:
                for i in range(finished):
                    inputs = int(demand.input_tokens[scratch.done[i]])
                    if row.prefills_only:
                        routes.queued[first] -= inputs
                    else:
                        leave_decode(routes, first, inputs)
                if tally.handed:
                    stranded = 0
                    for i in range(tally.handed):
                        key = scratch.handed[i]
                        routes.queued[first] -= int(demand.input_tokens[key])
                        due_s = scratch.due_s[i]
                        sent = send_on(
                            rows, first, key, wake_ps, due_s, post, tally, demand, outcomes, transfers, routes
                        )
                        if sent != SENT_ON:
                            scratch.handed[stranded] = key << 1 | (1 if sent == TOO_LARGE else 0)
                            stranded += 1
                    tally.handed = 0
                    due_ps = transfers.flying[0, 0] if post[FLYING] else NEVER
                    if stranded:
                        post[MOMENT] = wake_ps
                        post[ABOUT] = stranded
                        return STRANDED | tally.logged << STATUS_BITS | first << STATUS_BITS + LOG_BITS
            elif row.prefills_only and tally.handed:
                post[MOMENT] = wake_ps
                post[ABOUT] = tally.handed
                tally.handed = 0
                return HANDED | tally.logged << STATUS_BITS | first << STATUS_BITS + LOG_BITS
            if row.draining:
                said = not note_drained(row, first, wake_ps, tally)
        elif due_ps <= at_ps and due_ps != NEVER and due_ps < until_ps + post[THROUGH]:
            if tally.free_seat == NONE:
                return SEATS_FULL | tally.logged << STATUS_BITS
            if tally.keep_log and tally.logged >= len(scratch.log):
                return LOG_FULL | tally.logged << STATUS_BITS
            now_ps = due_ps
            key = transfers.flying[0, 2]
            source = transfers.flying[0, 3]
            target: int = transfers.flying[0, 4]
            number = transfers.flying[0, 5]
            land(transfers, post)
            due_ps = transfers.flying[0, 0] if post[FLYING] else NEVER
            if rows[source].number != outcomes.replica[key] or rows[target].number != number or rows[target].draining:
                post[MOMENT] = now_ps
                post[ABOUT] = key
                post[TARGET] = number
                return UNDELIVERED | tally.logged << STATUS_BITS
            rows[source].outbox -= 1
            said = not note_drained(rows[source], source, now_ps, tally)
            enter(rows, target, key, now_ps, 1, 0.0, seats, tallies, tree, demand, speeds, batches, outcomes, scratch)
            if rows[target].rule != NONE:
                look(rows, target, now_ps, seats, tree, demand, rules)
            if rows[target].governed:
                post[MOMENT] = now_ps
                return int(LOOK | tally.logged << STATUS_BITS | target << STATUS_BITS + LOG_BITS)
        elif at_ps >= until_ps:
            return DONE | tally.logged << STATUS_BITS
        elif tally.free_seat == NONE:
            return SEATS_FULL | tally.logged << STATUS_BITS
        elif tally.keep_log and tally.logged >= len(scratch.log):
            return LOG_FULL | tally.logged << STATUS_BITS
        else:
            tally.arrived = position + 1
            came_ps = at_ps
            inputs = int(demand.input_tokens[position])
            kind = int(demand.types[position]) // 3
            due_s = 0.0
            if ruled:
                best = to_prefill(routes, inputs, kind)
            elif len(offer.rows):
                best = quickest(offer, batches.load, inputs)
            else:
                best = NONE
            if best == NONE:
                return ARRIVAL | tally.logged << STATUS_BITS
            if ruled:
                scratch.log[tally.logged] = ~position
                tally.logged += 1
                due_s = came_ps / PS_PER_S + routes.limits_s[kind]
            answered = 1 if rows[best].prefills_only else demand.output_tokens[position]
            if inputs + answered > rows[best].room:
                tally.lost += 1
                tally.now_ps = came_ps
            else:
                if ruled:
                    routes.queued[best] += inputs
                enter(
                    rows,
                    best,
                    position,
                    came_ps,
                    0,
                    due_s,
                    seats,
                    tallies,
                    tree,
                    demand,
                    speeds,
                    batches,
                    outcomes,
                    scratch,
                )
                if rows[best].rule != NONE:
                    look(rows, best, came_ps, seats, tree, demand, rules)
                if rows[best].governed:
                    post[MOMENT] = came_ps
                    return LOOK | tally.logged << STATUS_BITS | best << STATUS_BITS + LOG_BITS
            position += 1
            at_ps = demand.arrival_ps[position] if position < count else NEVER


@compiled
def note_drained(row: ReplicaRow, r: int, now_ps: int, tally: Tally) -> bool:
    """Note whether a row drains and has nothing left to do and nothing left to send."""
    if row.draining and row.wake_ps == NEVER and row.outbox == 0:
        tally.drained = r
        tally.drained_ps = now_ps
        return True
    return False


@compiled
def take_off(transfers: Transfers, post: Integers, tally: Tally, i: int) -> None:
    """Add the i-th KV cache that was sent to those on their way."""
    sent = transfers.sent
    launch(transfers.flying, post, tally, sent[i, 0], sent[i, 2], sent[i, 3], sent[i, 4], sent[i, 5])


@compiled
def launch(
    flying: Integers, post: Integers, tally: Tally, arrives_ps: int, key: int, source: int, target: int, number: int
) -> None:
    """Add a KV cache to the heap of those on their way."""
    tally.sent += 1
    child: int = post[FLYING]
    post[FLYING] += 1
    while child > 0:
        parent = (child - 1) >> 1
        if flying[parent, 0] <= arrives_ps:
            break
        flying[child] = flying[parent]
        child = parent
    flying[child, 0] = arrives_ps
    flying[child, 1] = tally.sent
    flying[child, 2] = key
    flying[child, 3] = source
    flying[child, 4] = target
    flying[child, 5] = number


@compiled
def land(transfers: Transfers, post: Integers) -> None:
    """Take the first KV cache off the heap."""
    flying = transfers.flying
    post[FLYING] -= 1
    count: int = post[FLYING]
    at_ps = flying[count, 0]
    order = flying[count, 1]
    parent = 0
    while True:
        child = 2 * parent + 1
        if child >= count:
            break
        if child + 1 < count and before(flying, child + 1, flying[child, 0], flying[child, 1]):
            child += 1
        if not before(flying, child, at_ps, order):
            break
        flying[parent] = flying[child]
        parent = child
    flying[parent] = flying[count]


@compiled
def before(flying: Integers, i: int, at_ps: int, order: int) -> bool:
    sent_first: bool = flying[i, 1] < order
    moment: int = flying[i, 0]
    return moment < at_ps or (moment == at_ps and sent_first)


@compiled
def dialogue(
    post: Integers,
    rows: Sequence[ReplicaRow],
    seats: Sequence[Seat],
    tallies: Sequence[Tally],
    tree: Integers,
    offer: Offer,
    demand: Demand,
    speeds: Speeds,
    batches: Batches,
    outcomes: Outcomes,
    scratch: Scratch,
    transfers: Transfers,
    rules: Rules,
    routes: Routes,
) -> Iterator[int]:
    """``play`` again and again: handing the arrays over once instead of at every call saves most of a call's time.
    It holds the arrays until it has come to its end, which a moment below 0 asks for: numba never lets go of what an
    unfinished one was given."""
    while post[UNTIL] >= 0:
        yield play(
            *(post, rows, seats, tallies, tree, offer, demand, speeds, batches, outcomes),
            *(scratch, transfers, rules, routes),
        )
