"""The parametric primal–dual walk on flat integer arrays (Fulkerson 1961, Kelley 1961), exact.

Potentials are event times, flow is energy per time. A tree grows from the source over tight residual arcs; a
heap holds the shift of the deadline at which each further event joins. When the sink joins, flow is pushed,
the part of the tree cut off by the saturated arc is let go, and the rest is kept for the next round.
"""

import numpy as np
from numpy.typing import NDArray

from control_plane.training.compiled import compiled

IntArray = NDArray[np.int64]

UNBOUNDED = 1 << 62
NEVER = (1 << 63) - 1


@compiled
def set_residual(
    arc: int,
    flow: int,
    piece: int,
    piece_first: IntArray,
    piece_length: IntArray,
    piece_until: IntArray,
    forward_half: IntArray,
    backward_half: IntArray,
    length: IntArray,
    capacity: IntArray,
) -> int:
    """Residual arcs of an arc with this flow: pieces are parallel, longest first. Returns the piece."""
    first = piece_first[arc]
    while flow >= piece_until[first + piece]:
        piece += 1
    while piece > 0 and flow < piece_until[first + piece - 1]:
        piece -= 1
    ahead = forward_half[arc]
    back = backward_half[arc]
    length[ahead] = piece_length[first + piece]
    until = piece_until[first + piece]
    capacity[ahead] = UNBOUNDED if until == UNBOUNDED else until - flow
    since = piece_until[first + piece - 1] if piece > 0 else 0
    if flow > since:
        length[back] = -piece_length[first + piece]
        capacity[back] = flow - since
    elif piece > 0:
        before = piece_until[first + piece - 2] if piece > 1 else 0
        length[back] = -piece_length[first + piece - 1]
        capacity[back] = flow - before
    else:
        capacity[back] = 0
    return piece


@compiled
def heap_push(keys: IntArray, halves: IntArray, size: int, key: int, half: int) -> None:
    i = size
    while i > 0:
        parent = (i - 1) >> 2
        if keys[parent] <= key:
            break
        keys[i] = keys[parent]
        halves[i] = halves[parent]
        i = parent
    keys[i] = key
    halves[i] = half


@compiled
def heap_pop(keys: IntArray, halves: IntArray, size: int) -> None:
    """Remove the root of a heap of `size` entries (four children each)."""
    key = keys[size - 1]
    half = halves[size - 1]
    last = size - 1
    i = 0
    while True:
        child = 4 * i + 1
        if child >= last:
            break
        least = child
        for other in range(child + 1, min(child + 4, last)):
            if keys[other] < keys[least]:
                least = other
        if keys[least] >= key:
            break
        keys[i] = keys[least]
        halves[i] = halves[least]
        i = least
    keys[i] = key
    halves[i] = half


