"""A job's line to the planner: a thread of its own talks, the training step only leaves word and takes what is there.

While the planner is away the job runs on with what it has: the schedule it was once given for this straggler, else the
last one. What the planner has not heard is told again until it has; of several reports the newest is enough.
"""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from actors.peers import PeerAwayError
from actors.perseus_planner import UnknownJobError
from actors.training_messages import OWN_PIPELINE, ClockSchedule, JobRegistration
from control_plane.training.job_spec import PipelineId, StageRatios
from train_jobs.order import SessionError

log = logging.getLogger(__name__)

OTHER_PIPELINE = PipelineId("pipeline-1")
FIRST_RETRY_S, LAST_RETRY_S = 0.5, 10.0
MOST_GIVEN = 32
"""Schedules kept by straggler; a degree may be any number."""

Call = Callable[..., "Future[Any]"]
"""``call(method, *args)`` starts a call to the planner; PeerAwayError where none runs."""


@dataclass(frozen=True, slots=True)
class _Register:
    pass


@dataclass(frozen=True, slots=True)
class _Announce:
    degree: float


@dataclass(frozen=True, slots=True)
class _Ask:
    """For the schedule of a pipeline that announces nothing."""

    degree: float


@dataclass(frozen=True, slots=True)
class _Report:
    ratios: StageRatios


_Word = _Register | _Announce | _Ask | _Report


