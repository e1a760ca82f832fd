"""Clocks along a stage by dynamic programming with the clock as part of the state, on flat arrays.

A clock change is one step of the programme: it runs operations at the new setting until that has been held for long
enough, so that a state is always free to change again. While a change settles the old setting runs on.
"""

import numpy as np
from numpy.typing import NDArray

from control_plane.compiled import compiled
from control_plane.training.rounding_kernel import set_windows

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
IndexArray = NDArray[np.int32]
BoolArray = NDArray[np.bool_]


@compiled
def settling(
    old: int, new: int, left_s: float, row: int, table_time_s: FloatArray, table_cost_j: FloatArray
) -> tuple[float, float, float]:
    """Time and effective cost of an operation that begins `left_s` before the new setting is in force, and what is left
    to settle after it. `row` is the operation's first row in the tables.

    A stage that waits before the operation settles meanwhile, so nothing is counted on to go faster than at the new
    setting because an old, faster one runs on.
    """
    new_s = table_time_s[row + new]
    new_j = table_cost_j[row + new]
    if left_s <= 0.0 or old == new:
        return new_s, new_j, 0.0
    old_s = table_time_s[row + old]
    old_j = table_cost_j[row + old]
    if old_s == np.inf or new_s == np.inf:
        return np.inf, np.inf, 0.0
    if left_s >= old_s:
        return max(old_s, new_s), old_j, left_s - old_s
    share = left_s / old_s
    return max(left_s + (1 - share) * new_s, new_s), share * old_j + (1 - share) * new_j, 0.0


@compiled
def run_stage(
    ops: IntArray,
    row: IntArray,
    table_time_s: FloatArray,
    table_cost_j: FloatArray,
    setting: IntArray,
    switch_time_s: float,
    repeats: bool,
    time_s: FloatArray,
) -> float:
    """Write what each operation of a stage takes with these settings, and return their effective cost. Where the
    iteration repeats, it begins at the setting with which it ends; else its first one is in force from the start."""
    cost_j = 0.0
    old = setting[ops[-1]] if repeats else setting[ops[0]]
    before = old
    left_s = 0.0
    for op in ops:
        new = setting[op]
        if new != before:
            old = before
            left_s = switch_time_s
        took_s, paid_j, left_s = settling(old, new, left_s, row[op], table_time_s, table_cost_j)
        time_s[op] = took_s
        cost_j += paid_j
        before = new
    return cost_j


