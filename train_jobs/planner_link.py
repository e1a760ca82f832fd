"""A job's line to the planner: one call per change and one per iteration, and training never waits long for an answer.

While the planner is away the job runs on with what it has: the schedule it was once given for this straggler, else the
last one. The change is told again until it has been heard.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray

from actors.runtime import PERSEUS_PLANNER, actor
from actors.training_messages import OWN_PIPELINE, ClockSchedule, JobRegistration
from control_plane.training.job_spec import PipelineId, StageRatios

log = logging.getLogger(__name__)

OTHER_PIPELINE = PipelineId("pipeline-1")
PATIENCE_S = 1.0
REPORT_PATIENCE_S = 0.5
"""A report is answered in milliseconds unless a frontier has to be traced; that schedule is taken when it comes."""


@dataclass(slots=True)
class _Asked:
    degree: float
    answer: Any


class PlannerLink:
    """``call(method, *args)`` starts a call to the planner and returns its reference; ValueError where none runs."""

    def __init__(self, job: str, registration: JobRegistration, call: Callable[..., Any] | None = None) -> None:
        self._job, self._registration = job, registration
        self._call = call or call_planner
        self._asked: _Asked | None = None
        self._reported: _Asked | None = None
        self._heard: float | None = None
        self._given: dict[float, ClockSchedule] = {}
        self._last: ClockSchedule | None = None

    def register(self) -> None:
        """Give the planner the job; a planner that is away is told later."""
        try:
            ray.get(self._call("register", self._registration), timeout=5.0)
        except (ValueError, ray.exceptions.RayError) as error:
            log.warning("job %s is not registered yet: %s", self._job, error)

    def schedule_for(self, degree: float, patience_s: float = PATIENCE_S) -> ClockSchedule | None:
        """The schedule to run while the slowest other pipeline takes ``degree`` times a healthy iteration; None
        before the first one has come."""
        if self._heard != degree:
            self._ask(degree)
            self._asked, answer = self._taken(self._asked, patience_s)
            if answer is not None:
                self._heard, self._reported = degree, None
                self._given[degree] = answer
            self._last = self._given.get(degree, self._last)
        else:
            self._reported, answer = self._taken(self._reported, REPORT_PATIENCE_S)
            self._last = better_of(self._last, answer)
        return self._last

    def report(self, ratios: StageRatios, running: ClockSchedule | None) -> None:
        """Tell what the pipeline measured of itself in one iteration: per stage measured over profiled times. Where
        that changes its schedule, ``schedule_for`` has it next. One report at a time is on its way."""
        if self._heard is None or self._reported is not None:
            return
        plan_id = "" if running is None else running.plan_id
        self._reported = self._started(self._heard, "report_iteration", self._job, OWN_PIPELINE, ratios, plan_id)

    def _ask(self, degree: float) -> None:
        if self._asked is None or self._asked.degree != degree:
            self._asked = self._started(degree, "report_straggler", self._job, OTHER_PIPELINE, degree)

    def _started(self, degree: float, method: str, *args: Any) -> _Asked | None:
        try:
            return _Asked(degree, self._call(method, *args))
        except (ValueError, ray.exceptions.RayError) as error:
            log.warning("the planner is away, training goes on: %s", error)
            return None

    def _taken(self, asked: _Asked | None, patience_s: float) -> tuple[_Asked | None, ClockSchedule | None]:
        """What is still asked, and the answer if it has come."""
        if asked is None:
            return None, None
        ready, _ = ray.wait([asked.answer], timeout=patience_s)
        if not ready:
            return asked, None
        try:
            return None, ray.get(asked.answer)
        except ray.exceptions.RayTaskError as error:
            log.warning("the planner refuses a report, the job is registered again: %s", error)
            self._heard = None
            self.register()
        except ray.exceptions.RayError as error:
            log.warning("the planner is away, training goes on: %s", error)
        return None, None


def better_of(running: ClockSchedule | None, offered: ClockSchedule | None) -> ClockSchedule | None:
    """What is offered, unless it is for the same and dearer: a planner that restarted prepares its plans anew."""
    if running is None or offered is None:
        return offered or running
    same = (running.deadline_s, running.stage_ratios) == (offered.deadline_s, offered.stage_ratios)
    return running if same and running.planned_energy_j <= offered.planned_energy_j else offered


def call_planner(method: str, *args: Any) -> Any:
    return getattr(actor(PERSEUS_PLANNER), method).remote(*args)
