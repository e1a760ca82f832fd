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
from statistics import median

from control_plane.training.plan_guard import KindRatios
from control_plane.training.profile import Choice
from train_jobs.board import Board
from train_jobs.lead import JobShape, Lead, Measured, Offered
from train_jobs.meter import MeasuredStep
from train_jobs.order import SessionError
from train_jobs.planes import Call
from train_jobs.session import RankProfile

log = logging.getLogger(__name__)

LOOK_EVERY_S = 0.1
AT_MOST_EVERY_S = 0.05
"""Of short iterations only some are told of: threads that talk take the interpreter from the training step."""
PATIENCE_S = 60.0
"""For the profiles of all ranks, after the leading one's."""


class Correspondence:
    """``planner`` opens the line to it and says how to end it, on the rank that leads."""

    def __init__(
        self, shape: JobShape, board: Board, planner: Callable[[], tuple[Call, Callable[[], None]]] | None
    ) -> None:
        self._shape, self._board = shape, board
        self._planner = planner if shape.leads else None
        self._profile: RankProfile | None = None
        self._noise = self._full_clock_s = 0.0
        self._handed_s = float("inf")
        self._measured: tuple[int, Sequence[MeasuredStep], float] | None = None
        self._reference: dict[str, tuple[Choice, ...]] | None = None
        self._offered = Offered(0, None)
        self._lead: Lead | None = None
        self._word, self._stop = threading.Event(), threading.Event()
        self.problem: Exception | None = None
        """Why nothing is planned any more, where something is wrong that only the user can mend."""
        self._thread = threading.Thread(target=self._talk_forever, name="wattray", daemon=True)
        self._thread.start()

    def hand_profile(self, profile: RankProfile, noise: float, full_clock_s: float) -> None:
        """What this rank measured of itself; ``full_clock_s`` is what an iteration took with every clock at its
        highest."""
        self._noise, self._full_clock_s, self._handed_s = noise, full_clock_s, time.monotonic()
        self._profile = profile
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
                self._lead = Lead(shape, self._board, profiles, self._noise, self._full_clock_s, self._planner)
            self._reference = self._board.look(f"reference/{shape.stage}")
            if self._reference is None:
                self._stop.wait(LOOK_EVERY_S)
                return
        measured, self._measured = self._measured, None
        if measured is not None:
            iteration, steps, time_s = measured
            ratios = kind_ratios(self._reference, steps)
            self._board.put(f"measured/{shape.rank}", Measured(iteration, ratios))
            if self._lead is not None:
                self._lead.observe(time_s)
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
        found = {rank: self._board.look(f"profile/{rank}") for rank in everybody}
        there = {rank: profile for rank, profile in found.items() if profile is not None}
        late = time.monotonic() - self._handed_s > PATIENCE_S
        return there if len(there) == len(everybody) or late else None


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
