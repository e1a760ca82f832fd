"""Policies side by side on one trace: the baseline sized for it, every policy's run and score, and the bound."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from control_plane.baselines.single_pool import SinglePool
from control_plane.baselines.static_fleet import StaticFleet
from control_plane.domain import IdleGpus, Slo
from control_plane.hardware.machine_profile import MachineProfile
from control_plane.hardware.request_columns import RequestColumns
from control_plane.hardware.shape_tables import ShapeTables
from control_plane.serving.policy import GpuBudgetError
from control_plane.settings import Settings
from control_plane.simulation.bound import Bound, energy_bound
from control_plane.simulation.fleet import Fleet
from control_plane.simulation.outcome import Simulated
from control_plane.simulation.policies import SINGLE_POOL, check_policy_names
from control_plane.simulation.scoring import Curve, Score, curve, score
from control_plane.simulation.serving_cluster import ClusterTimes, SimulatedCluster, warm_up
from control_plane.simulation.sizing import Watch, fewest_replicas
from control_plane.simulation.trace import Trace
from control_plane.simulation.what_if import hosted_policy
from control_plane.simulation.yardsticks import YARDSTICKS, Contest, Play

SETTLE_S = 60.0
"""Every policy is billed until this long after the last arrival (longer only if it is not done by then)."""
ROOM_FACTOR = 4
"""`As many GPUs as wanted`: this many times the baseline's fleet, and at least a few nodes."""


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
    idle: IdleGpus = IdleGpus.RELEASED
    attainment: float = 0.99
    startup_s: float | None = None
    today: StaticFleet | None = None
    """What runs now, to be set beside the policies."""

    @property
    def slo(self) -> Slo:
        return self.settings.slo.slo()

    def idle_gpus(self, baseline_gpus: int) -> int:
        """How many GPUs are billed even when nothing holds them."""
        return 0 if self.idle is IdleGpus.RELEASED else (self.gpus or baseline_gpus)


@dataclass(frozen=True, slots=True)
class Answer:
    """``scores`` and ``curves`` always hold the baseline too."""

    scores: Mapping[str, Score]
    curves: Mapping[str, Curve]
    baseline_replicas: int
    sizing_runs: int
    bound: Bound
    gpus: int
    idle_gpus: int
    attainment: float = 0.99
    fleets: Mapping[str, str] = field(default_factory=dict)
    """Of yardsticks: what was found."""
    effort: Effort = field(default_factory=Effort)
    today: str | None = None
    """The name under which the fleet of today is among the scores."""

    def holds(self, name: str) -> bool:
        """Whether this policy holds the SLO for the share of requests that was asked for. What one saves that does not
        is no saving at equal service."""
        return self.scores[name].slo_attainment >= self.attainment

    def saved_ratio(self, name: str) -> float:
        """Share of the baseline's energy that this policy saves."""
        baseline_j = self.scores[SINGLE_POOL].energy_j
        return 1 - self.scores[name].energy_j / baseline_j if baseline_j > 0 else 0.0


Progress = Callable[[str, float], None]
Keep = Callable[[str, Simulated], None]


def compare(
    question: Question,
    clock_s: Callable[[], float],
    progress: Progress = lambda _name, _share: None,
    keep: Keep = lambda _name, _outcome: None,
) -> Answer:
    """Run everything. ``clock_s`` counts CPU seconds; ``progress(what, share)`` is told how far each step is;
    ``keep(policy, outcome)`` gets every run, which is let go before the next begins: a week's fills memory."""
    check_policy_names(question.policies)
    trace, profile = question.trace, question.profile
    tables = {tp: ShapeTables.of(profile, tp) for tp in profile.tps}
    warm_up(profile, trace, SinglePool(1, max(profile.tps)))
    runner = _Runner(question, tables, clock_s, progress)
    marks = _Marks(question, progress, keep)
    tp, effort = max(profile.tps), Effort()
    replicas, sizing_runs = _baseline(runner, marks, effort)
    baseline_gpus = replicas * tp
    gpus = max(64, ROOM_FACTOR * baseline_gpus) if question.gpus is None else question.gpus
    idle_gpus = question.idle_gpus(baseline_gpus)
    idle_gpu_w = 0.0 if question.idle is IdleGpus.RELEASED else profile.gpu.idle_w
    today = None if question.today is None else str(question.today)
    if question.today is not None and today is not None:
        held, running = question.today.gpus, question.today
        todays = SinglePool(running.replicas, running.tp, running.clock_mhz)
        ran = runner.run(today, trace, todays, question.idle_gpus(held), held)
        marks.give(today, *ran, effort)
    contest = Contest(
        *(trace, profile, question.settings, tables, question.attainment, gpus, idle_gpu_w, replicas),
        runner.searching(effort, idle_gpus),
    )
    fleets = {}
    for name in question.policies:
        if name in YARDSTICKS:
            found = YARDSTICKS[name](contest)
            fleets[name] = found.fleet
            marks.give(name, found.outcome, Effort(), effort)
        elif name != SINGLE_POOL:
            fleet = hosted_policy(name, trace, question.settings, profile, gpus, idle_gpu_w)
            marks.give(name, *runner.run(name, trace, fleet, idle_gpus, gpus), effort)
    bound = energy_bound(
        trace,
        tables,
        question.slo,
        idle_gpus=idle_gpus,
        until_s=runner.until_s(trace),
        attainment=question.attainment,
        progress=lambda share: progress("bound", share),
    )
    return Answer(
        marks.scores,
        marks.curves,
        replicas,
        sizing_runs,
        bound,
        gpus,
        idle_gpus,
        attainment=question.attainment,
        fleets=fleets,
        effort=effort,
        today=today,
    )


