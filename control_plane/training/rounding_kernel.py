"""Rounding on flat arrays: one real choice per operation, fastest first, never past a given instant."""

import numpy as np
from numpy.typing import NDArray

from control_plane.compiled import compiled

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
IndexArray = NDArray[np.int32]


@compiled
def cover_with_paths(
    before_first: IntArray, before: IntArray, order: IntArray, stage: IntArray, along_stages: bool
) -> IntArray:
    """The path of each operation: it goes on where one ends that it waits for, on its stage if `along_stages`, else on
    another, if there is a choice."""
    path_of = np.full(len(order), -1, np.int64)
    goes_on = np.zeros(len(order), np.bool_)
    paths = 0
    for op in order:
        taken = -1
        for i in range(before_first[op], before_first[op + 1]):
            end = before[i]
            if goes_on[end]:
                continue
            if taken < 0 or ((stage[end] == stage[op]) == along_stages and (stage[taken] == stage[op]) != along_stages):
                taken = end
        if taken >= 0:
            goes_on[taken] = True
            path_of[op] = path_of[taken]
        else:
            path_of[op] = paths
            paths += 1
    return path_of


@compiled
def slowest_by(
    before_first: IntArray,
    before: IntArray,
    order: IntArray,
    kind: IntArray,
    choice_first: IntArray,
    choice_time_s: FloatArray,
    finish_by_s: FloatArray,
) -> IntArray:
    """Start soonest; take the slowest choice that ends by the operation's limit, else the fastest."""
    count = len(order)
    chosen = np.zeros(count, np.int64)
    finish_s = np.zeros(count)
    for op in order:
        start_s = 0.0
        for i in range(before_first[op], before_first[op + 1]):
            start_s = max(start_s, finish_s[before[i]])
        first = choice_first[kind[op]]
        low = 0
        high = choice_first[kind[op] + 1] - first - 1
        while low < high:
            middle = (low + high + 1) // 2
            if start_s + choice_time_s[first + middle] <= finish_by_s[op]:
                low = middle
            else:
                high = middle - 1
        chosen[op] = low
        finish_s[op] = start_s + choice_time_s[first + low]
    return chosen


@compiled
def choose_along(
    ops: IntArray,
    release_s: FloatArray,
    due_s: FloatArray,
    kind: IntArray,
    choice_first: IntArray,
    choice_time_s: FloatArray,
    choice_cost_j: FloatArray,
    buckets: int,
    label_finish_s: FloatArray,
    label_cost_j: FloatArray,
    label_from: IndexArray,
    label_choice: IndexArray,
    chosen: IntArray,
) -> bool:
    """Choose anew for operations that follow one another, each within its window, by dynamic programming.

    Labels are (finish, cost) pairs, thinned to the cheapest per bucket of finish times. Writes `chosen`
    and returns True if that is cheaper than what stands there.
    """
    size = len(ops)
    cost_in_bucket_j = np.zeros(buckets)
    finish_in_bucket_s = np.zeros(buckets)
    from_in_bucket = np.zeros(buckets, np.int32)
    choice_in_bucket = np.zeros(buckets, np.int32)
    for step in range(size - 2, -1, -1):
        fastest_s = choice_time_s[choice_first[kind[ops[step + 1]]]]
        due_s[step] = min(due_s[step], due_s[step + 1] - fastest_s)
    label_finish_s[0, 0] = 0.0
    label_cost_j[0, 0] = 0.0
    labels = 1
    current_j = 0.0
    for step in range(size):
        first = choice_first[kind[ops[step]]]
        choices = choice_first[kind[ops[step]] + 1] - first
        current_j += choice_cost_j[first + chosen[ops[step]]]
        low_s = max(release_s[step], label_finish_s[step, 0]) + choice_time_s[first]
        if low_s > due_s[step]:
            return False
        high_s = max(release_s[step], label_finish_s[step, labels - 1]) + choice_time_s[first + choices - 1]
        per_s = (buckets - 1) / max(min(due_s[step], high_s) - low_s, 1e-300)
        cost_in_bucket_j[:] = np.inf
        for label in range(labels):
            if label + 1 < labels and label_finish_s[step, label + 1] <= release_s[step]:
                continue  # the next label is cheaper and ready in time too
            start_s = max(release_s[step], label_finish_s[step, label])
            for choice in range(choices):
                finish_s = start_s + choice_time_s[first + choice]
                if finish_s > due_s[step]:
                    break
                cost_j = label_cost_j[step, label] + choice_cost_j[first + choice]
                bucket = int((finish_s - low_s) * per_s)
                if cost_j < cost_in_bucket_j[bucket] or (
                    cost_j == cost_in_bucket_j[bucket] and finish_s < finish_in_bucket_s[bucket]
                ):
                    cost_in_bucket_j[bucket] = cost_j
                    finish_in_bucket_s[bucket] = finish_s
                    from_in_bucket[bucket] = label
                    choice_in_bucket[bucket] = choice
        labels = 0
        least_j = np.inf
        for bucket in range(buckets):
            if cost_in_bucket_j[bucket] < least_j:
                least_j = cost_in_bucket_j[bucket]
                label_finish_s[step + 1, labels] = finish_in_bucket_s[bucket]
                label_cost_j[step + 1, labels] = least_j
                label_from[step + 1, labels] = from_in_bucket[bucket]
                label_choice[step + 1, labels] = choice_in_bucket[bucket]
                labels += 1
    label = labels - 1
    if label_cost_j[size, label] >= current_j:
        return False
    for step in range(size - 1, -1, -1):
        chosen[ops[step]] = label_choice[step + 1, label]
        label = label_from[step + 1, label]
    return True


