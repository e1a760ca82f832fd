"""What ranks of a user's job tell each other and the planner while they train, in a thread of each rank's own.

Every rank leaves its profile, then after each iteration what it measured. The rank that leads registers the job from
all of them, has a link to the planner for every pipeline, and leaves the schedules for the others to find. Nothing here
is ever waited for by the training step.
"""

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from actors.training_messages import ClockSchedule, JobRegistration
from control_plane.training.job_record import PERSEUS, Policy
from control_plane.training.job_spec import PipelineId
from control_plane.training.plan_guard import CORRECTED_ABOVE, ENOUGH, KindRatios, PlanGuard, corrected
from control_plane.training.profile import Choice, ComputationKey
from train_jobs.board import Board
from train_jobs.meter import MeasuredStep
from train_jobs.order import SessionError
from train_jobs.planes import Call
from train_jobs.planner_link import PlannerLink
from train_jobs.session import RankProfile, registration_of

log = logging.getLogger(__name__)

LOOK_EVERY_S = 0.1
AT_MOST_EVERY_S = 0.05
"""Of short iterations only some are told of: threads that talk take the interpreter from the training step."""
PATIENCE_S = 60.0
"""For the profiles of all ranks, after the leading one's."""
REFINED_EVERY = 40
"""Iterations between corrections of the profile."""


@dataclass(frozen=True, slots=True)
class JobShape:
    """Who is who: ``pipelines`` are the global ranks of every pipeline, stage by stage."""

    job: str
    rank: int
    pipelines: tuple[tuple[int, ...], ...]
    switch_time_s: float
    schedule: str = "user"
    policy: Policy = PERSEUS

    @property
    def pipeline(self) -> int:
        return next(number for number, ranks in enumerate(self.pipelines) if self.rank in ranks)

    @property
    def stage(self) -> int:
        return self.pipelines[self.pipeline].index(self.rank)

    @property
    def leads(self) -> bool:
        return self.rank == self.pipelines[0][0]


@dataclass(frozen=True, slots=True)
class Offered:
    """A pipeline's schedule; None: full clock."""

    number: int
    schedule: ClockSchedule | None


@dataclass(frozen=True, slots=True)
class _Measured:
    """One iteration of one rank: by kind of computation, measured over profiled time and energy."""

    iteration: int
    ratios: Mapping[str, KindRatios]


class Correspondence:
    """``planner`` opens the line to it and says how to end it, on the rank that leads."""

    def __init__(
        self, shape: JobShape, board: Board, planner: Callable[[], tuple[Call, Callable[[], None]]] | None
    ) -> None:
        self._shape, self._board = shape, board
        self._planner = planner if shape.leads else None
        self._profile: RankProfile | None = None
        self._noise = 0.0
        self._measured: tuple[int, Sequence[MeasuredStep], float] | None = None
        self._reference: dict[str, tuple[Choice, ...]] | None = None
        self._offered = Offered(0, None)
        self._lead: _Lead | None = None
        self._word, self._stop = threading.Event(), threading.Event()
        self.problem: Exception | None = None
        """Why nothing is planned any more, where something is wrong that only the user can mend."""
        self._thread = threading.Thread(target=self._talk_forever, name="wattray", daemon=True)
        self._thread.start()

    def hand_profile(self, profile: RankProfile, noise: float, full_clock_s: float) -> None:
        """What this rank measured of itself; ``full_clock_s`` is what an iteration took with every clock at its
        highest."""
        self._noise, self._full_clock_s, self._profile = noise, full_clock_s, profile
        self._word.set()

    def hand_measured(self, iteration: int, steps: Sequence[MeasuredStep], time_s: float) -> None:
        """One iteration; of several that were not told yet the newest is enough."""
        self._measured = (iteration, steps, time_s)
        self._word.set()

    @property
    def offered(self) -> Offered:
        """The newest schedule of this rank's pipeline."""
        return self._offered

    def close(self) -> None:
        self._stop.set()
        self._word.set()
        self._thread.join(timeout=2.0)
        if self._lead is not None:
            self._lead.close()

    def _talk_forever(self) -> None:
        while not self._stop.is_set():
            self._word.wait(LOOK_EVERY_S)
            self._word.clear()
            try:
                self._talk()
                self._stop.wait(AT_MOST_EVERY_S)
            except SessionError as error:
                log.error("wattray plans nothing for job %s, full clock: %s", self._shape.job, error)
                self.problem = error
                self._board.put(f"schedule/{self._shape.pipeline}", Offered(1 << 30, None))
                return
            except Exception:
                log.warning("wattray could not talk to the other ranks; training goes on", exc_info=True)
                self._stop.wait(1.0)

    def _talk(self) -> None:
        profile, shape = self._profile, self._shape
        if profile is None:
            return
        if self._reference is None:
            self._board.put(f"profile/{shape.rank}", profile)
            if self._planner is not None and self._lead is None:
                profiles = self._profiles()
                if profiles is None:
                    return
                self._lead = _Lead(shape, self._board, profiles, self._noise, self._full_clock_s, self._planner)
            self._reference = self._board.look(f"reference/{shape.stage}")
            if self._reference is None:
                self._stop.wait(LOOK_EVERY_S)
                return
        measured, self._measured = self._measured, None
        if measured is not None:
            iteration, steps, time_s = measured
            ratios = kind_ratios(self._reference, steps)
            self._board.put(f"measured/{shape.rank}", _Measured(iteration, ratios))
            if self._lead is not None:
                self._lead.observe(iteration, time_s)
        if self._lead is not None:
            self._lead.look()
        found = self._board.look(f"schedule/{shape.pipeline}")
        if found is not None and found.number != self._offered.number:
            self._offered = found
        renewed = self._board.look(f"reference/{shape.stage}") if measured is not None else None
        self._reference = renewed or self._reference

    def _profiles(self) -> dict[int, RankProfile] | None:
        """Everybody's, or None until they are there; after a while those that are there."""
        everybody = [rank for ranks in self._shape.pipelines for rank in ranks]
        self._since_s = getattr(self, "_since_s", time.monotonic())
        found = {rank: self._board.look(f"profile/{rank}") for rank in everybody}
        there = {rank: profile for rank, profile in found.items() if profile is not None}
        late = time.monotonic() - self._since_s > PATIENCE_S
        return there if len(there) == len(everybody) or late else None


