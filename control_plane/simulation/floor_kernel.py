"""The cluster's event loop, compiled: arrivals, and the iterations of all replicas in order of time.

A tournament over the replicas' next moments tells who is first; of two at one moment the lower number is.
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
    Fates,
    Floats,
    Integers,
    Numbers,
    ReplicaRow,
    Scratch,
    Seat,
    Speeds,
    Tally,
    fire,
    set_clock,
    submit,
)

DONE, ARRIVAL, LOG_FULL, SEATS_FULL, DRAINED = range(5)
"""Why ``play`` returned; its answer's upper bits count log entries and, above them, name the drained row."""
STATUS_BITS, LOG_BITS = 3, 29


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
    seats: Sequence[Seat],
    tallies: Sequence[Tally],
    tree: Integers,
    demand: Demand,
    speeds: Speeds,
    batches: Batches,
    fates: Fates,
) -> None:
    """Submit a request to a row; there is a free seat."""
    row = rows[r]
    woke_ps = row.wake_ps
    kind = int(demand.types[position])
    input_tokens = int(demand.input_tokens[position])
    output_tokens = int(demand.output_tokens[position])
    submit(row, r, position, input_tokens, output_tokens, kind, now_ps, seats, tallies[0], speeds, batches, fates)
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
def play(
    inbox: Integers,
    rows: Sequence[ReplicaRow],
    seats: Sequence[Seat],
    tallies: Sequence[Tally],
    tree: Integers,
    offer: Offer,
    demand: Demand,
    speeds: Speeds,
    batches: Batches,
    fates: Fates,
    scratch: Scratch,
) -> int:
    """Iterations up to and at a moment, arrivals before it. Arrivals go to the quickest of the offer; where that is
    empty each comes back as ``ARRIVAL``, to be called again with its row. ``inbox`` holds the moment and that row (or
    ``NONE``). Returns a status, the log's length and a row, as said above."""
    until_ps = inbox[0]
    chosen = inbox[1]
    tally = tallies[0]
    count = len(demand.arrival_ps)
    crowd = len(scratch.done)
    tally.logged = 0
    if chosen != NONE:
        came = tally.arrived - 1
        enter(rows, chosen, came, demand.arrival_ps[came], seats, tallies, tree, demand, speeds, batches, fates)
    while True:
        position = tally.arrived
        at_ps = demand.arrival_ps[position] if position < count else NEVER
        first: int = tree[1]
        wake_ps = rows[first].wake_ps if first != NONE else NEVER
        if wake_ps <= at_ps and wake_ps <= until_ps and wake_ps != NEVER:
            if tally.keep_log and tally.logged + 2 * crowd > len(scratch.log):
                return LOG_FULL | tally.logged << STATUS_BITS
            row = rows[first]
            fire(row, first, wake_ps, seats, tally, speeds, batches, fates, scratch)
            settle(tree, rows, first)
            if row.draining and row.wake_ps == NEVER:
                tally.drained_ps = wake_ps
                return DRAINED | tally.logged << STATUS_BITS | first << STATUS_BITS + LOG_BITS
            continue
        if at_ps >= until_ps:
            return DONE | tally.logged << STATUS_BITS
        if tally.free_seat == NONE:
            return SEATS_FULL | tally.logged << STATUS_BITS
        tally.arrived = position + 1
        if len(offer.rows) == 0:
            return ARRIVAL | tally.logged << STATUS_BITS
        best = quickest(offer, batches.load, int(demand.input_tokens[position]))
        if demand.input_tokens[position] + demand.output_tokens[position] > rows[best].room:
            tally.lost += 1
        else:
            enter(rows, best, position, at_ps, seats, tallies, tree, demand, speeds, batches, fates)


@compiled
def dialogue(
    inbox: Integers,
    rows: Sequence[ReplicaRow],
    seats: Sequence[Seat],
    tallies: Sequence[Tally],
    tree: Integers,
    offer: Offer,
    demand: Demand,
    speeds: Speeds,
    batches: Batches,
    fates: Fates,
    scratch: Scratch,
) -> Iterator[int]:
    """``play`` again and again: handing the arrays over once instead of at every call saves most of a call's time.
    It holds the arrays until it has come to its end, which an ``inbox`` that begins below 0 asks for: numba never
    lets go of what an unfinished one was given."""
    while inbox[0] >= 0:
        yield play(inbox, rows, seats, tallies, tree, offer, demand, speeds, batches, fates, scratch)
