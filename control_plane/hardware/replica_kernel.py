"""``ReplicaModel`` for all replicas at once, compiled: records in flat arrays instead of objects, and a run of decode
iterations is one step.

While nothing arrives, finishes, is preempted or changes clock, k iterations of n decoders over C tokens of context
last k·(alpha[n] + beta·C) + beta·n·k(k-1)/2 picoseconds. All of it is integers, so ending such a run early at any
iteration loses nothing: every time equals the one that stepping gives.

A row is a replica. A seat is a request in some batch or queue; seats are used again, so memory follows what is in
flight.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol, get_type_hints

import numpy as np
from numpy.typing import NDArray

from control_plane.compiled import compiled
from control_plane.hardware.request_columns import GAP_BINS, GAP_LEAST_PS, GAP_STEP

Integers = NDArray[np.int64]
Numbers = NDArray[np.int32]
Floats = NDArray[np.float64]

NEVER = (1 << 63) - 1
NONE = -1
_LOG_STEP = math.log(GAP_STEP)


class ReplicaRow(Protocol):
    """A replica's batch, limits, clock and meter."""

    number: int
    """The cluster's number of the replica, ``NONE`` where the row is free."""
    wake_ps: int
    """End of the run of iterations under way, ``NEVER`` for an idle replica."""
    start_ps: int
    """Start of the run under way or, for an idle replica, since when it idles."""
    born_ps: int
    iterations: int
    """Completed ones."""
    order: int
    """Requests submitted so far."""
    decoding: int
    context: int
    """Sum of the decoders' contexts in tokens, at the start of the run."""
    reserved: int
    """KV entries of the prompts that are being prefilled."""
    repeats: int
    """Iterations in the run under way."""
    duration_ps: int
    """Of the run's first iteration; each further one takes ``growth_ps`` longer."""
    growth_ps: int
    tokens: int
    """In each iteration of the run, ``prefill_tokens`` among them."""
    prefill_tokens: int
    idle_ps: int
    head_done: int
    """Prefilled tokens of the first in the prefill queue; nobody behind it has any."""
    waiting: int
    """How many wait; they are linked from ``first_waiting``."""
    first_waiting: int
    last_waiting: int
    prefilling: int
    first_prefilling: int
    last_prefilling: int
    freq_mhz: int
    table: int
    """Row of the tables of its clock."""
    attention_ps: int
    context_ps: int
    settle_ps: int
    pending_ps: int
    """When the next clock has settled, ``NEVER`` where none is on its way."""
    pending_mhz: int
    pending_table: int
    pending_attention_ps: int
    room: int
    most_requests: int
    most_tokens: int
    draining: int
    prefills_only: int
    """Requests that have tokens left after their first are handed over to a decode replica."""
    outbox: int
    """Requests whose KV cache waits here or is on its way: until it arrives the replica is held."""
    governed: int
    """A governor is called at every arrival."""
    rule: int
    """The governor's rule where it is one in arrays, ``NONE`` where it is called or there is none."""
    wished: int
    """Which of the rule's clocks it asked for last; ``NONE`` before it was asked."""
    node: int
    """Where all its GPUs are, ``NONE`` where they are on several nodes."""
    energy_wps: float
    """Drawn in completed runs of iterations."""
    seat_energy_wps: float
    """What a request would have paid that decoded since birth: two readings give a request's share."""
    power_w: float
    head_energy_wps: float
    """Paid so far by the first in the prefill queue."""
    idle_w: float


class Seat(Protocol):
    """A request in flight."""

    key: int
    order: int
    input_tokens: int
    output_tokens: int
    generated: int
    lost_ps: int
    """When it was preempted."""
    kind: int
    following: int
    """Next in its queue, or next free seat."""
    kv_arrived: int
    """Prefilled elsewhere and not yet in the batch: its KV cache and first token are here."""
    leaves: int
    """It is handed over once it is prefilled."""
    due_s: float
    """When its first token is due, where the loop routes by a rule."""
    paid_wps: float
    """``seat_energy_wps`` when it began to decode, less what it paid before."""


class Tally(Protocol):
    """What the rows share."""

    free_seat: int
    ended: int
    now_ps: int
    """When a request last ended or was lost."""
    logged: int
    keep_log: int
    arrived: int
    lost: int
    handed: int
    """How many requests the last run of iterations left to be handed over."""
    drained: int
    """A draining row that has nothing left to do, until that is said; else ``NONE``."""
    drained_ps: int
    sent: int
    """KV caches sent so far."""


