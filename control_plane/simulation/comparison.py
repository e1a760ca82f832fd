"""Policies side by side on one trace: the baseline sized for it, every policy's run and score, and the bound."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from control_plane.baselines.single_pool import SinglePool
from control_plane.domain import Slo
from control_plane.hardware.machine_profile import MachineProfile
from control_plane.hardware.request_columns import RequestColumns
from control_plane.hardware.shape_tables import ShapeTables
from control_plane.settings import Settings
from control_plane.simulation.bound import Bound, energy_bound
from control_plane.simulation.fleet import Fleet
from control_plane.simulation.outcome import Simulated
from control_plane.simulation.policies import (
    POLICIES,
    SINGLE_POOL,
    Cluster,
    GpuBudgetError,
    check_policy_names,
)
from control_plane.simulation.scoring import Score, score
from control_plane.simulation.serving_cluster import ClusterTimes, SimulatedCluster, warm_up
from control_plane.simulation.sizing import Sizing, Watch, fewest_replicas
from control_plane.simulation.trace import Trace

SETTLE_S = 60.0
"""Every policy is billed until this long after the last arrival (longer only if it is not done by then)."""
ROOM_FACTOR = 4
"""`As many GPUs as wanted`: this many times the baseline's fleet, and at least a few nodes."""


class Idle(StrEnum):
    """What GPUs cost that no replica holds."""

    RELEASED = "released"
    CHARGED = "charged"


@dataclass(slots=True)
class Effort:
    """CPU seconds of the runs that are reported, of the policies in them, and of the sizing search."""

    cpu_s: float = 0.0
    policy_cpu_s: float = 0.0
    sizing_cpu_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Question:
    """What to compare. ``gpus`` None: as many as wanted."""

    trace: Trace
    profile: MachineProfile
    settings: Settings
    policies: tuple[str, ...]
    gpus: int | None = None
    idle: Idle = Idle.RELEASED
    attainment: float = 0.99
    startup_s: float | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """``scores`` always holds the baseline too."""

    scores: Mapping[str, Score]
    outcomes: Mapping[str, Simulated]
    single_pool: Sizing
    bound: Bound
    gpus: int
    idle_gpus: int
    effort: Effort = field(default_factory=Effort)

    def saved_ratio(self, name: str) -> float:
        """Share of the baseline's energy that this policy saves."""
        baseline_j = self.scores[SINGLE_POOL].energy_j
        return 1 - self.scores[name].energy_j / baseline_j if baseline_j > 0 else 0.0


Progress = Callable[[str, float], None]


def compare(
    question: Question, clock_s: Callable[[], float], progress: Progress = lambda _name, _share: None
) -> Answer:
    """Run everything. ``clock_s`` counts CPU seconds; ``progress(policy, share of the trace)`` is told how far a run
    is."""
    check_policy_names(question.policies)
    effort = Effort()
    trace, profile = question.trace, question.profile
    slo = question.settings.slo.slo()
    tables = {tp: ShapeTables.of(profile, tp) for tp in profile.tps}
    warm_up(profile, trace, SinglePool(1, max(profile.tps)))
    runner = _Runner(question, tables, clock_s, progress)
    sizing = _size_baseline(question, tables, runner, slo, effort)
    tp = max(profile.tps)
    fleet_gpus = sizing.replicas * tp
    gpus = max(64, ROOM_FACTOR * fleet_gpus) if question.gpus is None else question.gpus
    idle_gpus = 0 if question.idle is Idle.RELEASED else (question.gpus or fleet_gpus)
    idle_gpu_w = 0.0 if question.idle is Idle.RELEASED else profile.gpu.idle_w
    outcomes: dict[str, Simulated] = {}
    if question.idle is Idle.RELEASED:
        outcomes[SINGLE_POOL] = sizing.outcome
        effort.cpu_s += runner.last_cpu_s[sizing.replicas]
        effort.policy_cpu_s += runner.last_policy_s[sizing.replicas]
        effort.sizing_cpu_s -= runner.last_cpu_s[sizing.replicas] + runner.last_policy_s[sizing.replicas]
    else:
        outcomes[SINGLE_POOL] = runner.run(SINGLE_POOL, SinglePool(sizing.replicas, tp), idle_gpus, effort)
    for name in question.policies:
        if name != SINGLE_POOL:
            fleet = POLICIES[name](Cluster(profile, gpus, question.settings, trace, idle_gpu_w))
            outcomes[name] = runner.run(name, fleet, idle_gpus, effort, gpus)
    bound = energy_bound(
        trace, tables, slo, idle_gpus=idle_gpus, until_s=runner.until_s, attainment=question.attainment
    )
    scores = {name: score(outcome, slo) for name, outcome in outcomes.items()}
    return Answer(scores, outcomes, sizing, bound, gpus, idle_gpus, effort)


class _Runner:
    def __init__(
        self,
        question: Question,
        tables: Mapping[int, ShapeTables],
        clock_s: Callable[[], float],
        progress: Progress,
    ) -> None:
        self._question, self._tables, self._clock_s, self._progress = question, tables, clock_s, progress
        self.until_s = question.trace.duration_s + SETTLE_S
        self._sample_s = max(1.0, self.until_s / 3000)
        settings = question.settings
        startup_s = settings.sharding.startup_s if question.startup_s is None else question.startup_s
        self._times = ClusterTimes.for_startup(startup_s)
        self.last_cpu_s: dict[int, float] = {}
        self.last_policy_s: dict[int, float] = {}

    def run(
        self,
        name: str,
        fleet: Fleet,
        idle_gpus: int,
        effort: Effort,
        gpus: int | None = None,
        watch: Watch | None = None,
        size: int = 0,
    ) -> Simulated:
        end_s = max(1e-9, self.until_s)

        def watched(now_s: float, arrived: int, columns: RequestColumns) -> bool:
            self._progress(name, min(1.0, now_s / end_s))
            return watch is None or watch(now_s, arrived, columns)

        start_s = self._clock_s()
        cluster = SimulatedCluster(
            self._question.profile,
            gpus,
            fleet,
            sample_s=self._sample_s,
            idle_gpus=idle_gpus,
            times=self._times,
            tables=self._tables,
            policy_clock_s=self._clock_s,
        )
        outcome = cluster.run(self._question.trace, self.until_s, watched)
        cpu_s = self._clock_s() - start_s
        effort.cpu_s += max(0.0, cpu_s - cluster.policy_s)
        effort.policy_cpu_s += cluster.policy_s
        self.last_cpu_s[size], self.last_policy_s[size] = max(0.0, cpu_s - cluster.policy_s), cluster.policy_s
        return outcome


def _size_baseline(
    question: Question, tables: Mapping[int, ShapeTables], runner: _Runner, slo: Slo, effort: Effort
) -> Sizing:
    tp = max(question.profile.tps)
    search = Effort()

    def run(replicas: int, watch: Watch) -> Simulated:
        name = f"sizing {SINGLE_POOL}: {replicas} × TP{tp}"
        return runner.run(name, SinglePool(replicas, tp), 0, search, watch=watch, size=replicas)

    sizing = fewest_replicas(question.trace, tables[tp], slo, run, question.attainment)
    effort.sizing_cpu_s += search.cpu_s + search.policy_cpu_s
    least = sizing.replicas * tp
    if question.gpus is not None and question.gpus < least:
        raise GpuBudgetError(
            f"{question.gpus} GPUs are too few: {SINGLE_POOL} holds the SLO for {question.attainment:.0%} of this "
            f"trace with {sizing.replicas} × TP{tp}, so at least {least} GPUs work"
        )
    return sizing