class _Lead:
    """The part of the rank that talks to the planner."""

    def __init__(
        self,
        shape: JobShape,
        board: Board,
        profiles: Mapping[int, RankProfile],
        noise: float,
        full_clock_s: float,
        planner: Callable[[], tuple[Call, Callable[[], None]]],
    ) -> None:
        """Raises SessionError where a rank is missing or runs what it has not measured."""
        self._shape, self._board, self._noise, self._full_clock_s = shape, board, noise, full_clock_s
        self._registration = registration_of(
            shape.job,
            len(shape.pipelines[0]),
            _fastest(shape, profiles),
            shape.switch_time_s,
            shape.schedule,
            shape.policy,
        )
        self._call, self._end_planner = planner()
        self._links: list[PlannerLink] = []
        self._told = [0] * len(shape.pipelines)
        self._given: list[ClockSchedule | None] = [None] * len(shape.pipelines)
        self._guard: PlanGuard | None = None
        self._rejected: set[str] = set()
        self._numbers = 0
        self._slow = [False] * len(shape.pipelines)
        """By pipeline, whether its computations took longer than profiled when it told last."""
        self._since_refined = 0
        self._history: dict[ComputationKey, list[KindRatios]] = defaultdict(list)
        self.rolled_back = self.refined = 0
        self._register(self._registration)

    def _register(self, registration: JobRegistration) -> None:
        for link in self._links:
            link.close()
        self._registration = registration
        pipelines = [PipelineId(f"pipeline-{number}") for number in range(len(self._shape.pipelines))]
        self._links = [PlannerLink(registration, self._call, pipeline=pipeline) for pipeline in pipelines]
        for stage in range(len(self._shape.pipelines[0])):
            mine = {name: found for (of, name), found in registration.choices.items() if of == stage}
            self._board.put(f"reference/{stage}", mine)

    def observe(self, iteration: int, time_s: float) -> None:
        """An iteration has ended after so many seconds. Where computations take longer than profiled, the plan is not
        what slows it."""
        del iteration
        if self._guard is not None and not any(self._slow):
            self._guard = self._guard.observe(time_s)
            if self._guard.too_slow and self._guard.plan_id not in self._rejected:
                log.warning(
                    "a plan of job %s slows iterations to %.4f s where %.4f s are allowed: full clock",
                    self._shape.job,
                    median(self._guard.times_s),
                    self._guard.allowed_s,
                )
                self._rejected.add(self._guard.plan_id)
                self.rolled_back += 1
                # What was measured under it says where the profile is off.
                self._since_refined = REFINED_EVERY
        self._since_refined += 1

    def look(self) -> None:
        """Pass on what ranks measured and what the planner answered."""
        for number, (link, ranks) in enumerate(zip(self._links, self._shape.pipelines, strict=True)):
            self._report(number, link, ranks)
            schedule = link.schedule_for(1.0)
            if schedule is not None and schedule.plan_id in self._rejected:
                schedule = None
            given = self._given[number]
            if (given and given.plan_id) != (schedule and schedule.plan_id):
                self._numbers += 1
                self._given[number] = schedule
                self._board.put(f"schedule/{number}", Offered(self._numbers, schedule))
                if number == 0:
                    self._guard = self._guard_of(schedule)

    def close(self) -> None:
        for link in self._links:
            link.close()
        self._end_planner()

    def _guard_of(self, schedule: ClockSchedule | None) -> PlanGuard | None:
        if schedule is None:
            return None
        longer = max(1.0, schedule.deadline_s / schedule.all_max_time_s)
        return PlanGuard(schedule.plan_id, self._full_clock_s * longer)

    def _report(self, number: int, link: PlannerLink, ranks: Sequence[int]) -> None:
        """Once all of a pipeline's ranks have told of a newer iteration."""
        found: list[_Measured | None] = [self._board.look(f"measured/{rank}") for rank in ranks]
        told = [one for one in found if one is not None]
        if len(told) < len(ranks) or min(one.iteration for one in told) <= self._told[number]:
            return
        self._told[number] = min(one.iteration for one in told)
        ratios = tuple(median(r.time for r in one.ratios.values()) if one.ratios else 1.0 for one in told)
        self._slow[number] = max(ratios) > 1 + CORRECTED_ABOVE
        link.report(ratios)
        if number == 0:
            for stage, one in enumerate(told):
                for name, seen in one.ratios.items():
                    self._history[stage, name].append(seen)
            self._refine()

    def _refine(self) -> None:
        if self._since_refined < REFINED_EVERY:
            return
        self._since_refined = 0
        measured = {
            key: KindRatios(median(r.time for r in seen), median(r.energy for r in seen))
            for key, seen in self._history.items()
            if len(seen) >= ENOUGH
        }
        self._history.clear()
        better = corrected(self._registration.choices, measured, self._noise)
        if better is not None:
            self.refined += 1
            log.info("the profile of job %s is corrected by what was measured under its plan", self._shape.job)
            one = self._registration
            self._register(
                JobRegistration(
                    one.job, better, one.order, one.blocking_power_w, one.switch_time_s, one.schedule, one.policy
                )
            )