class Speeds(NamedTuple):
    """By table and tokens."""

    alpha_ps: Integers
    power_w: Floats


class Batches(NamedTuple):
    """By row: a heap of who decodes, by last iteration and then by order of submission; how many of each request type
    decode; and the router's ledger, prompt tokens without a first token yet plus requests with one."""

    ends: Integers
    seated: Numbers
    kinds: Integers
    load: Integers


class Outcomes(NamedTuple):
    """``RequestColumns`` as arrays, and token gaps by request type and bin."""

    started_ps: Integers
    first_token_ps: Integers
    finished_ps: Integers
    energy_wps: Floats
    replica: Numbers
    gaps: Floats


class Scratch(NamedTuple):
    """``done``: room for who completes in one step. ``handed`` and ``due_s``: room for who is prefilled and leaves, and
    when its first token is due. ``log``: what policies are still to be told, replica << 33 | request << 1 | (0 first
    token, 1 ended); below 0 an arrival, ~request."""

    done: Integers
    handed: Integers
    due_s: Floats
    log: Integers


def record_of(fields: type) -> np.dtype[np.void]:
    """The record whose fields a Protocol names: int as 64 bits, float as double."""
    hints = get_type_hints(fields)
    return np.dtype([(name, np.float64 if kind is float else np.int64) for name, kind in hints.items()])


@compiled
def submit(
    row: ReplicaRow,
    r: int,
    key: int,
    input_tokens: int,
    output_tokens: int,
    kind: int,
    kv_arrived: int,
    leaves: int,
    now_ps: int,
    seats: Sequence[Seat],
    tally: Tally,
    speeds: Speeds,
    batches: Batches,
    outcomes: Outcomes,
    scratch: Scratch,
) -> None:
    """Queue a request; there is a free seat and the KV cache could hold it."""
    taken = tally.free_seat
    seat = seats[taken]
    tally.free_seat = seat.following
    row.order += 1
    seat.key = key
    seat.order = row.order
    seat.input_tokens = input_tokens
    seat.output_tokens = output_tokens
    seat.generated = 0
    seat.kind = kind
    seat.kv_arrived = kv_arrived
    seat.leaves = leaves
    seat.following = NONE
    if row.waiting == 0:
        row.first_waiting = taken
    else:
        seats[row.last_waiting].following = taken
    row.last_waiting = taken
    row.waiting += 1
    batches.load[r] += input_tokens
    if row.wake_ps == NEVER:
        row.idle_ps += now_ps - row.start_ps
        begin(row, r, now_ps, seats, tally, speeds, batches, outcomes, scratch)
    elif row.repeats > 1 and row.waiting == 1:
        # Somebody who waited before is either next in line already or blocks the line until a finish.
        cut(row, now_ps)


@compiled
def set_clock(row: ReplicaRow, now_ps: int, freq_mhz: int, table: int, attention_ps: int) -> None:
    """A supported clock, for iterations that begin once it has settled."""
    target_mhz = row.freq_mhz if row.pending_ps == NEVER else row.pending_mhz
    if freq_mhz == target_mhz:
        return
    if row.pending_ps <= now_ps:
        take_clock(row)
    row.pending_ps = now_ps + row.settle_ps
    row.pending_mhz = freq_mhz
    row.pending_table = table
    row.pending_attention_ps = attention_ps
    if row.wake_ps != NEVER and row.repeats > 1:
        cut(row, row.pending_ps - 1)


@compiled
def take_clock(row: ReplicaRow) -> None:
    row.freq_mhz = row.pending_mhz
    row.table = row.pending_table
    row.attention_ps = row.pending_attention_ps
    row.pending_ps = NEVER