@compiled
def choose_held(
    ops: IntArray,
    row: IntArray,
    table_time_s: FloatArray,
    table_cost_j: FloatArray,
    allowed: BoolArray,
    release_s: FloatArray,
    due_s: FloatArray,
    switch_time_s: float,
    hold_s: float,
    most_j: float,
    buckets: int,
    label_cost_j: FloatArray,
    label_finish_s: FloatArray,
    label_step: IndexArray,
    label_setting: IndexArray,
    label_bucket: IndexArray,
    setting: IntArray,
) -> bool:
    """Choose the settings of a stage anew, each operation within its window, each setting held for `hold_s` of
    computing at least. Labels are (finish, cost) pairs per step and setting, the cheapest per bucket of finish times.
    Writes `setting` and returns True where that costs less than `most_j`.
    """
    size = len(ops)
    count = len(allowed)
    soonest_s = np.zeros(size + 1)
    rest_j = np.zeros(size + 1)
    fastest_s = np.zeros(size)
    for step in range(size):
        fastest_s[step] = np.inf
        for k in range(count):
            if allowed[k]:
                fastest_s[step] = min(fastest_s[step], table_time_s[row[ops[step]] + k])
        soonest_s[step + 1] = max(soonest_s[step], release_s[step]) + fastest_s[step]
        if soonest_s[step + 1] > due_s[step]:
            return False
    for step in range(size - 1, -1, -1):
        least_j = np.inf
        for k in range(count):
            if allowed[k]:
                least_j = min(least_j, table_cost_j[row[ops[step]] + k])
        rest_j[step] = rest_j[step + 1] + least_j
        if step + 1 < size:
            due_s[step] = min(due_s[step], due_s[step + 1] - fastest_s[step + 1])
    per_s = np.zeros(size + 1)
    for step in range(size):
        per_s[step + 1] = (buckets - 1) / max(due_s[step] - soonest_s[step + 1], 1e-300)
    label_cost_j[: size + 1, :count, :] = np.inf
    pool_finish_s = np.zeros(buckets)
    pool_cost_j = np.zeros(buckets)
    pool_setting = np.zeros(buckets, np.int64)
    pool_bucket = np.zeros(buckets, np.int64)
    pool_cost_j[0] = 0.0
    pool_setting[0] = -1
    pooled = 1
    for step in range(size):
        if step > 0:
            pooled = 0
            least_j = np.inf
            for k in range(count):
                own_j = np.inf
                for b in range(buckets):
                    if label_cost_j[step, k, b] >= own_j:
                        label_cost_j[step, k, b] = np.inf
                    else:
                        own_j = label_cost_j[step, k, b]
            for b in range(buckets):
                best = -1
                for k in range(count):
                    if label_cost_j[step, k, b] < least_j:
                        least_j = label_cost_j[step, k, b]
                        best = k
                if best >= 0:
                    pool_finish_s[pooled] = label_finish_s[step, best, b]
                    pool_cost_j[pooled] = least_j
                    pool_setting[pooled] = best
                    pool_bucket[pooled] = b
                    pooled += 1
            for k in range(count):
                if not allowed[k]:
                    continue
                took_s = table_time_s[row[ops[step]] + k]
                paid_j = table_cost_j[row[ops[step]] + k]
                for b in range(buckets):
                    cost_j = label_cost_j[step, k, b] + paid_j
                    if cost_j + rest_j[step + 1] >= most_j:
                        continue
                    finish_s = max(release_s[step], label_finish_s[step, k, b]) + took_s
                    if finish_s > due_s[step]:
                        break
                    bucket = int((finish_s - soonest_s[step + 1]) * per_s[step + 1])
                    if cost_j < label_cost_j[step + 1, k, bucket]:
                        label_cost_j[step + 1, k, bucket] = cost_j
                        label_finish_s[step + 1, k, bucket] = finish_s
                        label_step[step + 1, k, bucket] = step
                        label_setting[step + 1, k, bucket] = k
                        label_bucket[step + 1, k, bucket] = b
        for label in range(pooled):
            if label + 1 < pooled and pool_finish_s[label + 1] <= release_s[step]:
                continue  # The next label is cheaper and ready in time too.
            old = pool_setting[label]
            for k in range(count):
                if not allowed[k] or (k == old and step > 0):
                    continue
                finish_s = pool_finish_s[label]
                cost_j = pool_cost_j[label]
                left_s = switch_time_s if step > 0 else 0.0
                nominal_s = 0.0
                real_s = 0.0
                then = step
                while True:
                    took_s, paid_j, left_s = settling(old, k, left_s, row[ops[then]], table_time_s, table_cost_j)
                    finish_s = max(release_s[then], finish_s) + took_s
                    cost_j += paid_j
                    if finish_s > due_s[then] or cost_j + rest_j[then + 1] >= most_j:
                        break
                    nominal_s += table_time_s[row[ops[then]] + k]
                    real_s += took_s
                    then += 1
                    if min(nominal_s, real_s) < hold_s and not (then == size and step == 0):
                        if then < size:
                            continue
                        break
                    bucket = int((finish_s - soonest_s[then]) * per_s[then])
                    if cost_j < label_cost_j[then, k, bucket]:
                        label_cost_j[then, k, bucket] = cost_j
                        label_finish_s[then, k, bucket] = finish_s
                        label_step[then, k, bucket] = step
                        label_setting[then, k, bucket] = old
                        label_bucket[then, k, bucket] = pool_bucket[label]
                    break
    best_j = most_j
    at = -1
    bucket = 0
    for k in range(count):
        for b in range(buckets):
            if label_cost_j[size, k, b] < best_j:
                best_j = label_cost_j[size, k, b]
                at = k
                bucket = b
    if at < 0:
        return False
    step = size
    while step > 0:
        since = label_step[step, at, bucket]
        for i in range(since, step):
            setting[ops[i]] = at
        before = label_setting[step, at, bucket]
        bucket = label_bucket[step, at, bucket]
        at = before
        step = since
    return True