@compiled
def walk(
    first: IntArray,
    head: IntArray,
    mate: IntArray,
    arc_of: IntArray,
    is_ahead: NDArray[np.bool_],
    piece_first: IntArray,
    piece_length: IntArray,
    piece_until: IntArray,
    forward_half: IntArray,
    backward_half: IntArray,
    potential: IntArray,
    flow: IntArray,
    total_flow: int,
    source: int,
    sink: int,
    shift_limit: int,
    kept_potential: IntArray,
    kept_flow: IntArray,
    kept_total: IntArray,
) -> tuple[IntArray, IntArray, int, int, int]:
    """Shorten the sink's time by up to `shift_limit`; `potential` and `flow` are updated in place.

    Returns the shifts at which the slope changed, the slope from there on, the final shift, how many states
    were kept in `kept_*` (evenly spread over the slopes, the first always) and how many arcs were scanned.
    """
    nodes = len(first) - 1
    halves = len(head)
    arcs = len(forward_half)
    length = np.zeros(halves, np.int64)
    capacity = np.zeros(halves, np.int64)
    piece = np.zeros(arcs, np.int64)
    for arc in range(arcs):
        piece[arc] = set_residual(
            arc,
            flow[arc],
            0,
            piece_first,
            piece_length,
            piece_until,
            forward_half,
            backward_half,
            length,
            capacity,
        )

    reached = np.zeros(nodes, np.bool_)
    parent = np.full(nodes, -1, np.int64)
    first_child = np.full(nodes, -1, np.int64)
    next_sibling = np.full(nodes, -1, np.int64)
    previous_sibling = np.full(nodes, -1, np.int64)
    queue = np.zeros(nodes + 1, np.int64)
    queued = np.zeros(nodes, np.bool_)
    loose = np.zeros(nodes, np.int64)
    heap_room = 8 * halves + 64
    keys = np.zeros(heap_room, np.int64)
    events = np.zeros(heap_room, np.int64)
    heap_size = 0

    slots = len(kept_total)
    kept = 0
    keep_every = 1
    slopes_room = 1024
    slope_shift = np.zeros(slopes_room, np.int64)
    slope = np.zeros(slopes_room, np.int64)
    slopes = 0
    scanned = 0

    shift = 0
    front = 0
    waiting = 1
    queue[0] = source
    queued[source] = True
    reached[source] = True

    while True:
        while waiting > 0 and not reached[sink]:
            node = queue[front]
            front += 1
            if front > nodes:
                front = 0
            waiting -= 1
            queued[node] = False
            if not reached[node]:
                continue
            here = potential[node]
            if heap_size + (first[node + 1] - first[node]) > heap_room:
                grown_keys = np.zeros(2 * heap_room, np.int64)
                grown_events = np.zeros(2 * heap_room, np.int64)
                heap_size = _live_events(
                    first,
                    head,
                    mate,
                    reached,
                    potential,
                    length,
                    capacity,
                    keys,
                    events,
                    heap_size,
                    grown_keys,
                    grown_events,
                )
                heap_room *= 2
                keys = grown_keys
                events = grown_events
            for half in range(first[node], first[node + 1]):
                other = head[half]
                if reached[other] or capacity[half] == 0:
                    continue
                key = potential[other] - here - length[half]
                if key <= shift:
                    reached[other] = True
                    potential[other] -= shift
                    parent[other] = half
                    next_sibling[other] = first_child[node]
                    previous_sibling[other] = -1
                    if first_child[node] >= 0:
                        previous_sibling[first_child[node]] = other
                    first_child[node] = other
                    if other == sink:
                        queue[(front + waiting) % (nodes + 1)] = node
                        waiting += 1
                        queued[node] = True
                        break
                    if not queued[other]:
                        queue[(front + waiting) % (nodes + 1)] = other
                        waiting += 1
                        queued[other] = True
                else:
                    heap_push(keys, events, heap_size, key, half)
                    heap_size += 1
            scanned += first[node + 1] - first[node]

        if not reached[sink]:
            joined = False
            while heap_size > 0:
                key = keys[0]
                half = events[0]
                other = head[half]
                node = head[mate[half]]
                if (
                    reached[other]
                    or not reached[node]
                    or capacity[half] == 0
                    or potential[other] - potential[node] - length[half] != key
                ):
                    heap_pop(keys, events, heap_size)
                    heap_size -= 1
                    continue
                if key >= shift_limit and key > shift:
                    break
                heap_pop(keys, events, heap_size)
                heap_size -= 1
                joined = True
                break
            if not joined:
                shift = shift_limit
                break
            if key > shift:
                if slopes == 0 or slope[slopes - 1] != total_flow:
                    if slopes == slopes_room:
                        wider_shift = np.zeros(2 * slopes_room, np.int64)
                        wider = np.zeros(2 * slopes_room, np.int64)
                        wider_shift[:slopes] = slope_shift
                        wider[:slopes] = slope
                        slope_shift = wider_shift
                        slope = wider
                        slopes_room *= 2
                    slope_shift[slopes] = shift
                    slope[slopes] = total_flow
                    if slots > 0 and slopes % keep_every == 0:
                        if kept == slots:
                            kept = (kept + 1) // 2
                            for i in range(kept):
                                kept_potential[i] = kept_potential[2 * i]
                                kept_flow[i] = kept_flow[2 * i]
                                kept_total[i] = kept_total[2 * i]
                            keep_every *= 2
                        if slopes % keep_every == 0:
                            for v in range(nodes):
                                kept_potential[kept, v] = potential[v] if reached[v] else potential[v] - shift
                            kept_flow[kept] = flow
                            kept_total[kept] = slopes
                            kept += 1
                    slopes += 1
                shift = key
            reached[other] = True
            potential[other] -= shift
            parent[other] = half
            next_sibling[other] = first_child[node]
            previous_sibling[other] = -1
            if first_child[node] >= 0:
                previous_sibling[first_child[node]] = other
            first_child[node] = other
            if not queued[other]:
                queue[(front + waiting) % (nodes + 1)] = other
                waiting += 1
                queued[other] = True
            if other != sink:
                continue

        bottleneck = UNBOUNDED
        node = sink
        while node != source:
            half = parent[node]
            bottleneck = min(bottleneck, capacity[half])
            node = head[mate[half]]
        if bottleneck == UNBOUNDED:
            break
        total_flow += bottleneck
        cut_off = sink
        node = sink
        while node != source:
            half = parent[node]
            above = head[mate[half]]
            if capacity[half] == bottleneck:
                cut_off = node
            arc = arc_of[half]
            flow[arc] += bottleneck if is_ahead[half] else -bottleneck
            piece[arc] = set_residual(
                arc,
                flow[arc],
                piece[arc],
                piece_first,
                piece_length,
                piece_until,
                forward_half,
                backward_half,
                length,
                capacity,
            )
            node = above

        above = head[mate[parent[cut_off]]]
        if previous_sibling[cut_off] >= 0:
            next_sibling[previous_sibling[cut_off]] = next_sibling[cut_off]
        else:
            first_child[above] = next_sibling[cut_off]
        if next_sibling[cut_off] >= 0:
            previous_sibling[next_sibling[cut_off]] = previous_sibling[cut_off]
        loose[0] = cut_off
        count = 1
        i = 0
        while i < count:
            node = loose[i]
            i += 1
            reached[node] = False
            potential[node] += shift
            parent[node] = -1
            child = first_child[node]
            first_child[node] = -1
            while child >= 0:
                loose[count] = child
                count += 1
                child = next_sibling[child]
        needed = 0
        for i in range(count):
            needed += first[loose[i] + 1] - first[loose[i]]
        scanned += needed
        if heap_size + needed > heap_room:
            room = max(2 * heap_room, heap_size + needed)
            grown_keys = np.zeros(room, np.int64)
            grown_events = np.zeros(room, np.int64)
            heap_size = _live_events(
                first,
                head,
                mate,
                reached,
                potential,
                length,
                capacity,
                keys,
                events,
                heap_size,
                grown_keys,
                grown_events,
            )
            heap_room = room
            keys = grown_keys
            events = grown_events
        for i in range(count):
            node = loose[i]
            for half in range(first[node], first[node + 1]):
                above = head[half]
                inward = mate[half]
                if not reached[above] or capacity[inward] == 0:
                    continue
                key = potential[node] - potential[above] - length[inward]
                if key > shift:
                    heap_push(keys, events, heap_size, key, inward)
                    heap_size += 1
                elif not queued[above]:
                    queue[(front + waiting) % (nodes + 1)] = above
                    waiting += 1
                    queued[above] = True

    for node in range(nodes):
        if not reached[node]:
            potential[node] -= shift
    return slope_shift[:slopes].copy(), slope[:slopes].copy(), shift, kept, scanned


@compiled
def _live_events(
    first: IntArray,
    head: IntArray,
    mate: IntArray,
    reached: NDArray[np.bool_],
    potential: IntArray,
    length: IntArray,
    capacity: IntArray,
    keys: IntArray,
    events: IntArray,
    heap_size: int,
    grown_keys: IntArray,
    grown_events: IntArray,
) -> int:
    """Copy the heap without the events that no longer hold."""
    size = 0
    for i in range(heap_size):
        half = events[i]
        other = head[half]
        node = head[mate[half]]
        if (
            not reached[other]
            and reached[node]
            and capacity[half] > 0
            and potential[other] - potential[node] - length[half] == keys[i]
        ):
            heap_push(grown_keys, grown_events, size, keys[i], half)
            size += 1
    return size
