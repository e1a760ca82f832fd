"""A profile of one GPU: what each (stage, instruction) takes in time and energy at every measured clock.

Reading is text in, values out; every refusal names the row and the column.
"""

import csv
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from types import MappingProxyType

INSTRUCTIONS = ("forward", "backward", "recompute", "backward_input", "backward_weight")
COLUMNS = ("stage", "instruction", "frequency", "time", "energy")
POWER_LIMIT_COLUMN = "power_limit"


class ProfileError(ValueError):
    """A profile that cannot be trusted; the message names the row and the column."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One way to run a computation: the GPU setting, and what it takes.

    A GPU without clock control is steered by `power_limit_w`; its `freq_mhz` is then 0 (the clock floats).
    """

    freq_mhz: int
    time_s: float
    energy_j: float
    power_limit_w: int = 0


ComputationKey = tuple[int, str]


@dataclass(frozen=True, slots=True)
class Profile:
    """Measured choices of every (stage, instruction), highest setting first, duplicates already merged."""

    choices: Mapping[ComputationKey, tuple[Choice, ...]]

    @property
    def stages(self) -> int:
        return 1 + max(stage for stage, _ in self.choices)

    @property
    def instructions(self) -> frozenset[str]:
        return frozenset(instruction for _, instruction in self.choices)

    def scaled(self, time_scale: float = 1.0, energy_scale: float = 1.0, gpus_per_stage: int = 1) -> "Profile":
        """The profile of a whole stage of `gpus_per_stage` equal GPUs: tensor parallelism by replication."""
        for name, factor in (("time scale", time_scale), ("energy scale", energy_scale)):
            if not (math.isfinite(factor) and factor > 0):
                raise ProfileError(f"{name} must be positive and finite, got {factor}")
        if gpus_per_stage < 1:
            raise ProfileError(f"gpus per stage must be at least 1, got {gpus_per_stage}")
        energy_factor = energy_scale * gpus_per_stage
        return Profile(
            MappingProxyType(
                {
                    key: tuple(
                        Choice(c.freq_mhz, c.time_s * time_scale, c.energy_j * energy_factor, c.power_limit_w)
                        for c in choices
                    )
                    for key, choices in self.choices.items()
                }
            )
        )

    def slowed(self, stage_ratios: tuple[float, ...]) -> "Profile":
        """Stages that take so many times as long, at the same power."""
        if len(stage_ratios) != self.stages or not all(math.isfinite(r) and r > 0 for r in stage_ratios):
            raise ProfileError(f"expected {self.stages} positive ratios, one per stage, got {stage_ratios}")
        return Profile(
            MappingProxyType(
                {
                    (stage, name): tuple(
                        Choice(c.freq_mhz, c.time_s * ratio, c.energy_j * ratio, c.power_limit_w) for c in choices
                    )
                    for (stage, name), choices in self.choices.items()
                    for ratio in (stage_ratios[stage],)
                }
            )
        )

    def resampled(self, stages: int) -> "Profile":
        """Another pipeline depth: stage i takes the profile's stage round(i·(s−1)/(S−1))."""
        if stages < 1:
            raise ProfileError(f"stages must be at least 1, got {stages}")
        last = self.stages - 1
        source = [round(i * last / (stages - 1)) if stages > 1 else 0 for i in range(stages)]
        return Profile(
            MappingProxyType(
                {
                    (stage, instruction): self.choices[(source[stage], instruction)]
                    for stage in range(stages)
                    for instruction in sorted(self.instructions)
                }
            )
        )


def profile_of(choices: Mapping[ComputationKey, Iterable[Choice]]) -> Profile:
    """A profile from values, checked as `read_profile` does; repeated settings merge to their median."""
    merged: dict[ComputationKey, tuple[Choice, ...]] = {}
    for (stage, instruction), measured in choices.items():
        listed = tuple(measured)
        if not listed:
            raise ProfileError(f"stage {stage} {instruction} has no choice")
        for choice in listed:
            _check_choice(choice, f"stage {stage} {instruction}")
        merged[(stage, instruction)] = _merge_repeats(listed)
    _check_coverage(merged)
    return Profile(MappingProxyType(merged))