@compiled
def fire(
    row: ReplicaRow,
    r: int,
    now_ps: int,
    seats: Sequence[Seat],
    tally: Tally,
    speeds: Speeds,
    batches: Batches,
    outcomes: Outcomes,
    scratch: Scratch,
) -> int:
    """End the run of iterations, at ``wake_ps``, and begin the next. Returns how many requests are complete."""
    ends, seated, kinds, load = batches
    lasted_ps = now_ps - row.start_ps
    spent_wps = row.power_w * lasted_ps
    row.energy_wps += spent_wps
    each_wps = spent_wps / row.tokens
    seat_wps = row.seat_energy_wps + each_wps
    row.seat_energy_wps = seat_wps
    repeats = row.repeats
    iteration = row.iterations + repeats
    row.iterations = iteration
    decoding = row.decoding
    context = row.context + decoding * repeats
    finished = 0
    if decoding:
        gap = gap_bin(lasted_ps / repeats)
        for kind in range(kinds.shape[1]):
            if kinds[r, kind]:
                outcomes.gaps[kind, gap] += kinds[r, kind] * repeats
        while decoding and ends[r, 0] == iteration:
            taken = seated[r, 0]
            pop(ends, seated, seats, r, decoding)
            decoding -= 1
            seat = seats[taken]
            context -= seat.input_tokens + seat.output_tokens
            kinds[r, seat.kind] -= 1
            outcomes.energy_wps[seat.key] += seat_wps - seat.paid_wps
            scratch.done[finished] = seat.key
            finished += 1
            seat.following = tally.free_seat
            tally.free_seat = taken
    row.decoding = decoding
    row.context = context
    load[r] -= finished
    if row.prefill_tokens:
        finished = end_prefill(row, r, now_ps, each_wps, seats, tally, batches, outcomes, scratch, finished)
    if finished:
        tally.ended += finished
        tally.now_ps = now_ps
        for i in range(finished):
            key = scratch.done[i]
            outcomes.finished_ps[key] = now_ps
            outcomes.replica[key] = row.number
            if tally.keep_log:
                scratch.log[tally.logged] = row.number << 33 | key << 1 | 1
                tally.logged += 1
    if row.context + row.reserved > row.room:
        preempt_until_it_fits(row, r, now_ps, seats, batches, outcomes)
    begin(row, r, now_ps, seats, tally, speeds, batches, outcomes, scratch)
    return finished


@compiled
def end_prefill(
    row: ReplicaRow,
    r: int,
    now_ps: int,
    each_wps: float,
    seats: Sequence[Seat],
    tally: Tally,
    batches: Batches,
    outcomes: Outcomes,
    scratch: Scratch,
    finished: int,
) -> int:
    """Hand out the iteration's prefill tokens in line; whoever has all its prompt decodes from now on. Returns how
    many are complete."""
    ends, seated, kinds, load = batches
    left = row.prefill_tokens
    prefilled = row.head_done
    paid_wps = row.head_energy_wps
    while left:
        taken = row.first_prefilling
        seat = seats[taken]
        prompt = seat.input_tokens + seat.generated
        need = prompt - prefilled
        if need > left:
            prefilled += left
            paid_wps += left * each_wps
            break
        left -= need
        paid_wps += need * each_wps
        row.first_prefilling = seat.following
        row.prefilling -= 1
        row.reserved -= prompt
        if seat.generated == 0:
            load[r] += 1 - seat.input_tokens
            if not seat.leaves:
                outcomes.first_token_ps[seat.key] = now_ps
                if tally.keep_log:
                    scratch.log[tally.logged] = row.number << 33 | seat.key << 1
                    tally.logged += 1
        else:
            outcomes.gaps[seat.kind, gap_bin(float(now_ps - seat.lost_ps))] += 1
        remaining = seat.output_tokens - seat.generated - 1
        if remaining == 0:
            if seat.leaves:
                scratch.handed[tally.handed] = seat.key
                scratch.due_s[tally.handed] = seat.due_s
                tally.handed += 1
                row.outbox += 1
                outcomes.replica[seat.key] = row.number
            else:
                scratch.done[finished] = seat.key
                finished += 1
            outcomes.energy_wps[seat.key] += paid_wps
            load[r] -= 1
            seat.following = tally.free_seat
            tally.free_seat = taken
        else:
            push(ends, seated, seats, r, row.decoding, row.iterations + remaining, taken)
            row.decoding += 1
            row.context += prompt + 1
            kinds[r, seat.kind] += 1
            seat.paid_wps = row.seat_energy_wps - paid_wps
        prefilled = 0
        paid_wps = 0.0
    row.head_done = prefilled
    row.head_energy_wps = paid_wps
    return finished


