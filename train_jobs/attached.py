"""A user's own torch pipeline under an energy plan: what ``wattray.train.attach`` returns.

Two iterations at full clock teach the order of computations and check it, at most 28 more run at a few clocks; then
the rank's profile is handed over and schedules are run as they come. What goes wrong after the start brings the clock
to full and is logged; training goes on (``strict`` raises).
"""

import atexit
import logging
import math
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from types import TracebackType
from typing import Any, Protocol, Self

from control_plane.training.schedules import Instruction
from train_jobs.clock_profiler import ClockProfile, ClockProfiler, Waiting
from train_jobs.correspondence import Correspondence
from train_jobs.lead import Offered
from train_jobs.meter import MeasuredStep, Meter, Reading
from train_jobs.order import RankOrder, SessionError
from train_jobs.scheduled_clock import ClockControl, ScheduledClock
from train_jobs.session import Lease, RankProfile, TrainingSession

log = logging.getLogger(__name__)

LEARN, CHECK, PROFILE, PLANNED, OFF = "learn", "check", "profile", "planned", "off"
KEPT_ITERATIONS = 10_000


class Conductor(Protocol):
    """When iterations begin, and what hears computations: simulated or real time."""

    def start(self) -> tuple[Reading, Reading]:
        """An iteration begins now. Returns the GPU when everybody had ended the one before, and now."""
        ...

    def begins(self, step: Instruction) -> None: ...
    def ended(self, step: Instruction) -> None: ...


@dataclass(frozen=True, slots=True)
class IterationSeen:
    """One iteration of this rank."""

    phase: str
    plan_id: str
    """Of the schedule in force; empty at full clock and while profiling."""
    time_s: float
    energy_j: float


@dataclass(slots=True)
class RankParts:
    """What a rank is made of; see ``attach``."""

    rank: int
    stage: int
    chunks: int
    meter: Meter
    control: ClockControl
    lease: Lease
    supported_mhz: tuple[int, ...]
    acts: bool
    """Clocks may be moved, on every rank."""
    waiting_w: float | None = None
    """What the GPU draws at least while it waits for others, where that was measured on its own; else waiting is what
    computations leave of an iteration's energy."""
    limit_w: float = math.inf
    """The GPU's power limit."""