def kind_ratios(reference: Mapping[str, tuple[Choice, ...]], steps: Sequence[MeasuredStep]) -> dict[str, KindRatios]:
    """By kind, the median of measured over profiled time and energy; kinds and clocks that were not profiled, and
    computations whose clock was still settling, say nothing. A rank's choices are of all its chunks together."""
    chunks = 1 + max((step.step.chunk for step in steps), default=0)
    known = {(name, c.freq_mhz): c for name, choices in reference.items() for c in choices}
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for step in steps:
        choice = known.get((step.step.name, step.freq_mhz))
        if step.settled and choice is not None and step.time_s > 0:
            energy = chunks * step.energy_j / choice.energy_j if choice.energy_j > 0 and step.energy_j > 0 else 1.0
            found[step.step.name].append((chunks * step.time_s / choice.time_s, energy))
    return {name: KindRatios(median(t for t, _ in seen), median(e for _, e in seen)) for name, seen in found.items()}


def _fastest(shape: JobShape, profiles: Mapping[int, RankProfile]) -> list[RankProfile]:
    """Per stage that of the pipeline whose GPU is the fastest: what is slower is found from it. All pipelines' blocking
    power is averaged."""
    chosen = []
    waits_w = fmean(profile.blocking_power_w for profile in profiles.values())
    for stage in range(len(shape.pipelines[0])):
        there = [profiles[ranks[stage]] for ranks in shape.pipelines if ranks[stage] in profiles]
        if there:
            best = min(there, key=lambda one: sum(min(c.time_s for c in found) for found in one.choices.values()))
            chosen.append(RankProfile(stage, best.program, best.choices, waits_w))
    return chosen
