"""How often a plan changes settings, and which of a stage's operations have one."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from control_plane.training.dag import Dag
from control_plane.training.profile import Choice

Setting = tuple[int, int]
"""(clock in MHz, power limit in W)."""
NO_SETTING: Setting = (0, 0)
"""Of an operation whose clock is not ours, such as a transfer."""


@dataclass(frozen=True, slots=True)
class Switches:
    """How often the settings of all stages change within an iteration, and the shortest time that one of them is held:
    computing time at that setting, infinite where nothing changes."""

    count: int
    shortest_hold_s: float


def setting_of(choice: Choice) -> Setting:
    return choice.freq_mhz, choice.power_limit_w


def stage_operations(dag: Dag) -> dict[int, list[int]]:
    """Per stage, the operations whose setting is ours, in execution order."""
    by_stage: dict[int, list[int]] = defaultdict(list)
    for op, task in enumerate(dag.tasks):
        if any(setting_of(choice) != NO_SETTING for choice in dag.computation(op).measured):
            by_stage[task.stage].append(op)
    return by_stage


def switches_of(dag: Dag, choices: Sequence[Choice]) -> Switches:
    count, shortest_s = 0, math.inf
    for ops in stage_operations(dag).values():
        changes = [i + 1 for i, (a, b) in enumerate(pairwise(ops)) if setting_of(choices[a]) != setting_of(choices[b])]
        if changes:
            count += len(changes)
            runs = [ops[a:b] for a, b in pairwise([0, *changes, len(ops)])]
            shortest_s = min(shortest_s, *(sum(choices[op].time_s for op in run) for run in runs))
    return Switches(count, shortest_s)
