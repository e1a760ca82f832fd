"""A run's log as a file: one line of JSON per event, only ever appended to, so that an iteration costs the same however
many went before. Workers that restart say from which iteration on; what an earlier start wrote of it counts no more.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from train_jobs.file_part import FilePart
from train_jobs.run_log import IterationRecord, MeasuredChoice, RunLog, ScheduleRecord, with_schedule

LOG_FILE = "log.jsonl"
"""Its name in the run's folder."""


class LogFileError(ValueError):
    """A log that cannot be read; the message names file and line."""


class Started(FilePart):
    """The workers start with this iteration: 0, or the one after a checkpoint."""

    event: Literal["started"] = "started"
    from_iteration: int


class Profiled(FilePart):
    """The job has measured itself."""

    event: Literal["profiled"] = "profiled"
    profile: tuple[MeasuredChoice, ...]
    energy_j: float
    blocking_power_w: float


class Scheduled(FilePart):
    """A schedule comes into force."""

    event: Literal["scheduled"] = "scheduled"
    schedule: ScheduleRecord


class Iterated(FilePart):
    """An iteration has ended."""

    event: Literal["iterated"] = "iterated"
    iteration: IterationRecord


class Compared(FilePart):
    """The same training was done once more, unmanaged."""

    event: Literal["compared"] = "compared"
    unmanaged_losses: tuple[float, ...]


Event = Started | Profiled | Scheduled | Iterated | Compared
_EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="event")])


class LogFile:
    """A log that is written. One process writes it at a time."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b")
        self._cut_unfinished_line()

    def append(self, event: Event) -> None:
        """Written when this returns: a process that is killed then loses nothing."""
        self._file.write(event.model_dump_json().encode() + b"\n")
        self._file.flush()

    def sync(self) -> None:
        """On disk when this returns: a machine that fails then loses nothing."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def _cut_unfinished_line(self) -> None:
        """A writer that was killed may have left a line without its end."""
        size = end = self._file.seek(0, os.SEEK_END)
        while end > 0:
            self._file.seek(end - 1)
            if self._file.read(1) == b"\n":
                break
            end -= 1
        if end < size:
            self._file.truncate(end)


def read_log(path: Path) -> RunLog:
    """The whole run so far. A line that is being written is left out. Raises LogFileError."""
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise LogFileError(f"{path}: {error.strerror}") from None
    events = []
    for number, line in enumerate(lines, start=1):
        try:
            events.append(_EVENT.validate_json(line))
        except ValidationError as error:
            raise LogFileError(f"{path}, line {number}: {error}") from None
    return log_of(events)


def log_of(events: Iterable[Event]) -> RunLog:
    """What the events come to, in their order."""
    starts, profiled = 0, Profiled(profile=(), energy_j=0.0, blocking_power_w=0.0)
    schedules: tuple[ScheduleRecord, ...] = ()
    iterations: list[IterationRecord] = []
    unmanaged: tuple[float, ...] = ()
    for event in events:
        match event:
            case Started(from_iteration=first):
                starts += 1
                iterations = [record for record in iterations if record.iteration < first]
                schedules = tuple(schedule for schedule in schedules if schedule.first_iteration < first)
                unmanaged = ()
            case Profiled():
                profiled = event
            case Scheduled(schedule=schedule):
                schedules = with_schedule(schedules, schedule)
            case Iterated(iteration=record):
                iterations.append(record)
            case Compared(unmanaged_losses=losses):
                unmanaged = losses
    return RunLog(
        starts=starts,
        profile=profiled.profile,
        profile_energy_j=profiled.energy_j,
        blocking_power_w=profiled.blocking_power_w,
        schedules=schedules,
        iterations=tuple(iterations),
        unmanaged_losses=unmanaged,
    )
