"""What training workers, the planner and clients tell each other. Free of the planner's solvers: a worker that talks to
the planner does not load them."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import NamedTuple

from control_plane.training.job_record import PERSEUS, Policy
from control_plane.training.job_spec import PipelineId, ScheduledStep, StageRatios
from control_plane.training.profile import Choice, ComputationKey
from control_plane.training.schedules import Instruction

OWN_PIPELINE = PipelineId("pipeline-0")
"""The data-parallel pipeline that schedules are for where none is named."""
OWNER = "training:"


def owner_of(job: str, run: str) -> str:
    """Who leases the GPUs of one run of a job; two runs of one name are two owners."""
    return f"{OWNER}{job}/{run}"


def job_of_owner(owner: str) -> str | None:
    """None where it is no run of a training job."""
    return owner.removeprefix(OWNER).partition("/")[0] if owner.startswith(OWNER) else None


@dataclass(frozen=True, slots=True)
class TrainingSite:
    """Where training runs: the GPUs kept for it, all on one node, and how their clocks may be used."""

    run_dir: str
    node_id: str
    gpu_uuids: tuple[str, ...]
    lease_ttl_s: float
    driver: str = "simulated"
    """Of the GPUs, as the settings name it."""


@dataclass(frozen=True, slots=True)
class JobRegistration:
    """One pipeline of a job: what its computations were measured to take, and the order they really run in.

    Times and energies are of a whole stage; ``blocking_power_w`` is what a stage draws while it waits.
    """

    job: str
    choices: Mapping[ComputationKey, tuple[Choice, ...]]
    order: tuple[tuple[Instruction, ...], ...]
    """Per rank (a rank is a pipeline stage), what it runs in one iteration."""
    blocking_power_w: float
    switch_time_s: float = 0.0
    """What one clock change takes; no clock is held for less."""
    schedule: str = "user"
    """What the order is called; nothing follows from it."""
    policy: Policy = PERSEUS


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanFigures:
    """What a clock schedule was chosen for and what it is to take. Energies charge blocking power of all stages up to
    ``deadline_s``."""

    degree: float
    """The slowest pipeline takes this many times the healthy iteration time; 1 where none lags."""
    deadline_s: float
    planned_time_s: float
    planned_energy_j: float
    lower_bound_j: float
    regime: str
    t_min_s: float
    t_star_s: float
    all_max_time_s: float
    all_max_energy_j: float
    blocking_power_w: float
    """Of all stages together."""
    stage_ratios: StageRatios = ()
    """The slow stages it was chosen for: how many times its profiled time each takes; none: a healthy pipeline."""

    def all_max_energy_until_j(self, deadline_s: float) -> float:
        """What the same iteration takes with every clock at its highest, waiting until the deadline."""
        return self.all_max_energy_j + self.blocking_power_w * max(0.0, deadline_s - self.all_max_time_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockSchedule(PlanFigures):
    """Clocks for every rank."""

    job: str
    plan_id: str
    """The same for the same clocks and deadline."""
    ranks: tuple[tuple[ScheduledStep, ...], ...]

    @property
    def figures(self) -> PlanFigures:
        """Without the clocks."""
        return PlanFigures(**{field.name: getattr(self, field.name) for field in fields(PlanFigures)})


class FrontierSample(NamedTuple):
    """One point of the frontier: the least energy by an iteration time, and what real clocks reach."""

    iteration_time_s: float
    energy_j: float
    lower_bound_j: float


@dataclass(frozen=True, slots=True)
class JobFrontier:
    """A job's time–energy frontier, sampled from T_min to T*."""

    job: str
    stages: int
    microbatches: int
    t_min_s: float
    t_star_s: float
    all_max_time_s: float
    all_max_energy_j: float
    breakpoints: int
    degree: float
    """The straggler it plans for now."""
    samples: tuple[FrontierSample, ...]