def read_profile(text: str) -> Profile:
    """Read CSV text with the columns stage, instruction, frequency [MHz], time [s], energy [J per GPU].

    A `power_limit` column [W] may stand in place of `frequency`. Of repeated rows the median counts.
    """
    rows = csv.reader(text.lstrip("\ufeff").splitlines())
    header = [name.strip().lower() for name in next(rows, [])]
    if not any(header):
        raise ProfileError("row 1: the profile is empty, expected the header " + ",".join(COLUMNS))
    setting = POWER_LIMIT_COLUMN if POWER_LIMIT_COLUMN in header and "frequency" not in header else "frequency"
    wanted = tuple(setting if name == "frequency" else name for name in COLUMNS)
    for name in wanted:
        if header.count(name) != 1:
            found = "is missing" if name not in header else "appears twice"
            raise ProfileError(f"row 1: column {name!r} {found}; the header is {','.join(header)}")
    place = {name: header.index(name) for name in wanted}
    measured: dict[ComputationKey, list[Choice]] = {}
    for number, row in enumerate(rows, start=2):
        if not any(field.strip() for field in row):
            continue
        if len(row) != len(header):
            raise ProfileError(f"row {number}: {len(row)} fields, the header has {len(header)}")
        fields = {name: row[index].strip() for name, index in place.items()}
        key = (_whole(fields["stage"], number, "stage"), fields["instruction"].lower())
        if key[1] not in INSTRUCTIONS:
            raise ProfileError(
                f"row {number}, column instruction: unknown instruction {key[1]!r}, "
                f"expected one of {', '.join(INSTRUCTIONS)}"
            )
        level = _whole(fields[setting], number, setting)
        if level < 1:
            raise ProfileError(f"row {number}, column {setting}: must be positive, got {level}")
        choice = Choice(
            freq_mhz=level if setting == "frequency" else 0,
            time_s=_measure(fields["time"], number, "time"),
            energy_j=_measure(fields["energy"], number, "energy"),
            power_limit_w=0 if setting == "frequency" else level,
        )
        if choice.time_s == 0:
            raise ProfileError(f"row {number}, column time: must be positive, got 0")
        measured.setdefault(key, []).append(choice)
    if not measured:
        raise ProfileError("row 2: the profile has a header and no rows")
    merged = {key: _merge_repeats(tuple(choices)) for key, choices in measured.items()}
    _check_coverage(merged)
    return Profile(MappingProxyType(merged))


def _whole(field: str, row: int, column: str) -> int:
    try:
        number = float(field)
    except ValueError:
        raise ProfileError(f"row {row}, column {column}: not a number: {field!r}") from None
    if not math.isfinite(number) or number != int(number) or number < 0:
        raise ProfileError(f"row {row}, column {column}: expected a whole number from 0 up, got {field!r}")
    return int(number)


def _measure(field: str, row: int, column: str) -> float:
    try:
        number = float(field)
    except ValueError:
        raise ProfileError(f"row {row}, column {column}: not a number: {field!r}") from None
    if not math.isfinite(number):
        raise ProfileError(f"row {row}, column {column}: must be finite, got {field!r}")
    if number < 0:
        raise ProfileError(f"row {row}, column {column}: must not be negative, got {field!r}")
    return number


def _check_choice(choice: Choice, where: str) -> None:
    for name, number in (("time_s", choice.time_s), ("energy_j", choice.energy_j)):
        if not math.isfinite(number) or number < 0:
            raise ProfileError(f"{where}: {name} must be finite and not negative, got {number}")


def _merge_repeats(choices: tuple[Choice, ...]) -> tuple[Choice, ...]:
    by_setting: dict[tuple[int, int], list[Choice]] = {}
    for choice in choices:
        by_setting.setdefault((choice.freq_mhz, choice.power_limit_w), []).append(choice)
    return tuple(
        Choice(
            freq_mhz,
            median(c.time_s for c in repeats),
            median(c.energy_j for c in repeats),
            power_limit_w,
        )
        for (freq_mhz, power_limit_w), repeats in sorted(by_setting.items(), reverse=True)
    )


def _check_coverage(choices: Mapping[ComputationKey, tuple[Choice, ...]]) -> None:
    stages = {stage for stage, _ in choices}
    instructions = {instruction for _, instruction in choices}
    for stage in range(max(stages) + 1):
        if stage not in stages:
            raise ProfileError(f"column stage: stage {stage} is missing, the highest is {max(stages)}")
        for instruction in sorted(instructions):
            if (stage, instruction) not in choices:
                raise ProfileError(f"column instruction: stage {stage} has no {instruction!r}, other stages have it")
