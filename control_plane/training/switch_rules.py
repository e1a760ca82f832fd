"""What a GPU whose clock takes time to change can follow."""

import math
from dataclasses import dataclass


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