@compiled
def set_windows(
    ops: IntArray,
    before_first: IntArray,
    before: IntArray,
    after_first: IntArray,
    after: IntArray,
    start_s: FloatArray,
    finish_s: FloatArray,
    release_lean: float,
    due_lean: float,
    deadline_s: float,
    release_s: FloatArray,
    due_s: FloatArray,
) -> None:
    """When each operation of a path may start and must end, if all others keep to a schedule's times.

    An edge from or to another operation is cut at a lean between its later end's start (0) and its earlier end's
    finish (1).
    """
    for step in range(len(ops)):
        op = ops[step]
        released_s = 0.0
        for i in range(before_first[op], before_first[op + 1]):
            other = before[i]
            if step == 0 or other != ops[step - 1]:
                released_s = max(released_s, release_lean * finish_s[other] + (1 - release_lean) * start_s[op])
        until_s = deadline_s
        for i in range(after_first[op], after_first[op + 1]):
            other = after[i]
            if step == len(ops) - 1 or other != ops[step + 1]:
                until_s = min(until_s, due_lean * finish_s[op] + (1 - due_lean) * start_s[other])
        release_s[step] = released_s
        due_s[step] = until_s + 1e-12 * deadline_s


@compiled
def choose_within(
    before_first: IntArray,
    before: IntArray,
    after_first: IntArray,
    after: IntArray,
    kind: IntArray,
    choice_first: IntArray,
    choice_time_s: FloatArray,
    choice_cost_j: FloatArray,
    path_first: IntArray,
    path_ops: IntArray,
    start_s: FloatArray,
    finish_s: FloatArray,
    leaning: float,
    deadline_s: float,
    buckets: int,
    chosen: IntArray,
) -> None:
    """Cut the DAG into paths at a schedule's times and choose each path at its best; together they still fit.

    An edge between paths is cut at `leaning` of the way from its later end's start to its earlier end's
    finish.
    """
    longest = 0
    for path in range(len(path_first) - 1):
        longest = max(longest, path_first[path + 1] - path_first[path])
    label_finish_s = np.zeros((longest + 1, buckets))
    label_cost_j = np.zeros((longest + 1, buckets))
    label_from = np.zeros((longest + 1, buckets), np.int32)
    label_choice = np.zeros((longest + 1, buckets), np.int32)
    release_s = np.zeros(longest)
    due_s = np.zeros(longest)
    for path in range(len(path_first) - 1):
        ops = path_ops[path_first[path] : path_first[path + 1]]
        set_windows(
            ops,
            before_first,
            before,
            after_first,
            after,
            start_s,
            finish_s,
            leaning,
            leaning,
            deadline_s,
            release_s,
            due_s,
        )
        choose_along(
            ops,
            release_s,
            due_s,
            kind,
            choice_first,
            choice_time_s,
            choice_cost_j,
            buckets,
            label_finish_s,
            label_cost_j,
            label_from,
            label_choice,
            chosen,
        )


