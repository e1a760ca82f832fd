"""A job's line to the planner: one call per change, and training never waits long for an answer.

While the planner is away the job runs on with what it has: the schedule it was once given for this straggler, else the
last one. The change is told again until it has been heard.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray

from actors.runtime import PERSEUS_PLANNER, actor
from actors.training_messages import ClockSchedule, JobRegistration

log = logging.getLogger(__name__)

OTHER_PIPELINE = "pipeline-1"
PATIENCE_S = 1.0


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
            self._listen(patience_s)
        if degree in self._given:
            self._last = self._given[degree]
        return self._last

    def _ask(self, degree: float) -> None:
        if self._asked is not None and self._asked.degree == degree:
            return
        try:
            self._asked = _Asked(degree, self._call("report_straggler", self._job, OTHER_PIPELINE, degree))
        except (ValueError, ray.exceptions.RayError) as error:
            log.warning("the planner is away, training goes on: %s", error)
            self._asked = None

    def _listen(self, patience_s: float) -> None:
        if self._asked is None:
            return
        ready, _ = ray.wait([self._asked.answer], timeout=patience_s)
        if not ready:
            return
        asked, self._asked = self._asked, None
        try:
            self._given[asked.degree] = ray.get(asked.answer)
            self._heard = asked.degree
        except ray.exceptions.RayTaskError as error:
            log.warning("the planner refuses a report, the job is registered again: %s", error)
            self.register()
        except ray.exceptions.RayError as error:
            log.warning("the planner is away, training goes on: %s", error)


def call_planner(method: str, *args: Any) -> Any:
    return getattr(actor(PERSEUS_PLANNER), method).remote(*args)