@compiled
def begin(
    row: ReplicaRow,
    r: int,
    now_ps: int,
    seats: Sequence[Seat],
    tally: Tally,
    speeds: Speeds,
    batches: Batches,
    outcomes: Outcomes,
    scratch: Scratch,
) -> None:
    """Admit whom the limits allow and plan the next run of iterations."""
    if row.pending_ps <= now_ps:
        take_clock(row)
    if row.waiting:
        admit(row, r, now_ps, seats, tally, batches, outcomes, scratch)
    decoding = row.decoding
    context = row.context
    row.start_ps = now_ps
    if row.prefilling:
        attention_units = compose(row, now_ps, seats, outcomes)
        tokens = decoding + row.prefill_tokens
        row.tokens = tokens
        row.repeats = 1
        row.power_w = speeds.power_w[row.table, tokens]
        duration_ps = speeds.alpha_ps[row.table, tokens] + row.context_ps * context + row.attention_ps * attention_units
        row.wake_ps = now_ps + duration_ps
        return
    if not decoding:
        row.wake_ps = NEVER
        return
    row.prefill_tokens = 0
    row.tokens = decoding
    row.power_w = speeds.power_w[row.table, decoding]
    repeats = batches.ends[r, 0] - row.iterations
    if decoding > 1:
        repeats = min(repeats, (row.room - context) // decoding + 1)
    duration_ps = speeds.alpha_ps[row.table, decoding] + row.context_ps * context
    growth_ps = row.context_ps * decoding
    row.duration_ps = duration_ps
    row.growth_ps = growth_ps
    row.repeats = repeats
    row.wake_ps = now_ps + repeats * duration_ps + growth_ps * (repeats * (repeats - 1) // 2)
    if row.pending_ps != NEVER and repeats > 1:
        cut(row, row.pending_ps - 1)


@compiled
def admit(
    row: ReplicaRow,
    r: int,
    now_ps: int,
    seats: Sequence[Seat],
    tally: Tally,
    batches: Batches,
    outcomes: Outcomes,
    scratch: Scratch,
) -> None:
    """First come, first served, while there is room for everyone's next token."""
    while row.waiting:
        taken = row.first_waiting
        seat = seats[taken]
        prompt = seat.input_tokens + seat.generated
        batch = row.decoding + row.prefilling
        needed = prompt + seat.kv_arrived + batch + 1
        if batch >= row.most_requests or row.context + row.reserved + needed > row.room:
            return
        row.first_waiting = seat.following
        row.waiting -= 1
        if seat.kv_arrived:
            decode_at_once(row, r, taken, now_ps, seats, tally, batches, outcomes, scratch)
            continue
        row.reserved += prompt
        seat.following = NONE
        if row.prefilling == 0:
            row.first_prefilling = taken
        else:
            seats[row.last_prefilling].following = taken
        row.last_prefilling = taken
        row.prefilling += 1


@compiled
def decode_at_once(
    row: ReplicaRow,
    r: int,
    taken: int,
    now_ps: int,
    seats: Sequence[Seat],
    tally: Tally,
    batches: Batches,
    outcomes: Outcomes,
    scratch: Scratch,
) -> None:
    """Admit a request whose KV cache and first token came from another replica."""
    ends, seated, kinds, load = batches
    seat = seats[taken]
    seat.kv_arrived = 0
    push(ends, seated, seats, r, row.decoding, row.iterations + seat.output_tokens - 1, taken)
    row.decoding += 1
    row.context += seat.input_tokens + 1
    kinds[r, seat.kind] += 1
    load[r] += 1 - seat.input_tokens
    seat.paid_wps = row.seat_energy_wps
    outcomes.first_token_ps[seat.key] = now_ps
    if tally.keep_log:
        scratch.log[tally.logged] = row.number << 33 | seat.key << 1
        tally.logged += 1


@compiled
def compose(row: ReplicaRow, now_ps: int, seats: Sequence[Seat], outcomes: Outcomes) -> int:
    """Set the iteration's prefill tokens, batches go first; returns their attention units."""
    budget = max(0, row.most_tokens - row.decoding)
    left = budget
    prefilled = row.head_done
    units = 0
    taken = row.first_prefilling
    for _ in range(row.prefilling):
        if left == 0:
            break
        seat = seats[taken]
        chunk = min(left, seat.input_tokens + seat.generated - prefilled)
        if prefilled == 0 and seat.generated == 0:
            outcomes.started_ps[seat.key] = now_ps
        units += chunk * prefilled + chunk * (chunk + 1) // 2
        left -= chunk
        prefilled = 0
        taken = seat.following
    row.prefill_tokens = budget - left
    return units


@compiled
def cut(row: ReplicaRow, after_ps: int) -> None:
    """End the run of iterations at its first boundary later than ``after_ps``."""
    past_ps = after_ps - row.start_ps
    duration_ps = row.duration_ps
    growth_ps = row.growth_ps
    repeats = min(row.repeats, past_ps // duration_ps + 1)
    before = repeats - 1
    if before * duration_ps + growth_ps * (before * (before - 1) // 2) > past_ps:
        low = 1
        high = before
        while low < high:
            middle = (low + high) // 2
            if middle * duration_ps + growth_ps * (middle * (middle - 1) // 2) > past_ps:
                high = middle
            else:
                low = middle + 1
        repeats = low
    if repeats < row.repeats:
        row.repeats = repeats
        row.wake_ps = row.start_ps + repeats * duration_ps + growth_ps * (repeats * (repeats - 1) // 2)


@compiled
def preempt_until_it_fits(
    row: ReplicaRow,
    r: int,
    now_ps: int,
    seats: Sequence[Seat],
    batches: Batches,
    outcomes: Outcomes,
) -> None:
    """While the next iteration would occupy more than the KV cache, the newest decoder loses its entries."""
    ends, seated, kinds, _ = batches
    while row.context + row.reserved > row.room:
        newest = 0
        for i in range(1, row.decoding):
            if seats[seated[r, i]].order > seats[seated[r, newest]].order:
                newest = i
        taken = seated[r, newest]
        to_come = ends[r, newest] - row.iterations
        remove(ends, seated, seats, r, row.decoding, newest)
        seat = seats[taken]
        row.decoding -= 1
        row.context -= seat.input_tokens + seat.output_tokens - to_come
        outcomes.energy_wps[seat.key] += row.seat_energy_wps - seat.paid_wps
        kinds[r, seat.kind] -= 1
        seat.lost_ps = now_ps
        seat.generated = seat.output_tokens - to_come
        seat.following = row.first_waiting if row.waiting else NONE
        if row.waiting == 0:
            row.last_waiting = taken
        row.first_waiting = taken
        row.waiting += 1


@compiled
def completed(row: ReplicaRow, now_ps: int) -> int:
    """How many iterations of the run under way have ended by now."""
    if row.wake_ps == NEVER or row.repeats == 1:
        return 0
    past_ps = now_ps - row.start_ps
    low = 0
    high = row.repeats - 1
    while low < high:
        middle = (low + high + 1) // 2
        if middle * row.duration_ps + row.growth_ps * (middle * (middle - 1) // 2) > past_ps:
            high = middle - 1
        else:
            low = middle
    return low


@compiled
def running_completed(rows: Sequence[ReplicaRow], r: int, now_ps: int) -> int:
    """``completed`` of a row."""
    return completed(rows[r], now_ps)


@compiled
def queued(rows: Sequence[ReplicaRow], r: int, seats: Sequence[Seat], found: Integers) -> int:
    """Who waits for a first token, in the order of the queue: ``found[i]`` is (request, prompt tokens that are not
    prefilled yet). Returns how many."""
    row = rows[r]
    count = 0
    prefilled = row.head_done
    taken = row.first_prefilling
    for _ in range(row.prefilling):
        seat = seats[taken]
        if seat.generated == 0:
            found[count, 0] = seat.key
            found[count, 1] = seat.input_tokens - prefilled
            count += 1
        prefilled = 0
        taken = seat.following
    taken = row.first_waiting
    for _ in range(row.waiting):
        seat = seats[taken]
        if seat.generated == 0:
            found[count, 0] = seat.key
            found[count, 1] = 0 if seat.kv_arrived else seat.input_tokens
            count += 1
        taken = seat.following
    return count


@compiled
def abandon(
    rows: Sequence[ReplicaRow],
    r: int,
    now_ps: int,
    seats: Sequence[Seat],
    tally: Tally,
    batches: Batches,
    outcomes: Outcomes,
    found: Integers,
) -> int:
    """The replica is lost. Bills everyone who is here up to now and frees their seats: ``found[i]`` is (order of
    submission, request). Returns how many."""
    row = rows[r]
    _, seated, kinds, _ = batches
    each_wps = row.power_w * (now_ps - row.start_ps) / row.tokens if row.wake_ps != NEVER else 0.0
    done = completed(row, now_ps)
    if done and row.decoding:
        gap = gap_bin(row.duration_ps + row.growth_ps * (done - 1) / 2)
        for kind in range(kinds.shape[1]):
            outcomes.gaps[kind, gap] += kinds[r, kind] * done
    count = 0
    for i in range(row.decoding):
        taken = seated[r, i]
        seat = seats[taken]
        outcomes.energy_wps[seat.key] += row.seat_energy_wps + each_wps - seat.paid_wps
        found[count, 0], found[count, 1] = seat.order, seat.key
        count += 1
        seat.following = tally.free_seat
        tally.free_seat = taken
    left = row.prefill_tokens
    prefilled = row.head_done
    taken = row.first_prefilling
    for i in range(row.prefilling):
        seat = seats[taken]
        chunk = min(left, seat.input_tokens + seat.generated - prefilled)
        outcomes.energy_wps[seat.key] += chunk * each_wps + (row.head_energy_wps if i == 0 else 0.0)
        left -= chunk
        prefilled = 0
        found[count, 0], found[count, 1] = seat.order, seat.key
        count += 1
        following = seat.following
        seat.following = tally.free_seat
        tally.free_seat = taken
        taken = following
    taken = row.first_waiting
    for _ in range(row.waiting):
        seat = seats[taken]
        found[count, 0], found[count, 1] = seat.order, seat.key
        count += 1
        following = seat.following
        seat.following = tally.free_seat
        tally.free_seat = taken
        taken = following
    return count


@compiled
def gap_bin(gap_ps: float) -> int:
    if gap_ps <= GAP_LEAST_PS:
        return 0
    return min(int(math.log(gap_ps / GAP_LEAST_PS) / _LOG_STEP), GAP_BINS - 1)


# A row's heap of those who decode: by their last iteration, then by order of submission.


@compiled
def push(ends: Integers, seated: Numbers, seats: Sequence[Seat], r: int, count: int, end: int, taken: int) -> None:
    """Add to a heap of ``count``."""
    ends[r, count] = end
    seated[r, count] = taken
    rise(ends, seated, seats, r, count)


@compiled
def pop(ends: Integers, seated: Numbers, seats: Sequence[Seat], r: int, count: int) -> None:
    """Take the first off a heap of ``count``."""
    ends[r, 0] = ends[r, count - 1]
    seated[r, 0] = seated[r, count - 1]
    sink(ends, seated, seats, r, count - 1, 0)


@compiled
def remove(ends: Integers, seated: Numbers, seats: Sequence[Seat], r: int, count: int, i: int) -> None:
    """Take any off a heap of ``count``."""
    ends[r, i] = ends[r, count - 1]
    seated[r, i] = seated[r, count - 1]
    if i < count - 1:
        rise(ends, seated, seats, r, i)
        sink(ends, seated, seats, r, count - 1, i)


@compiled
def rise(ends: Integers, seated: Numbers, seats: Sequence[Seat], r: int, i: int) -> None:
    end = ends[r, i]
    taken = seated[r, i]
    order = seats[taken].order
    while i > 0:
        above = (i - 1) >> 1
        if ends[r, above] < end or (ends[r, above] == end and seats[seated[r, above]].order < order):
            break
        ends[r, i] = ends[r, above]
        seated[r, i] = seated[r, above]
        i = above
    ends[r, i] = end
    seated[r, i] = taken


@compiled
def sink(ends: Integers, seated: Numbers, seats: Sequence[Seat], r: int, count: int, i: int) -> None:
    end = ends[r, i]
    taken = seated[r, i]
    order = seats[taken].order
    while True:
        below = 2 * i + 1
        if below >= count:
            break
        right = below + 1
        if right < count and (
            ends[r, right] < ends[r, below]
            or (ends[r, right] == ends[r, below] and seats[seated[r, right]].order < seats[seated[r, below]].order)
        ):
            below = right
        if end < ends[r, below] or (end == ends[r, below] and order < seats[seated[r, below]].order):
            break
        ends[r, i] = ends[r, below]
        seated[r, i] = seated[r, below]
        i = below
    ends[r, i] = end
    seated[r, i] = taken
