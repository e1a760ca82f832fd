"""What runs today: a fleet that never changes, as its operator states it, such as ``8xTP4@1980``."""

import re
from dataclasses import dataclass

from control_plane.hardware.machine_profile import MachineProfile

_SPEC = re.compile(r"([0-9]{1,5}) ?[x×] ?TP([0-9]{1,3})(?:@([0-9]{1,5}))?\Z", re.IGNORECASE)


class StaticFleetError(ValueError):
    """No fleet is meant, or the profile has no such shape or clock; the message says what there is."""


@dataclass(frozen=True, slots=True)
class StaticFleet:
    """``replicas`` replicas of ``tp`` GPUs at a locked clock; None: at whatever the default clock gives."""

    replicas: int
    tp: int
    clock_mhz: int | None = None

    @property
    def gpus(self) -> int:
        return self.replicas * self.tp

    def __str__(self) -> str:
        clock = "" if self.clock_mhz is None else f"@{self.clock_mhz}"
        return f"{self.replicas}xTP{self.tp}{clock}"


def static_fleet(text: str, profile: MachineProfile) -> StaticFleet:
    """Raises StaticFleetError."""
    found = _SPEC.match(text.strip())
    if found is None or int(found[1]) == 0:
        raise StaticFleetError(f"--baseline {text!r}: expected like 8xTP4@1980 (replicas, tensor parallelism, MHz)")
    tp, clock_mhz = int(found[2]), int(found[3]) if found[3] else None
    if tp not in profile.tps:
        known = ", ".join(f"TP{known}" for known in sorted(profile.tps))
        raise StaticFleetError(f"--baseline {text!r}: profile {profile.name} has no TP{tp}; there are {known}")
    clocks = profile.gpu.freqs_mhz
    if clock_mhz is not None and clock_mhz not in clocks:
        near = min(clocks, key=lambda mhz: abs(mhz - clock_mhz))
        raise StaticFleetError(
            f"--baseline {text!r}: profile {profile.name} has no clock of {clock_mhz} MHz; the nearest of "
            f"{clocks[0]} to {clocks[-1]} is {near}"
        )
    return StaticFleet(int(found[1]), tp, clock_mhz)
