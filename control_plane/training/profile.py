"""A profile of one GPU: what each (stage, instruction) takes in time and energy at every measured clock.

Reading is text in, values out; every refusal names the row and the column.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from types import MappingProxyType

from control_plane.text_edges import csv_header, csv_rows
from control_plane.text_edges import number as text_number

INSTRUCTIONS = ("forward", "backward", "recompute", "backward_input", "backward_weight")
COLUMNS = ("stage", "instruction", "frequency", "time", "energy")
POWER_LIMIT_COLUMN = "power_limit"
UNITS = {
    "time": {"time": 1.0, "time_s": 1.0, "time_ms": 1e-3, "time_us": 1e-6},
    "energy": {"energy": 1.0, "energy_j": 1.0, "energy_mj": 1e-3, "energy_kj": 1e3},
    "frequency": {"frequency": 1.0, "frequency_mhz": 1.0},
    "power_limit": {"power_limit": 1.0, "power_limit_w": 1.0},
}
"""Names that a column may have, and what a number in it is in seconds, joules, MHz or watts. ``energy_mj`` is in
millijoules, as NVML counts."""
MOST_LEVEL = 100_000
"""No pipeline has as many stages, no GPU as many MHz or watts: a number above it has another unit."""
MOST_MEASURE = 1e9
"""Seconds or joules of one computation."""


class StageProfileError(ValueError):
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
                raise StageProfileError(f"{name} must be positive and finite, got {factor}")
        if gpus_per_stage < 1:
            raise StageProfileError(f"gpus per stage must be at least 1, got {gpus_per_stage}")
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
            raise StageProfileError(f"expected {self.stages} positive ratios, one per stage, got {stage_ratios}")
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
            raise StageProfileError(f"stages must be at least 1, got {stages}")
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
            raise StageProfileError(f"stage {stage} {instruction} has no choice")
        for choice in listed:
            _check_choice(choice, f"stage {stage} {instruction}")
        merged[(stage, instruction)] = _merge_repeats(listed)
    _check_coverage(merged)
    return Profile(MappingProxyType(merged))


def read_profile(text: str) -> Profile:
    """Read CSV text with the columns stage, instruction, frequency [MHz], time [s], energy [J per GPU]; a name may
    carry its unit, as time_ms does (``UNITS``).

    A `power_limit` column [W] may stand in place of `frequency`. Of repeated rows the median counts.
    """
    lines = text.lstrip("\ufeff").splitlines(keepends=True)
    header = [name.lower() for name in csv_header(lines[:1], "row 1", StageProfileError)]
    header, factors = _without_units(header)
    setting = POWER_LIMIT_COLUMN if POWER_LIMIT_COLUMN in header and "frequency" not in header else "frequency"
    wanted = tuple(setting if name == "frequency" else name for name in COLUMNS)
    if lines:
        lines[0] = ",".join(header) + "\n" if header else ""
    measured: dict[ComputationKey, list[Choice]] = {}
    for number, cells in csv_rows(lines, wanted, "row 1", StageProfileError, "row {line}"):
        if not any(cell.strip() for cell in cells):
            continue
        fields = {name: cell.strip() for name, cell in zip(wanted, cells, strict=True)}
        key = (_whole(fields["stage"], number, "stage"), fields["instruction"].lower())
        if key[1] not in INSTRUCTIONS:
            raise StageProfileError(
                f"row {number}, column instruction: unknown instruction {key[1]!r}, "
                f"expected one of {', '.join(INSTRUCTIONS)}"
            )
        level = _whole(fields[setting], number, setting)
        if level < 1:
            raise StageProfileError(f"row {number}, column {setting}: must be positive, got {level}")
        choice = Choice(
            freq_mhz=level if setting == "frequency" else 0,
            time_s=_measure(fields["time"], number, "time") * factors["time"],
            energy_j=_measure(fields["energy"], number, "energy") * factors["energy"],
            power_limit_w=0 if setting == "frequency" else level,
        )
        if choice.time_s == 0:
            raise StageProfileError(f"row {number}, column time: must be positive, got 0")
        measured.setdefault(key, []).append(choice)
    if not measured:
        raise StageProfileError("row 2: the profile has a header and no rows")
    merged = {key: _merge_repeats(tuple(choices)) for key, choices in measured.items()}
    _check_coverage(merged)
    return Profile(MappingProxyType(merged))


def _without_units(header: list[str]) -> tuple[list[str], dict[str, float]]:
    """The columns under their plain names, and the factor of each."""
    plain = {written: name for name, units in UNITS.items() for written in units}
    factors = {name: units[written] for name, units in UNITS.items() for written in header if written in units}
    return [plain.get(written, written) for written in header], {"time": 1.0, "energy": 1.0, **factors}


def _whole(field: str, row: int, column: str) -> int:
    number = _finite(field, row, column)
    if number != int(number) or not 0 <= number <= MOST_LEVEL:
        raise StageProfileError(
            f"row {row}, column {column}: expected a whole number from 0 up to {MOST_LEVEL}, got {field!r}"
        )
    return int(number)


def _measure(field: str, row: int, column: str) -> float:
    number = _finite(field, row, column)
    if number < 0:
        raise StageProfileError(f"row {row}, column {column}: must not be negative, got {field!r}")
    if number > MOST_MEASURE:
        raise StageProfileError(f"row {row}, column {column}: must be at most {MOST_MEASURE:g}, got {field!r}")
    return number


def _finite(field: str, row: int, column: str) -> float:
    number = text_number(field)
    if number is None:
        fault = "must be finite, got" if field.lower().strip(" +-") in ("nan", "inf", "infinity") else "not a number:"
        raise StageProfileError(f"row {row}, column {column}: {fault} {field!r}")
    return number


def _check_choice(choice: Choice, where: str) -> None:
    for name, number in (("time_s", choice.time_s), ("energy_j", choice.energy_j)):
        if not math.isfinite(number) or number < 0:
            raise StageProfileError(f"{where}: {name} must be finite and not negative, got {number}")


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
            raise StageProfileError(f"column stage: stage {stage} is missing, the highest is {max(stages)}")
        for instruction in sorted(instructions):
            if (stage, instruction) not in choices:
                raise StageProfileError(
                    f"column instruction: stage {stage} has no {instruction!r}, other stages have it"
                )