class AttachedTraining:
    """One rank's. A context manager, closed at the latest when the process ends in any orderly way; after a kill the
    lease lapses."""

    def __init__(self, parts: RankParts, correspondence: Correspondence, strict: bool) -> None:
        self._parts, self._correspondence, self._strict = parts, correspondence, strict
        self.conductor: Conductor | None = None
        self._full_mhz = parts.supported_mhz[-1]
        clocks = parts.supported_mhz if parts.acts else parts.supported_mhz[-1:]
        self._profiler = ClockProfiler(clocks, 2 if parts.acts else 10)
        self._phase, self._profiled = LEARN, 0
        self._learnt: list[Instruction] = []
        self._session: TrainingSession | None = None
        self._applied = Offered(0, None)
        self._inside = False
        self._count = 0
        self._began: Reading | None = None
        self._steps: tuple[MeasuredStep, ...] = ()
        self._full_clock_s: list[float] = []
        self._waiting_w: list[float] = []
        self._asked_mhz: int | None = None
        """The clock of the profiling iteration that runs."""
        self._whole: dict[int, list[tuple[float, float]]] = {}
        self._seen: deque[IterationSeen] = deque(maxlen=KEPT_ITERATIONS)
        self._ran = LEARN
        """The phase that the iteration belonged to which has ended last."""
        self._closers: list[Any] = []
        self.profile: ClockProfile | None = None
        self.problem: Exception | None = None
        atexit.register(self.close)

    # what a training loop says

    @contextmanager
    def iteration(self) -> Iterator[None]:
        """Everything in it is one training iteration; what a schedule runs outside, as for evaluation, is not
        looked at."""
        self._guarded(self._start)
        self._inside = self._phase != OFF
        try:
            yield
        finally:
            self._inside = False
        self._guarded(self._finish)

    def close(self) -> None:
        """Clocks back at full, leases returned. Closing twice is closing once."""
        atexit.unregister(self.close)
        self._phase, self._inside = OFF, False
        closers, self._closers = self._closers, []
        for act in closers:
            try:
                act()
            except Exception:
                log.exception("wattray: something was not closed; leases lapse by themselves")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # what it tells

    @property
    def schedule(self) -> Any:
        """The clock schedule in force; None at full clock."""
        return self._applied.schedule if self._phase == PLANNED else None

    @property
    def iterations(self) -> tuple[IterationSeen, ...]:
        """Of this rank, the last 10,000."""
        return tuple(self._seen)

    @property
    def steps(self) -> tuple[MeasuredStep, ...]:
        """Computations of the last iteration; on a real GPU those that were over when it was left."""
        return self._steps

    def summary(self) -> dict[str, Any]:
        """How far it is, what profiling cost and found, what the plan promised and what came of it; plain values."""
        profile, schedule = self.profile, self.schedule
        told: dict[str, Any] = {"phase": self._phase, "iterations": len(self._seen), "acts": self._parts.acts}
        if self.problem or self._correspondence.problem:
            told["problem"] = str(self.problem or self._correspondence.problem)
        if profile is not None:
            mine = [one for one in self._seen if one.phase != PLANNED]
            told["profiling"] = {
                "iterations": len(mine),
                "time_s": sum(one.time_s for one in mine),
                "energy_j": sum(one.energy_j for one in mine),
                "clocks_mhz": list(profile.measured_mhz),
                "interpolation_error_ratio": profile.interpolation_error_ratio,
                "noise_ratio": profile.noise_ratio,
                "constant": list(profile.constant),
            }
        if schedule is not None:
            under = [one for one in self._seen if one.plan_id == schedule.plan_id][1:]
            told["plan"] = {
                "id": schedule.plan_id,
                "planned_time_s": schedule.planned_time_s,
                "planned_energy_j": schedule.planned_energy_j,
                "all_max_time_s": schedule.all_max_time_s,
                "all_max_energy_j": schedule.all_max_energy_j,
                "straggler_degree": schedule.degree,
            }
            if under:
                told["plan"]["measured_time_s"] = median(one.time_s for one in under)
                told["plan"]["measured_rank_energy_j"] = median(one.energy_j for one in under)
        return told

    # what the stages say

    def begins(self, step: Instruction) -> None:
        """A computation begins (see ``stage_hooks``)."""
        if self._inside and self.conductor is not None:
            try:
                self.conductor.begins(step)
            except (SessionError, ValueError) as error:
                self._let_go(error)

    def ended(self, step: Instruction) -> None:
        """It has ended."""
        if self._inside and self.conductor is not None:
            try:
                self.conductor.ended(step)
            except (SessionError, ValueError) as error:
                self._let_go(error)

    def begin(self, step: Instruction, at: Reading) -> None:
        """The conductor's word, with the GPU at that moment."""
        if self._session is None:
            self._learnt.append(step)
        else:
            self._session.begin(step, at)

    def end(self, step: Instruction, at: Reading) -> None:
        if self._session is not None:
            self._session.end(step, at)

    def when_closed(self, act: Any) -> None:
        """Called at the end, the last first."""
        self._closers.insert(0, act)

    # phases

    def _guarded(self, act: Any) -> None:
        if self._phase == OFF:
            return
        try:
            act()
        except (SessionError, ValueError) as error:
            self._let_go(error)

    def _let_go(self, error: Exception) -> None:
        """Full clock from now on; raises the error where the user asked for that."""
        self.problem, self._phase, self._inside = error, OFF, False
        log.error("wattray lets go of this rank, full clock: %s", error)
        if self._session is not None:
            self._session.clock.full(self._parts.meter.now().at_ns)
        if self._strict:
            raise error

    def _start(self) -> None:
        assert self.conductor is not None
        ended, at = self.conductor.start()
        self._account(ended)
        self._began = at
        session = self._session
        if session is None:
            return
        if self._phase == PROFILE:
            asked_mhz = self._asked_mhz = self._profiler.clock_of(self._profiled)
            if asked_mhz is not None:
                if self._parts.acts:
                    session.clock.hold(asked_mhz, at.at_ns)
                return
            self._hand_over(at)
        if self._phase == PLANNED:
            offered = self._correspondence.offered
            if offered.number != self._applied.number:
                self._applied = offered
                if offered.schedule is None or not self._parts.acts:
                    session.clock.hold(self._full_mhz, at.at_ns)
                else:
                    session.apply(offered.schedule, at)

    def _account(self, at: Reading) -> None:
        """The iteration before has ended where this one begins."""
        began = self._began
        if began is None:
            return
        time_s, schedule = (at.at_ns - began.at_ns) * 1e-9, self._applied.schedule
        energy_j = max(0.0, at.energy_j - began.energy_j)
        plan_id = schedule.plan_id if schedule is not None and self._ran == PLANNED and self._parts.acts else ""
        self._seen.append(IterationSeen(self._ran, plan_id, time_s, energy_j))
        computing_s = sum(step.time_s for step in self._steps)
        computing_j = sum(step.energy_j for step in self._steps)
        if time_s > computing_s and self._steps:
            self._waiting_w.append((energy_j - computing_j) / (time_s - computing_s))
        if self._ran == PROFILE and self._asked_mhz is not None:
            self._whole.setdefault(self._asked_mhz, []).append((time_s, energy_j))
        full = {step.freq_mhz for step in self._steps} == {self._full_mhz}
        if full and self._ran in (CHECK, PROFILE):
            self._full_clock_s.append(time_s)
        if self._ran == PLANNED and self._steps:
            self._correspondence.hand_measured(self._count, self._steps, time_s)

    def _finish(self) -> None:
        self._count += 1
        self._ran = self._phase
        if self._phase == LEARN:
            self._open_session()
            return
        assert self._session is not None
        self._steps = self._session.end_iteration()
        if self._phase == CHECK:
            self._phase = PROFILE
            return
        if self._phase == PROFILE:
            self._profiler.add(self._steps)
            self._profiled += 1

    def _open_session(self) -> None:
        parts = self._parts
        if not self._learnt:
            raise SessionError(
                f"rank {parts.rank} ran no computation in its first iteration; is the schedule this one?"
            )
        clock = ScheduledClock(parts.control, parts.lease, self._learnt, self._full_mhz)
        self._session = TrainingSession(RankOrder(self._learnt, parts.stage), parts.meter, clock, parts.lease)
        self.when_closed(self._session.close)
        self._phase = CHECK

    def _hand_over(self, at: Reading) -> None:
        assert self._session is not None
        self._session.clock.hold(self._full_mhz, at.at_ns)
        measured_w = self._parts.waiting_w
        counts = Counter(step.name for step in self._session.order.program)
        limit_w = self._parts.limit_w
        waiting = None if measured_w is None else Waiting(measured_w, limit_w, self._whole, counts)
        self.profile = self._profiler.profile(self._parts.chunks, waiting)
        waiting_w = self.profile.waiting_w
        if waiting_w is None:
            waiting_w = max(0.0, median(self._waiting_w)) if self._waiting_w else 0.0
        mine = RankProfile(self._parts.stage, self._session.order.program, dict(self.profile.choices), waiting_w)
        full_clock_s = median(self._full_clock_s) if self._full_clock_s else 0.0
        self._correspondence.hand_profile(mine, self.profile.noise_ratio, full_clock_s)
        self._phase = PLANNED


class NeverLease:
    """Where clocks are only recommended."""

    def may_lower(self) -> bool:
        return False

    def when_lost(self, act: Any) -> None:
        """It was never there."""

    def end(self) -> None:
        """Nothing ends."""
