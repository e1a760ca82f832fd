"""What a GPU whose clock takes time to change can follow, and what a plan asks of it."""

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
class SwitchRules:
    """A new setting is in force ``switch_time_s`` after it was asked for, at the start of an operation, and the old one
    runs meanwhile; each is held for ``hold_s`` of computing; a stage uses at most ``clocks_per_stage`` settings (0: any
    number). Raises ValueError where a number is negative or not finite."""

    switch_time_s: float = 0.0
    min_hold_s: float = 0.0
    clocks_per_stage: int = 0

    def __post_init__(self) -> None:
        for name, value in (("switch_time_s", self.switch_time_s), ("min_hold_s", self.min_hold_s)):
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be finite and not negative, got {value}")
        if self.clocks_per_stage < 0:
            raise ValueError(f"clocks_per_stage must be 0 (any number) or more, got {self.clocks_per_stage}")

    @property
    def hold_s(self) -> float:
        """Nothing is changed again before the last change has settled."""
        return max(self.switch_time_s, self.min_hold_s)

    @property
    def any_clock_anywhere(self) -> bool:
        return self.hold_s == 0 and self.clocks_per_stage == 0


ANY_CLOCK_ANYWHERE = SwitchRules()


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