@compiled
def improve(
    before_first: IntArray,
    before: IntArray,
    after_first: IntArray,
    after: IntArray,
    order: IntArray,
    kind: IntArray,
    choice_first: IntArray,
    choice_time_s: FloatArray,
    choice_cost_j: FloatArray,
    path_first: IntArray,
    path_ops: IntArray,
    visits: IntArray,
    leanings: FloatArray,
    deadline_s: float,
    buckets: int,
    chosen: IntArray,
) -> int:
    """Large-neighbourhood search: one path at a time is chosen anew, all else pinned to a schedule of the
    plan.

    `visits` lists the paths; the rest is pinned at `leaning` of the way from its latest to its earliest
    schedule. A visit never makes the plan dearer. Returns how many visits changed it; `chosen` is updated
    in place.
    """
    count = len(order)
    time_s = np.zeros(count)
    for op in range(count):
        time_s[op] = choice_time_s[choice_first[kind[op]] + chosen[op]]
    longest = 0
    for path in range(len(path_first) - 1):
        longest = max(longest, path_first[path + 1] - path_first[path])
    label_finish_s = np.zeros((longest + 1, buckets))
    label_cost_j = np.zeros((longest + 1, buckets))
    label_from = np.zeros((longest + 1, buckets), np.int32)
    label_choice = np.zeros((longest + 1, buckets), np.int32)
    release_s = np.zeros(longest)
    due_s = np.zeros(longest)
    early_s = np.zeros(count)
    late_s = np.zeros(count)
    pinned_start_s = np.zeros(count)
    pinned_finish_s = np.zeros(count)
    changed = 0
    for visit in range(len(visits)):
        for op in order:
            begin_s = 0.0
            for i in range(before_first[op], before_first[op + 1]):
                begin_s = max(begin_s, early_s[before[i]])
            early_s[op] = begin_s + time_s[op]
        for position in range(count - 1, -1, -1):
            op = order[position]
            end_s = deadline_s
            for i in range(after_first[op], after_first[op + 1]):
                end_s = min(end_s, late_s[after[i]] - time_s[after[i]])
            late_s[op] = end_s
        leaning = leanings[visit]
        for op in range(count):
            pinned_finish_s[op] = leaning * early_s[op] + (1 - leaning) * late_s[op]
            pinned_start_s[op] = pinned_finish_s[op] - time_s[op]
        ops = path_ops[path_first[visits[visit]] : path_first[visits[visit] + 1]]
        set_windows(
            ops,
            before_first,
            before,
            after_first,
            after,
            pinned_start_s,
            pinned_finish_s,
            1.0,
            0.0,
            deadline_s,
            release_s,
            due_s,
        )
        if choose_along(
            ops,
            release_s,
            due_s,
            kind,
            choice_first,
            choice_time_s,
            choice_cost_j,
            buckets,
            label_finish_s,
            label_cost_j,
            label_from,
            label_choice,
            chosen,
        ):
            changed += 1
            for op in ops:
                time_s[op] = choice_time_s[choice_first[kind[op]] + chosen[op]]
    return changed


@compiled
def splice(
    before_first: IntArray,
    before: IntArray,
    order: IntArray,
    kind: IntArray,
    choice_first: IntArray,
    choice_time_s: FloatArray,
    turn: IntArray,
    slow: IntArray,
    fast: IntArray,
    slow_first: bool,
    deadline_s: float,
    chosen: IntArray,
) -> bool:
    """One plan until some turn and the other from there: as much of the slow one as the deadline lets in.

    `turn` ranks the operations. Writes `chosen`; False if not even the fast plan alone ends by the deadline.
    """
    count = len(order)
    finish_s = np.zeros(count)
    taken = 0
    refused = count + 1
    while refused - taken > 1:
        slow_ops = (taken + refused) // 2
        end_s = 0.0
        for op in order:
            is_slow = turn[op] < slow_ops if slow_first else turn[op] >= count - slow_ops
            choice = slow[op] if is_slow else fast[op]
            start_s = 0.0
            for i in range(before_first[op], before_first[op + 1]):
                start_s = max(start_s, finish_s[before[i]])
            finish_s[op] = start_s + choice_time_s[choice_first[kind[op]] + choice]
            end_s = max(end_s, finish_s[op])
        if end_s <= deadline_s:
            taken = slow_ops
        else:
            refused = slow_ops
    for op in range(count):
        is_slow = turn[op] < taken if slow_first else turn[op] >= count - taken
        chosen[op] = slow[op] if is_slow else fast[op]
    return taken > 0


@compiled
def repair(
    before_first: IntArray,
    before: IntArray,
    order: IntArray,
    kind: IntArray,
    choice_first: IntArray,
    choice_time_s: FloatArray,
    choice_cost_j: FloatArray,
    deadline_s: float,
    chosen: IntArray,
) -> bool:
    """Speed up operations on the critical path, the cheapest second first, until the plan ends by the deadline.

    False if the critical path is at its fastest and still late.
    """
    count = len(order)
    finish_s = np.zeros(count)
    held_by = np.zeros(count, np.int64)
    while True:
        last = order[0]
        for op in order:
            start_s = 0.0
            held_by[op] = -1
            for i in range(before_first[op], before_first[op + 1]):
                if held_by[op] < 0 or finish_s[before[i]] > start_s:
                    start_s = finish_s[before[i]]
                    held_by[op] = before[i]
            finish_s[op] = start_s + choice_time_s[choice_first[kind[op]] + chosen[op]]
            if finish_s[op] > finish_s[last]:
                last = op
        if finish_s[last] <= deadline_s:
            return True
        late_s = finish_s[last] - deadline_s
        cheapest = -1
        least_j_per_s = np.inf
        op = last
        while op >= 0:
            if chosen[op] > 0:
                row = choice_first[kind[op]] + chosen[op]
                gained_s = min(choice_time_s[row] - choice_time_s[row - 1], late_s)
                paid_j_per_s = (choice_cost_j[row - 1] - choice_cost_j[row]) / max(gained_s, 1e-300)
                if paid_j_per_s < least_j_per_s:
                    least_j_per_s = paid_j_per_s
                    cheapest = op
            op = held_by[op]
        if cheapest < 0:
            return False
        chosen[cheapest] -= 1