class PlannerLink:
    """``known``: the planner was given this job before, and is asked to plan on. Every ``pipeline`` of a job has a link
    of its own; the first one's registers the job and announces that ``other`` lags. No method waits for the planner
    unless it is told how long."""

    def __init__(
        self,
        registration: JobRegistration,
        call: Call,
        known: bool = False,
        pipeline: PipelineId = OWN_PIPELINE,
        other: PipelineId = OTHER_PIPELINE,
    ) -> None:
        self._registration, self._call = registration, call
        self._pipeline, self._other, self._leads = pipeline, other, pipeline == OWN_PIPELINE
        self._job = registration.job
        self._changed = threading.Condition()
        self._registered, self._closed = known or not self._leads, False
        self._refusal: str | None = None
        self._wanted, self._heard = 1.0, float("nan")
        self._report: _Report | None = None
        self._asked_again = False
        self._talking = self._away = False
        self._given: dict[float, ClockSchedule] = {}
        self._current: ClockSchedule | None = None
        self._thread = threading.Thread(target=self._talk_forever, name="planner-link", daemon=True)
        self._thread.start()

    def schedule_for(self, degree: float, wait_s: float = 0.0) -> ClockSchedule | None:
        """The schedule to run while the slowest other pipeline takes ``degree`` times a healthy iteration: what has
        come so far, None before the first. Waits up to ``wait_s`` for the planner's answer to what was left for it, not
        for a planner that is away.

        Raises SessionError where the planner refused the registration.
        """
        with self._changed:
            if degree != self._wanted:
                self._wanted, self._report = degree, None
                self._current = self._given.get(degree, self._current)
                self._changed.notify_all()
            if wait_s > 0:
                self._changed.wait_for(lambda: self._refusal is not None or self._away or self._is_heard(), wait_s)
            if self._refusal is not None:
                raise SessionError(f"the planner refuses job {self._job}: {self._refusal}")
            return self._current

    def report(self, ratios: StageRatios) -> None:
        """Leave word of what the pipeline measured of itself in one iteration: per stage measured over profiled times.
        Where that changes its schedule, a later ``schedule_for`` has it."""
        with self._changed:
            self._report = _Report(ratios)
            self._changed.notify_all()

    def ask_again(self, wait_s: float) -> ClockSchedule | None:
        """The schedule that holds once other pipelines' reports have been heard; waits as ``schedule_for`` does."""
        with self._changed:
            self._asked_again = True
            self._changed.notify_all()
        return self.schedule_for(self._wanted, wait_s)

    def close(self) -> None:
        """Say no more. Returns at once; a call that is on its way is not waited for."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _is_heard(self) -> bool:
        return self._next_word() is None and not self._talking

    def _next_word(self) -> _Word | None:
        if self._refusal is not None:
            return None
        if not self._registered:
            return _Register()
        if self._heard != self._wanted:
            return _Announce(self._wanted) if self._leads else _Ask(self._wanted)
        return self._report or (_Ask(self._wanted) if self._asked_again else None)

    def _talk_forever(self) -> None:
        retry_s = FIRST_RETRY_S
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._next_word() is not None)
                word = self._next_word()
                if self._closed or word is None:
                    return
                self._talking = True
            try:
                self._say(word)
                retry_s, heard = FIRST_RETRY_S, True
            except Exception as error:
                # Whatever it is, the thread goes on: it is said again.
                usual = isinstance(error, PeerAwayError | UnknownJobError)
                log.warning("the planner does not answer, training goes on: %s", error, exc_info=not usual)
                heard = False
            with self._changed:
                self._talking, self._away = False, not heard
                self._changed.notify_all()
                if not heard:
                    # It may have been heard all the same, and a report counts each time: the next one will do.
                    self._report = None if self._report is word else self._report
                    self._changed.wait_for(lambda: self._closed, retry_s)
                    retry_s = min(2 * retry_s, LAST_RETRY_S)

    def _say(self, word: _Word) -> None:
        try:
            match word:
                case _Register():
                    self._answer("register", self._registration)
                    with self._changed:
                        self._registered, self._heard = True, float("nan")
                case _Announce(degree):
                    answer = self._answer("report_straggler", self._job, self._other, degree, moot=word)
                    if answer is not None:
                        self._take(answer, degree)
                case _Ask(degree):
                    self._asked_again = False
                    answer = self._answer("schedule", self._job, self._pipeline, moot=word)
                    if answer is not None:
                        self._take(answer, degree)
                case _Report(ratios):
                    with self._changed:
                        plan_id = "" if self._current is None else self._current.plan_id
                    offered = self._answer("report_iteration", self._job, self._pipeline, ratios, plan_id, moot=word)
                    with self._changed:
                        # A newer report waits its turn; a schedule for another straggler is not this one's.
                        if self._heard == self._wanted:
                            self._current = better_of(self._current, offered)
                        if self._report is word:
                            self._report = None
        except UnknownJobError as error:
            if not self._leads:
                # Whoever leads registers it, again if need be.
                raise
            log.warning("the planner has forgotten the job, it is registered again: %s", error)
            with self._changed:
                self._registered = False
        except ValueError as error:
            self._refused(word, error)

    def _take(self, answer: ClockSchedule, degree: float) -> None:
        with self._changed:
            self._heard = degree
            self._given.pop(degree, None)
            self._given[degree] = answer
            while len(self._given) > MOST_GIVEN:
                del self._given[next(iter(self._given))]
            if self._wanted == degree:
                self._current = answer

    def _refused(self, word: _Word, error: ValueError) -> None:
        """The planner knows the job and not what was said: saying it again would change nothing."""
        log.error("the planner refuses %s of job %s: %s", type(word).__name__.strip("_").lower(), self._job, error)
        with self._changed:
            match word:
                case _Register():
                    self._refusal = str(error)
                case _Announce(degree) | _Ask(degree):
                    self._heard = degree
                case _Report():
                    self._report = None if self._report is word else self._report

    def _answer(self, method: str, *args: Any, moot: _Word | None = None) -> Any:
        """The planner's answer; None where a newer straggler has made the question moot or the link is closed."""
        future = self._call(method, *args)
        future.add_done_callback(lambda _: self._wake())
        with self._changed:
            self._changed.wait_for(lambda: future.done() or self._closed or self._is_moot(moot))
            if not future.done():
                return None
        return future.result()

    def _is_moot(self, word: _Word | None) -> bool:
        match word:
            case _Announce(degree) | _Ask(degree):
                return degree != self._wanted
            case _Report():
                return self._heard != self._wanted
            case _:
                return False

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()


def better_of(running: ClockSchedule | None, offered: ClockSchedule | None) -> ClockSchedule | None:
    """What is offered, unless it is for the same and dearer: a planner that restarted prepares its plans anew."""
    if running is None or offered is None:
        return offered or running
    same = (running.deadline_s, running.stage_ratios) == (offered.deadline_s, offered.stage_ratios)
    return running if same and running.planned_energy_j <= offered.planned_energy_j else offered
