"""Governors of the repository, compiled: ``serving.rules`` as arrays, and the clock that a replica's rule asks for.

Equal to the governors themselves in every answer: the same operations on the same doubles in the same order.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from control_plane.compiled import compiled
from control_plane.hardware.replica_kernel import Floats, Integers, ReplicaRow, Seat, completed

PREFILL, DECODE = 0, 1
SHORTER, LONG, LONG_FROM, SETTLE = range(4)
LIMIT, FULL_AT, MOST = range(3)
"""Places in a rule's ``numbers``."""
CLOCK, TABLE, ATTENTION = range(3)
"""Places in an entry of ``clocks``."""

PS_PER_S = 1e12


class Rules(NamedTuple):
    """By rule, and by the clocks that it chooses from, ascending; ``clocks`` by row: what each of them is once bounds
    and supported clocks are heeded (MHz, row of the tables, ps of attention)."""

    kind: Integers
    clocks_of: Integers
    """Clocks."""
    numbers: Floats
    pass_s: Floats
    """By rule, clock and tokens."""
    widest: Integers
    """How many tokens ``pass_s`` covers, less one."""
    context_s: Floats
    attention_s: Floats
    most_tokens: Integers
    clocks: Integers
    limits_s: Floats
    """TTFT limits by input class."""


@compiled
def wished(
    row: ReplicaRow,
    now_ps: int,
    seats: Sequence[Seat],
    arrival_ps: Integers,
    rules: Rules,
) -> int:
    """Which of its rule's clocks a row asks for now."""
    if rules.kind[row.rule] == DECODE:
        return to_decode(row, now_ps, seats, rules)
    rule = row.rule
    last: int = rules.clocks_of[rule] - 1
    for clock in range(last):
        if in_time(row, now_ps, seats, arrival_ps, rules, rule, clock):
            return clock
    return last


@compiled
def to_decode(row: ReplicaRow, now_ps: int, seats: Sequence[Seat], rules: Rules) -> int:
    """``DecodeGovernor.look``."""
    rule = row.rule
    requests = row.decoding
    context = row.context + row.decoding * completed(row, now_ps)
    taken = row.first_prefilling
    for _ in range(row.prefilling):
        if seats[taken].generated == 0:
            requests += 1
            context += seats[taken].input_tokens
        taken = seats[taken].following
    taken = row.first_waiting
    for _ in range(row.waiting):
        if seats[taken].generated == 0:
            requests += 1
            context += seats[taken].input_tokens
        taken = seats[taken].following
    last: int = rules.clocks_of[rule] - 1
    full_at = rules.numbers[rule, FULL_AT]
    over = max(0.0, requests - full_at) / (rules.numbers[rule, MOST] - full_at)
    least = min(last, math.ceil(over * last))
    tokens = min(requests, rules.widest[rule])
    for clock in range(least, last):
        if rules.pass_s[rule, clock, tokens] + rules.context_s[rule, clock] * context <= rules.numbers[rule, LIMIT]:
            return clock
    return last


@compiled
def in_time(
    row: ReplicaRow,
    now_ps: int,
    seats: Sequence[Seat],
    arrival_ps: Integers,
    rules: Rules,
    rule: int,
    clock: int,
) -> bool:
    """Whether every queued prompt keeps its share of its limit at a clock: ``PrefillGovernor.look``."""
    ahead = 0
    prefilled = row.head_done
    taken = row.first_prefilling
    for _ in range(row.prefilling):
        seat = seats[taken]
        if seat.generated == 0:
            ahead += seat.input_tokens - prefilled
            if late(seat, ahead, now_ps, arrival_ps, rules, rule, clock):
                return False
        prefilled = 0
        taken = seat.following
    taken = row.first_waiting
    for _ in range(row.waiting):
        seat = seats[taken]
        if seat.generated == 0:
            ahead += 0 if seat.kv_arrived else seat.input_tokens
            if late(seat, ahead, now_ps, arrival_ps, rules, rule, clock):
                return False
        taken = seat.following
    return True


@compiled
def late(
    seat: Seat,
    ahead: int,
    now_ps: int,
    arrival_ps: Integers,
    rules: Rules,
    rule: int,
    clock: int,
) -> bool:
    inputs = seat.input_tokens
    numbers = rules.numbers
    share = numbers[rule, LONG] if inputs >= numbers[rule, LONG_FROM] else numbers[rule, SHORTER]
    limit_s = share * rules.limits_s[seat.kind // 3]
    left_s = arrival_ps[seat.key] / PS_PER_S + limit_s - now_ps / PS_PER_S - numbers[rule, SETTLE] / 2
    most = rules.most_tokens[rule, clock]
    full = ahead // most
    rest = ahead - full * most
    prefill_s = full * rules.pass_s[rule, clock, most] + (rules.pass_s[rule, clock, rest] if rest else 0.0)
    own_s = rules.attention_s[rule, clock] * inputs * (inputs + 1) / 2
    return bool(prefill_s + own_s > left_s)
