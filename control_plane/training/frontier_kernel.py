"""The parametric primal–dual walk on flat integer arrays (Fulkerson 1961, Kelley 1961), exact.

Potentials are event times, flow is energy per time. What tight residual arcs reach from the source stays,
all else moves earlier; a heap tells when the next event joins. When the sink joins, flow is pushed along
all paths (one phase of Dinic's method), and the next slope begins.
"""

import numpy as np
from numpy.typing import NDArray

from control_plane.compiled import compiled

IntArray = NDArray[np.int64]
IndexArray = NDArray[np.uint32]
"""Places in other arrays: unsigned, so that the compiled code need not look whether one counts from the end."""
HalfArray = NDArray[np.uint64]
"""Places among half-arcs that loops count from and to."""

UNBOUNDED = 1 << 62
CLOSED = -(1 << 62)
"""The length of a half-arc without residual capacity: it never becomes tight."""


@compiled
def set_residual(
    arc: int,
    flow: int,
    piece: int,
    piece_first: IntArray,
    piece_length: IntArray,
    piece_until: IntArray,
    forward_half: IndexArray,
    backward_half: IndexArray,
    length: IntArray,
    inward_length: IntArray,
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
    until = piece_until[first + piece]
    ahead_length = piece_length[first + piece]
    capacity[ahead] = UNBOUNDED if until == UNBOUNDED else until - flow
    since = piece_until[first + piece - 1] if piece > 0 else 0
    if flow > since:
        back_length = -ahead_length
        capacity[back] = flow - since
    elif piece > 0:
        back_length = -piece_length[first + piece - 1]
        capacity[back] = flow - (piece_until[first + piece - 2] if piece > 1 else 0)
    else:
        back_length = CLOSED
        capacity[back] = 0
    length[ahead] = ahead_length
    length[back] = back_length
    inward_length[back] = ahead_length
    inward_length[ahead] = back_length
    return piece


@compiled
def heap_push(keys: IntArray, halves: IndexArray, size: int, key: int, half: int) -> None:
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
def heap_pop(keys: IntArray, halves: IndexArray, size: int) -> None:
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
def spread(
    first: HalfArray,
    head: IndexArray,
    length: IntArray,
    potential: IntArray,
    mark: IntArray,
    level: IndexArray,
    stack: IndexArray,
    keys: IntArray,
    events: IndexArray,
    heap_size: int,
    start: int,
    moved: int,
    stamp: int,
    limit: int,
) -> int:
    """From a marked event, mark what arcs reach that are tight once all unmarked events have moved by `moved`; put the
    arcs that are not tight yet into the heap. Returns the heap's size."""
    stack[0] = start
    front = 0
    waiting = 1
    while front < waiting:
        node = stack[front]
        front += 1
        here = potential[node]
        for half in range(first[node], first[node + 1]):
            other = head[half]
            if mark[other] == stamp:
                continue
            key = potential[other] - here - length[half]
            if key == moved:
                mark[other] = stamp
                potential[other] -= moved
                level[other] = level[node] + 1
                stack[waiting] = other
                waiting += 1
            elif key < limit:
                heap_push(keys, events, heap_size, key, half)
                heap_size += 1
    return heap_size


@compiled
def advance(
    first: HalfArray,
    head: IndexArray,
    mate: IndexArray,
    length: IntArray,
    potential: IntArray,
    mark: IntArray,
    level: IndexArray,
    stack: IndexArray,
    keys: IntArray,
    events: IndexArray,
    heap_size: int,
    sink: int,
    stamp: int,
    limit: int,
) -> int:
    """Move all that is not marked earlier; what becomes tight joins the marked, until the sink does.

    Returns by how much, at most `limit`. Potentials are up to date afterwards.
    """
    moved = limit
    while heap_size > 0:
        key = keys[0]
        half = events[0]
        heap_pop(keys, events, heap_size)
        heap_size -= 1
        other = head[half]
        if mark[other] == stamp:
            continue
        mark[other] = stamp
        potential[other] -= key
        level[other] = level[head[mate[half]]] + 1
        heap_size = spread(
            first,
            head,
            length,
            potential,
            mark,
            level,
            stack,
            keys,
            events,
            heap_size,
            other,
            key,
            stamp,
            limit,
        )
        if mark[sink] == stamp:
            moved = key
            break
    for node in range(len(mark)):
        if mark[node] != stamp:
            potential[node] -= moved
    return moved


@compiled
def walk(
    first: HalfArray,
    head: IndexArray,
    mate: IndexArray,
    arc_of: IndexArray,
    is_ahead: NDArray[np.bool_],
    piece_first: IntArray,
    piece_length: IntArray,
    piece_until: IntArray,
    forward_half: IndexArray,
    backward_half: IndexArray,
    potential: IntArray,
    flow: IntArray,
    total_flow: int,
    source: int,
    sink: int,
    shift_limit: int,
    kept_potential: IntArray,
    kept_flow: IntArray,
    kept_at: IntArray,
    count: IntArray,
    most_slopes: int,
) -> tuple[IntArray, IntArray, int, int]:
    """Shorten the sink's time by up to `shift_limit`; `potential`, `flow` and `count` are updated in place.

    Returns the shifts at which the slope changed, the slope from each on, the final shift and the flow. It stops
    before the slope after `most_slopes`, and another call goes on from there. `count` holds how many slopes earlier
    calls found, how many states are kept in `kept_*` (evenly spread over the slopes, the first always), and every
    how many slopes one is kept.
    """
    nodes = len(first) - 1
    halves = len(head)
    arcs = len(forward_half)
    length = np.zeros(halves, np.int64)
    inward_length = np.zeros(halves, np.int64)
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
            inward_length,
            capacity,
        )
    mark = np.zeros(nodes, np.int64)
    entered = np.zeros(nodes, np.int64)
    level = np.zeros(nodes, np.uint32)
    visited = np.zeros(nodes, np.int64)
    search = 0
    cursor = np.zeros(nodes, np.uint64)
    stack = np.zeros(nodes + 1, np.uint32)
    path = np.zeros(nodes + 1, np.uint32)
    keys = np.zeros(2 * halves + 1, np.int64)
    events = np.zeros(2 * halves + 1, np.uint32)
    stamp = 0
    slots = len(kept_at)
    found_before = count[0]
    kept = count[1]
    keep_every = count[2]
    slope_shift = np.zeros(1024, np.int64)
    slope = np.zeros(1024, np.int64)
    slopes = 0
    shift = 0

    while True:
        stamp += 1
        mark[source] = stamp
        level[source] = 0
        heap_size = spread(
            first,
            head,
            length,
            potential,
            mark,
            level,
            stack,
            keys,
            events,
            0,
            source,
            0,
            stamp,
            shift_limit - shift,
        )
        if mark[sink] != stamp:
            if slopes == most_slopes:
                break
            if slopes == len(slope):
                slope_shift = np.concatenate((slope_shift, np.zeros(slopes, np.int64)))
                slope = np.concatenate((slope, np.zeros(slopes, np.int64)))
            slope_shift[slopes] = shift
            slope[slopes] = total_flow
            if slots > 0 and (found_before + slopes) % keep_every == 0:
                if kept == slots:
                    kept = (kept + 1) // 2
                    for i in range(kept):
                        kept_potential[i] = kept_potential[2 * i]
                        kept_flow[i] = kept_flow[2 * i]
                        kept_at[i] = kept_at[2 * i]
                    keep_every *= 2
                if (found_before + slopes) % keep_every == 0:
                    kept_potential[kept] = potential
                    kept_flow[kept] = flow
                    kept_at[kept] = found_before + slopes
                    kept += 1
            slopes += 1
            count[0] = found_before + slopes
            count[1] = kept
            count[2] = keep_every
            shift += advance(
                first,
                head,
                mate,
                length,
                potential,
                mark,
                level,
                stack,
                keys,
                events,
                heap_size,
                sink,
                stamp,
                shift_limit - shift,
            )
            if mark[sink] != stamp:
                break

        # All that is marked has a way back to the source: search for paths from the sink, among the marked.
        # Levels fall towards the source, so the search runs in no circle and blocked events stay blocked.
        search += 1
        depth = 0
        node = sink
        cursor[sink] = first[sink + 1]
        while True:
            if node == source:
                bottleneck = UNBOUNDED
                for i in range(depth):
                    bottleneck = min(bottleneck, capacity[path[i]])
                if bottleneck == UNBOUNDED:
                    return slope_shift[:slopes].copy(), slope[:slopes].copy(), shift, total_flow
                total_flow += bottleneck
                open_until = depth
                for i in range(depth - 1, -1, -1):
                    half = path[i]
                    back = mate[half]
                    arc = arc_of[half]
                    flow[arc] += bottleneck if is_ahead[half] else -bottleneck
                    if capacity[half] == bottleneck:
                        open_until = i
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
                            inward_length,
                            capacity,
                        )
                        continue
                    if capacity[half] != UNBOUNDED:
                        capacity[half] -= bottleneck
                    if length[back] == -length[half]:
                        if capacity[back] != UNBOUNDED:
                            capacity[back] += bottleneck
                    else:
                        length[back] = -length[half]
                        inward_length[half] = length[back]
                        capacity[back] = bottleneck
                for i in range(open_until, depth):
                    visited[head[mate[path[i]]]] = 0
                depth = open_until
                node = sink if depth == 0 else head[mate[path[depth - 1]]]
            here = potential[node]
            next_half = cursor[node]
            begin = first[node]
            found = False
            while next_half > begin and not found:
                next_half -= np.uint64(1)
                other = head[next_half]
                found = (
                    here - potential[other] == inward_length[next_half]
                    and visited[other] != search
                    and mark[other] == stamp
                    and level[other] < level[node]
                )
            if found:
                cursor[node] = next_half + np.uint64(1)
                path[depth] = mate[next_half]
                depth += 1
                node = head[next_half]
                visited[node] = search
                if entered[node] != search:
                    entered[node] = search
                    cursor[node] = first[node + 1]
            elif depth == 0:
                break
            else:
                depth -= 1
                node = sink if depth == 0 else head[mate[path[depth - 1]]]
    return slope_shift[:slopes].copy(), slope[:slopes].copy(), shift, total_flow
