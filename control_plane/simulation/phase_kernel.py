"""Routing with phases apart, compiled: ``serving.phase_router`` and the KV links of ``cluster.kv_transfers`` as arrays.

Equal to both in every choice: the same operations on the same doubles in the same order.
"""

from typing import NamedTuple

import numpy as np

from control_plane.compiled import compiled
from control_plane.hardware.replica_kernel import NONE, Floats, Integers
from control_plane.simulation.governor_kernel import PS_PER_S

HOPELESS, OVERFLOW, MOST_DECODING, GROWN, LINK_SHARE, LINK_WAIT, TOKEN = range(7)
"""Places in ``knobs``."""
BETWEEN, INSIDE, TOKEN_BYTES, LATENCY, LAYERS, STREAMED = range(6)
"""Places in ``links``."""
SENDS, RECEIVES = 0, 1
BY_ROW = "queued", "requests", "tokens", "link_free_s", "port_free_ps"
"""The accounts among the fields of ``Routes``."""


class Routes(NamedTuple):
    """The rule, the rows that requests may go to now, and the accounts of all rows."""

    knobs: Floats
    limits_s: Floats
    """TTFT limits by input class."""
    links: Floats
    prefills: Integers
    """Rows, in the order of the candidates."""
    handicap: Integers
    """By input class and candidate."""
    base_s: Floats
    token_s: Floats
    decodes: Integers
    """Rows, in the order in which they are filled."""
    room: Floats
    """Tokens of each."""
    queued: Integers
    """By row: prompt tokens that wait for their prefill to end."""
    requests: Integers
    """By row: decoding, or about to."""
    tokens: Floats
    """By row: of their prompts, plus what each may grow."""
    link_free_s: Floats
    """By row: until when the router takes its link for booked."""
    port_free_ps: Integers
    """By row, end and whether inside a node: until when the link is booked."""


@compiled
def to_prefill(routes: Routes, inputs: int, kind: int) -> int:
    """Where a prompt goes, or ``NONE``: ``PhaseRouter.route``; books nothing."""
    best = NONE
    least = 0
    for i in range(len(routes.prefills)):
        ahead: int = routes.queued[routes.prefills[i]] + routes.handicap[kind, i]
        if best == NONE or ahead < least:
            best = i
            least = ahead
    if best == NONE:
        return NONE
    limit_s = routes.limits_s[kind]
    if routes.base_s[best] + (least + inputs) * routes.token_s[best] > routes.knobs[HOPELESS] * limit_s:
        most = -1
        for i in range(len(routes.prefills)):
            queued: int = routes.queued[routes.prefills[i]]
            short = queued * routes.token_s[i] < routes.knobs[OVERFLOW]
            if routes.handicap[kind, i] == 0 and most < queued and short:
                best = i
                most = queued
    return int(routes.prefills[best])


@compiled
def to_decode(routes: Routes, inputs: int, now_ps: int, due_s: float) -> int:
    """Where a prefilled request goes, or ``NONE``: ``PhaseRouter.route_decode``; books its place."""
    now_s = now_ps / PS_PER_S
    knobs = routes.knobs
    needed = inputs + knobs[GROWN]
    latest_s = now_s + min(knobs[LINK_WAIT], max(0.0, knobs[LINK_SHARE] * (due_s - now_s)))
    chosen = NONE
    least = NONE
    least_late = True
    least_rank = np.inf
    for i in range(len(routes.decodes)):
        r = routes.decodes[i]
        free_s = routes.link_free_s[r]
        in_time = free_s <= latest_s
        room = routes.room[i]
        if in_time and routes.requests[r] < knobs[MOST_DECODING] and routes.tokens[r] + needed <= room:
            chosen = r
            break
        late = not in_time
        rank = free_s if late else routes.tokens[r] / room
        if (not late and least_late) or (late == least_late and rank < least_rank):
            least = r
            least_late = late
            least_rank = rank
    if chosen == NONE:
        chosen = least
    if chosen != NONE:
        routes.requests[chosen] += 1
        routes.tokens[chosen] += needed
        routes.link_free_s[chosen] = max(now_s, routes.link_free_s[chosen]) + inputs * knobs[TOKEN]
    return int(chosen)


@compiled
def leave_decode(routes: Routes, r: int, inputs: int) -> None:
    """A request ended, or will not decode on a row after all."""
    routes.requests[r] -= 1
    routes.tokens[r] -= inputs + routes.knobs[GROWN]


@compiled
def book_links(
    routes: Routes,
    source: int,
    target: int,
    inside: int,
    inputs: int,
    started_ps: int,
    now_ps: int,
) -> int:
    """When the KV cache of a prompt arrives that was prefilled just now; books both ends of the link for it:
    ``KvTransfers``."""
    links = routes.links
    rate = links[INSIDE] if inside else links[BETWEEN]
    whole_ps = int(np.rint(inputs * links[TOKEN_BYTES] / rate * PS_PER_S))
    ready_ps = started_ps if links[STREAMED] else now_ps
    sent_ps = max(ready_ps, int(routes.port_free_ps[source, SENDS, inside])) + whole_ps
    received_ps = max(sent_ps, int(routes.port_free_ps[target, RECEIVES, inside]) + whole_ps)
    routes.port_free_ps[source, SENDS, inside] = sent_ps
    routes.port_free_ps[target, RECEIVES, inside] = received_ps
    ends_ps = max(received_ps, now_ps + whole_ps // int(links[LAYERS]))
    return max(now_ps + 1, ends_ps + int(links[LATENCY]))