class _Marks:
    """Takes each run's score and curve, so that the run itself need not be kept."""

    def __init__(self, question: Question, progress: Progress, keep: Keep) -> None:
        self._slo, self._progress, self._keep = question.slo, progress, keep
        self.scores: dict[str, Score] = {}
        self.curves: dict[str, Curve] = {}

    def give(self, name: str, outcome: Simulated, spent: Effort, total: Effort) -> None:
        total.cpu_s += spent.cpu_s
        total.policy_cpu_s += spent.policy_cpu_s
        self._progress(f"scoring {name}", 0.0)
        self.scores[name] = score(outcome, self._slo)
        self.curves[name] = curve(outcome, self._slo)
        self._keep(name, outcome)
        self._progress(f"scoring {name}", 1.0)


class _Runner:
    def __init__(
        self,
        question: Question,
        tables: Mapping[int, ShapeTables],
        clock_s: Callable[[], float],
        progress: Progress,
    ) -> None:
        self.question, self.tables, self._clock_s, self._progress = question, tables, clock_s, progress
        settings = question.settings
        startup_s = settings.sharding.startup_s if question.startup_s is None else question.startup_s
        self._times = ClusterTimes.for_startup(startup_s)

    def searching(self, effort: Effort, idle_gpus: int) -> Play:
        """Runs that look for a yardstick, charged to the sizing."""

        def play(label: str, trace: Trace, fleet: Fleet, gpus: int | None, watch: Watch | None) -> Simulated:
            outcome, one = self.run(label, trace, fleet, idle_gpus, gpus, watch)
            effort.sizing_cpu_s += one.cpu_s + one.policy_cpu_s
            return outcome

        return play

    @staticmethod
    def until_s(trace: Trace) -> float:
        return trace.duration_s + SETTLE_S

    def run(
        self,
        name: str,
        trace: Trace,
        fleet: Fleet,
        idle_gpus: int,
        gpus: int | None = None,
        watch: Watch | None = None,
    ) -> tuple[Simulated, Effort]:
        end_s = self.until_s(trace)

        def watched(now_s: float, arrived: int, columns: RequestColumns) -> bool:
            self._progress(name, min(1.0, now_s / end_s))
            return watch is None or watch(now_s, arrived, columns)

        start_s = self._clock_s()
        cluster = SimulatedCluster(
            self.question.profile,
            gpus,
            fleet,
            sample_s=max(1.0, end_s / 3000),
            idle_gpus=idle_gpus,
            times=self._times,
            tables=self.tables,
            slo=self.question.slo,
            policy_clock_s=self._clock_s,
        )
        outcome = cluster.run(trace, end_s, watched)
        cpu_s = self._clock_s() - start_s
        return outcome, Effort(max(0.0, cpu_s - cluster.policy_s), cluster.policy_s)


def _baseline(runner: _Runner, marks: _Marks, effort: Effort) -> tuple[int, int]:
    """Sizes the baseline and gives it its marks from the very run that found it: (replicas, sizing runs)."""
    question, tp = runner.question, max(runner.question.profile.tps)
    spent: dict[int, Effort] = {}

    def run(trace: Trace, replicas: int, watch: Watch) -> Simulated:
        where = "" if trace is question.trace else " on an excerpt"
        name = f"sizing {SINGLE_POOL}{where}: {replicas} × TP{tp}"
        fleet, idle_gpus = SinglePool(replicas, tp), question.idle_gpus(replicas * tp)
        outcome, one = runner.run(name, trace, fleet, idle_gpus, watch=watch)
        effort.sizing_cpu_s += one.cpu_s + one.policy_cpu_s
        spent[replicas] = one
        return outcome

    sizing = fewest_replicas(question.trace, runner.tables[tp], question.slo, run, question.attainment)
    least = sizing.replicas * tp
    if question.gpus is not None and question.gpus < least:
        raise GpuBudgetError(
            f"{question.gpus} GPUs are too few: {SINGLE_POOL} holds the SLO for {question.attainment:.0%} of this "
            f"trace with {sizing.replicas} × TP{tp}, so at least {least} GPUs work"
        )
    reported = spent[sizing.replicas]
    effort.sizing_cpu_s -= reported.cpu_s + reported.policy_cpu_s
    marks.give(SINGLE_POOL, sizing.outcome, reported, effort)
    return sizing.replicas, sizing.runs
