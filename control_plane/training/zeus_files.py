"""Files of Zeus's pipeline frequency optimizer: its profiles are read, its schedule file is written.

Formats: `zeus/optimizer/pipeline_frequency/common.py` (OfflineProfilingResult, ProfilingResult, FrequencySchedule,
RankInfo) and `server/scheduler.py` (PointSolution). Nothing is ever evaluated.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from control_plane.text_edges import parse_json
from control_plane.training.job_spec import ScheduledStep
from control_plane.training.profile import (
    INSTRUCTIONS,
    MOST_LEVEL,
    MOST_MEASURE,
    Choice,
    ComputationKey,
    Profile,
    StageProfileError,
    profile_of,
)

Measure = Annotated[float, Field(gt=0, le=MOST_MEASURE, allow_inf_nan=False)]
Energy = Annotated[float, Field(ge=0, le=MOST_MEASURE, allow_inf_nan=False)]
Level = Annotated[int, Field(ge=1, le=MOST_LEVEL)]
Rank = Annotated[int, Field(ge=0, le=MOST_LEVEL)]


class _Part(BaseModel):
    """Fields that Zeus may add are no fault."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class OfflineResult(_Part):
    """One rank's averages: clock in MHz → seconds, and joules of its GPU."""

    pp_rank: Rank
    forward_time: dict[Level, Measure]
    forward_energy: dict[Level, Energy]
    backward_time: dict[Level, Measure]
    backward_energy: dict[Level, Energy]


class ProfilingResult(_Part):
    """One rank's measurements under one schedule: instruction → per iteration, in the order of execution."""

    rank: Rank
    time_breakdown: dict[str, list[list[Measure]]]
    energy_breakdown: dict[str, list[list[Energy]]]


class RankSchedule(_Part):
    """The clocks that a rank ran meanwhile."""

    rank: Rank
    frequencies: list[tuple[str, Level]]


class RankPlace(_Part):
    """Which pipeline stage a rank is."""

    rank: Rank
    pp_rank: Rank


Content = TypeVar("Content")


def read_offline(text: str, source: str) -> Profile:
    """A JSON list of OfflineProfilingResult. Ranks of one stage merge to their median, as rows of a CSV do. Raises
    StageProfileError, naming rank and field."""
    results = _parsed(TypeAdapter(list[OfflineResult]), text, source)
    choices: dict[ComputationKey, list[Choice]] = defaultdict(list)
    for place, result in enumerate(results):
        for name, times_s, energies_j in (
            ("forward", result.forward_time, result.forward_energy),
            ("backward", result.backward_time, result.backward_energy),
        ):
            if times_s.keys() != energies_j.keys():
                odd = min(times_s.keys() ^ energies_j.keys())
                raise StageProfileError(f"{source}: {place}: {name} has only a time or only an energy at {odd} MHz")
            choices[result.pp_rank, name] += [Choice(mhz, times_s[mhz], energies_j[mhz]) for mhz in times_s]
    return _checked(choices, source)


def read_dumps(dumps: Iterable[tuple[str, str, str, str]], ranks_text: str, ranks_source: str) -> Profile:
    """What the server dumped: for every N the texts and the names of N.prof.json and N.sched.json, and ranks.json.
    Every computation counts as measured at the clock that its schedule names. Raises StageProfileError."""
    places = _parsed(TypeAdapter(list[RankPlace]), ranks_text, ranks_source)
    stage_of = {place.rank: place.pp_rank for place in places}
    times: dict[tuple[int, str, int], list[tuple[float, float]]] = defaultdict(list)
    for prof_text, prof_source, schedule_text, schedule_source in dumps:
        schedules = {s.rank: s for s in _parsed(TypeAdapter(list[RankSchedule]), schedule_text, schedule_source)}
        for result in _parsed(TypeAdapter(list[ProfilingResult]), prof_text, prof_source):
            if result.rank not in schedules or result.rank not in stage_of:
                missing = ranks_source if result.rank not in stage_of else schedule_source
                raise StageProfileError(f"{prof_source}: rank {result.rank} is not in {missing}")
            for name, mhz, time_s, energy_j in _computations(result, schedules[result.rank], prof_source):
                times[stage_of[result.rank], name, mhz].append((time_s, energy_j))
    choices: dict[ComputationKey, list[Choice]] = defaultdict(list)
    for (stage, name, mhz), measured in times.items():
        count = len(measured)
        mean_s, mean_j = (math.fsum(values) / count for values in zip(*measured, strict=True))
        choices[stage, name].append(Choice(mhz, mean_s, mean_j))
    return _checked(choices, ranks_source)


def point_solution(ranks: Sequence[Sequence[ScheduledStep]]) -> str:
    """The text of a schedule file for PointSolution and PointSolution3D: per stage a list of (instruction, MHz). Raises
    ValueError where a stage is steered by power limits, which that file cannot say."""
    lines = []
    for stage, steps in enumerate(ranks):
        limits_w = [step.power_limit_w for step in steps if step.freq_mhz <= 0]
        if limits_w:
            raise ValueError(f"stage {stage} has a power limit, {limits_w[0]} W: Zeus's schedule file holds clocks")
        lines.append("  [" + ", ".join(f'("{step.instruction}", {step.freq_mhz})' for step in steps) + "],\n")
    return "[\n" + "".join(lines) + "]\n"


def _computations(
    result: ProfilingResult, schedule: RankSchedule, source: str
) -> Iterable[tuple[str, int, float, float]]:
    """Instruction, clock, seconds and joules of every computation that was measured."""
    clocks: dict[str, list[int]] = defaultdict(list)
    for name, mhz in schedule.frequencies:
        clocks[name.lower()].append(mhz)
    measured_j: Mapping[str, list[list[float]]] = {n.lower(): found for n, found in result.energy_breakdown.items()}
    for name, iterations in ((n.lower(), found) for n, found in result.time_breakdown.items()):
        if name not in INSTRUCTIONS:
            continue
        energies = measured_j.get(name, [])
        for number, times_s in enumerate(iterations):
            energies_j = energies[number] if number < len(energies) else []
            if not len(times_s) == len(energies_j) == len(clocks[name]):
                raise StageProfileError(
                    f"{source}: rank {result.rank}, {name}, iteration {number}: {len(times_s)} times, "
                    f"{len(energies_j)} energies, {len(clocks[name])} clocks in the schedule"
                )
            for mhz, time_s, energy_j in zip(clocks[name], times_s, energies_j, strict=True):
                yield name, mhz, time_s, energy_j


def _parsed(kind: TypeAdapter[Content], text: str, source: str) -> Content:
    content = parse_json(text, source, StageProfileError)
    try:
        return kind.validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise StageProfileError(f"{source}: {where}: {first['msg']}, got {first['input']!r:.60}") from None


def _checked(choices: Mapping[ComputationKey, list[Choice]], source: str) -> Profile:
    measured = {key: found for key, found in choices.items() if found}
    if not measured:
        raise StageProfileError(f"{source}: no forward or backward was measured")
    try:
        return profile_of(measured)
    except StageProfileError as error:
        raise StageProfileError(f"{source}: {error}") from None
