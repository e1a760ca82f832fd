"""The rank of a user's job that talks to the planner for all of them, in the thread of its correspondence."""

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median

from actors.training_messages import ClockSchedule, JobRegistration
from control_plane.training.job_record import PERSEUS, Policy
from control_plane.training.job_spec import PipelineId
from control_plane.training.plan_guard import CORRECTED_ABOVE, ENOUGH, KindRatios, PlanGuard, corrected
from control_plane.training.profile import ComputationKey
from train_jobs.board import Board
from train_jobs.planes import Call
from train_jobs.planner_link import PlannerLink
from train_jobs.session import RankProfile, registration_of

log = logging.getLogger(__name__)

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
class Measured:
    """One iteration of one rank: by kind of computation, measured over profiled time and energy."""

    iteration: int
    ratios: Mapping[str, KindRatios]


class Lead:
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

    def observe(self, time_s: float) -> None:
        """An iteration has ended after so many seconds. Where computations take longer than profiled, the plan is not
        what slows it."""
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
        found: list[Measured | None] = [self._board.look(f"measured/{rank}") for rank in ranks]
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
            self._register(replace(self._registration, choices=better))


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