@compiled
def improve_held(
    before_first: IntArray,
    before: IntArray,
    after_first: IntArray,
    after: IntArray,
    order: IntArray,
    stage_first: IntArray,
    stage_ops: IntArray,
    stage_settings: IntArray,
    row: IntArray,
    table_time_s: FloatArray,
    table_cost_j: FloatArray,
    allowed: BoolArray,
    visits: IntArray,
    masks: IntArray,
    leanings: FloatArray,
    switch_time_s: float,
    hold_s: float,
    deadline_s: float,
    buckets: int,
    time_s: FloatArray,
    setting: IntArray,
) -> int:
    """Large-neighbourhood search: one stage at a time is chosen anew, all else pinned to a schedule of the plan.

    `visits` lists the stages; the rest is pinned at `leaning` of the way from its latest to its earliest schedule.
    Row `masks[visit]` of `allowed` says which settings may be used, `stage_settings` how many a stage has. `time_s` and
    `setting` are updated in place; a visit never makes the plan dearer or late. Returns how many visits changed it.
    """
    count = len(order)
    stages = len(stage_first) - 1
    longest = 0
    for stage in range(stages):
        longest = max(longest, stage_first[stage + 1] - stage_first[stage])
    most = allowed.shape[1]
    label_cost_j = np.zeros((longest + 1, most, buckets))
    label_finish_s = np.zeros((longest + 1, most, buckets))
    label_step = np.zeros((longest + 1, most, buckets), np.int32)
    label_setting = np.zeros((longest + 1, most, buckets), np.int32)
    label_bucket = np.zeros((longest + 1, most, buckets), np.int32)
    release_s = np.zeros(longest)
    due_s = np.zeros(longest)
    early_s = np.zeros(count)
    late_s = np.zeros(count)
    pinned_start_s = np.zeros(count)
    pinned_finish_s = np.zeros(count)
    old_time_s = np.zeros(count)
    changed = 0
    is_early = False
    for visit in range(len(visits)):
        if not is_early:
            for op in order:
                begin_s = 0.0
                for i in range(before_first[op], before_first[op + 1]):
                    begin_s = max(begin_s, early_s[before[i]])
                early_s[op] = begin_s + time_s[op]
            is_early = True
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
        stage = visits[visit]
        ops = stage_ops[stage_first[stage] : stage_first[stage + 1]]
        old_setting = setting[ops].copy()
        current_j = run_stage(ops, row, table_time_s, table_cost_j, setting, switch_time_s, False, old_time_s)
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
        if not choose_held(
            ops,
            row,
            table_time_s,
            table_cost_j,
            allowed[masks[visit], : stage_settings[stage]],
            release_s,
            due_s,
            switch_time_s,
            hold_s,
            current_j * (1 - 1e-12 * np.sign(current_j)),
            buckets,
            label_cost_j,
            label_finish_s,
            label_step,
            label_setting,
            label_bucket,
            setting,
        ):
            continue
        new_j = run_stage(ops, row, table_time_s, table_cost_j, setting, switch_time_s, False, time_s)
        end_s = 0.0
        for op in order:
            begin_s = 0.0
            for i in range(before_first[op], before_first[op + 1]):
                begin_s = max(begin_s, early_s[before[i]])
            early_s[op] = begin_s + time_s[op]
            end_s = max(end_s, early_s[op])
        if new_j < current_j and end_s <= deadline_s:
            changed += 1
            continue
        is_early = False
        for i in range(len(ops)):
            setting[ops[i]] = old_setting[i]
            time_s[ops[i]] = old_time_s[ops[i]]
    return changed


@compiled
def choose_held_within(
    before_first: IntArray,
    before: IntArray,
    after_first: IntArray,
    after: IntArray,
    stage_first: IntArray,
    stage_ops: IntArray,
    stage_settings: IntArray,
    row: IntArray,
    table_time_s: FloatArray,
    table_cost_j: FloatArray,
    allowed: BoolArray,
    start_s: FloatArray,
    finish_s: FloatArray,
    leaning: float,
    switch_time_s: float,
    hold_s: float,
    deadline_s: float,
    buckets: int,
    setting: IntArray,
) -> int:
    """Cut the DAG into stages at a schedule's times and choose each stage at its best within them. A stage without a
    choice that fits keeps its `setting`. Returns how many stages were chosen."""
    longest = 0
    for stage in range(len(stage_first) - 1):
        longest = max(longest, stage_first[stage + 1] - stage_first[stage])
    most = allowed.shape[1]
    label_cost_j = np.zeros((longest + 1, most, buckets))
    label_finish_s = np.zeros((longest + 1, most, buckets))
    label_step = np.zeros((longest + 1, most, buckets), np.int32)
    label_setting = np.zeros((longest + 1, most, buckets), np.int32)
    label_bucket = np.zeros((longest + 1, most, buckets), np.int32)
    release_s = np.zeros(longest)
    due_s = np.zeros(longest)
    chosen = 0
    for stage in range(len(stage_first) - 1):
        ops = stage_ops[stage_first[stage] : stage_first[stage + 1]]
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
        chosen += choose_held(
            ops,
            row,
            table_time_s,
            table_cost_j,
            allowed[stage, : stage_settings[stage]],
            release_s,
            due_s,
            switch_time_s,
            hold_s,
            np.inf,
            buckets,
            label_cost_j,
            label_finish_s,
            label_step,
            label_setting,
            label_bucket,
            setting,
        )
    return chosen
