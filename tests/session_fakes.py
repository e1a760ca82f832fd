"""What tests of a training session share: a GPU and a lease in their hands, one program, one schedule, one profile."""

from collections.abc import Callable

from actors.training_messages import ClockSchedule
from control_plane.training.job_spec import ScheduledStep
from control_plane.training.profile import Choice
from control_plane.training.schedules import BACKWARD, FORWARD, Instruction
from train_jobs.meter import Reading
from train_jobs.session import RankProfile

PROGRAM = (Instruction(FORWARD, 0), Instruction(FORWARD, 1), Instruction(BACKWARD, 0), Instruction(BACKWARD, 1))
FULL_MHZ = 1980


def steps(*clocks_mhz: int) -> tuple[ScheduledStep, ...]:
    return tuple(ScheduledStep(s.name, s.microbatch, mhz) for s, mhz in zip(PROGRAM, clocks_mhz, strict=True))


class Control:
    """A GPU that remembers what it was told."""

    def __init__(self) -> None:
        self.mhz, self.told = FULL_MHZ, list[tuple[int, int]]()

    def set_clock(self, freq_mhz: int, at_ns: int) -> None:
        self.mhz = freq_mhz
        self.told.append((at_ns, freq_mhz))

    def target_mhz(self) -> int:
        return self.mhz


class Lease:
    """Live until the test ends it."""

    def __init__(self) -> None:
        self.live, self.ended = True, False
        self.lost: Callable[[], None] = lambda: None

    def may_lower(self) -> bool:
        return self.live

    def when_lost(self, act: Callable[[], None]) -> None:
        self.lost = act

    def end(self) -> None:
        self.live, self.ended = False, True


class Now:
    """A meter's GPU: 10 ns and 2 J further at every look."""

    def __init__(self) -> None:
        self.at = Reading(0, 0.0, FULL_MHZ)

    def __call__(self) -> Reading:
        seen = self.at
        self.at = Reading(seen.at_ns + 10, seen.energy_j + 2.0, seen.freq_mhz)
        return seen


CLOCKS = steps(1980, 1590, 1590, 1200)
SCHEDULE = ClockSchedule(
    job="llm",
    plan_id="a",
    ranks=(CLOCKS, CLOCKS),
    degree=1.0,
    deadline_s=2.0,
    planned_time_s=1.9,
    planned_energy_j=100.0,
    lower_bound_j=99.0,
    regime="",
    t_min_s=2.0,
    t_star_s=4.0,
    all_max_time_s=2.0,
    all_max_energy_j=120.0,
    blocking_power_w=130.0,
)


def profile_of_rank(rank: int, program: tuple[Instruction, ...] = PROGRAM) -> RankProfile:
    choices = {name: (Choice(1980, 0.1, 60.0), Choice(1200, 0.15, 50.0)) for name in ("forward", "backward")}
    return RankProfile(rank, program, choices, 100.0 + rank)
