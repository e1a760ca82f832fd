"""What a rank of a pipeline holds while it trains: a meter, a clock, an order and, on one rank, a line to the planner.

Free of torch and of Ray: any loop that can say when its computations begin and end can hold one. No call waits for the
network. Wrong use raises SessionError; a planner or agent that is away raises nothing.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from statistics import fmean
from types import TracebackType
from typing import Protocol, Self

from actors.training_messages import ClockSchedule, JobRegistration
from control_plane.training.job_record import PERSEUS, Policy
from control_plane.training.profile import Choice
from control_plane.training.schedules import Instruction
from control_plane.training.straggler import MeasuredComputation
from train_jobs.meter import MeasuredStep, Meter, Reading
from train_jobs.order import RankOrder, SessionError, whole_order
from train_jobs.scheduled_clock import ScheduledClock


class Lease(Protocol):
    """The right to lower the clock, renewed by itself."""

    def may_lower(self) -> bool: ...
    def when_lost(self, act: Callable[[], None]) -> None: ...
    def end(self) -> None: ...


class Link(Protocol):
    """The line to the planner."""

    def schedule_for(self, degree: float, wait_s: float = 0.0) -> ClockSchedule | None: ...
    def ask_again(self, wait_s: float) -> ClockSchedule | None: ...
    def report(self, ratios: tuple[float, ...]) -> None: ...
    def close(self) -> None: ...


@dataclass(slots=True)
class TrainingSession:
    """One rank's. ``link`` is there on the rank that talks to the planner; how its schedule reaches the others is the
    loop's business. A context manager: at its end, however it comes, the clock is full again."""

    order: RankOrder
    meter: Meter
    clock: ScheduledClock
    lease: Lease
    link: Link | None = None
    _closed: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.lease.when_lost(lambda: self.clock.full(self.meter.now().at_ns))

    def apply(self, schedule: ClockSchedule, at: Reading | None = None) -> None:
        """Run these clocks from now on. Raises SessionError where the schedule has none for this rank or is for
        another program."""
        if self.order.rank >= len(schedule.ranks):
            raise SessionError(
                f"the schedule of job {schedule.job} has clocks for {len(schedule.ranks)} ranks, none for rank "
                f"{self.order.rank}"
            )
        self.clock.apply(schedule.ranks[self.order.rank], (at or self.meter.now()).at_ns)

    def begin(self, step: Instruction, at: Reading | None = None) -> None:
        """A computation begins (now, or where the caller knows better ``at``). Raises SessionError where another one is
        due."""
        moment = at or self.meter.now()
        self.clock.want(self.order.begin(step), moment.at_ns)
        self.meter.begin(moment)

    def end(self, step: Instruction, at: Reading | None = None) -> MeasuredStep:
        """It has ended; the clock of the next one is asked for."""
        moment = at or self.meter.now()
        following = self.order.end(step)
        measured = self.meter.end(step, moment)
        self.clock.want(following, moment.at_ns)
        return measured

    def end_iteration(self) -> tuple[MeasuredStep, ...]:
        """What this rank ran. Raises SessionError where computations of its program are missing."""
        self.order.end_iteration()
        return self.meter.take()

    def close(self) -> None:
        """Full clock, no more renewals and reports. Closing twice is closing once."""
        if self._closed:
            return
        self._closed = True
        if self.link is not None:
            self.link.close()
        may_move = self.lease.may_lower()
        self.lease.end()
        if may_move:
            self.clock.full(self.meter.now().at_ns)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class RankProfile:
    """What one rank measured of itself: its program, and per instruction what it takes at every clock."""

    rank: int
    program: tuple[Instruction, ...]
    choices: Mapping[str, tuple[Choice, ...]]
    blocking_power_w: float


def registration_of(
    job: str,
    ranks: int,
    profiles: Iterable[RankProfile],
    switch_time_s: float = 0.0,
    schedule: str = "user",
    policy: Policy = PERSEUS,
) -> JobRegistration:
    """The whole pipeline's, from every rank's own. Raises SessionError where a rank is missing, stands twice, or runs
    what it has not measured."""
    by_rank: dict[int, RankProfile] = {}
    for profile in profiles:
        if profile.rank in by_rank:
            raise SessionError(f"rank {profile.rank} gives two profiles")
        unmeasured = {step.name for step in profile.program} - set(profile.choices)
        if unmeasured:
            raise SessionError(f"rank {profile.rank} runs {sorted(unmeasured)[0]}, which it has not measured")
        by_rank[profile.rank] = profile
    order = whole_order({rank: profile.program for rank, profile in by_rank.items()}, ranks, schedule)
    choices = {(rank, name): found for rank, profile in by_rank.items() for name, found in profile.choices.items()}
    waits_w = fmean(profile.blocking_power_w for profile in by_rank.values())
    return JobRegistration(job, choices, order.order, waits_w, switch_time_s, schedule, policy)


def comparable(rank: int, steps: Iterable[MeasuredStep]) -> list[MeasuredComputation]:
    """What can be compared with a profile: while a clock settles, a computation has none to compare with."""
    return [MeasuredComputation(rank, m.step.name, m.freq_mhz, m.time_s) for m in steps if m.settled]
