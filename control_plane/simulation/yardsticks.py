"""What a policy is measured by beside the baseline: fleets that know the trace, each found by simulating it.

``static-best``: one pool that never changes, the cheapest tensor parallelism, clock and number of replicas that hold
the SLO on the very trace: the honest expert. ``static-split``: the same with phases apart. ``clock-only``: TP8
replicas under a clock rule of a few lines, the fewest that hold the SLO. ``clairvoyant``: phases apart, sized for the
load of the next minutes, which it knows; it pays its starts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from control_plane.baselines.clock_rule import ClockRule
from control_plane.baselines.single_pool import SinglePool
from control_plane.baselines.split_fleets import Clairvoyant, StaticSplit
from control_plane.domain import PoolName, Slo
from control_plane.hardware.machine_profile import MachineProfile
from control_plane.hardware.replica_model import PS_PER_S
from control_plane.hardware.shape_tables import ShapeTables
from control_plane.serving.arrival_log import Arrivals
from control_plane.serving.policies.phases_apart import DECODE, LONG, SHORT
from control_plane.serving.policy import GpuBudgetError, HandOver, NoHandOverError, Site
from control_plane.serving.sized_fleet import BurstRule
from control_plane.settings import Settings
from control_plane.simulation.fleet import Fleet
from control_plane.simulation.outcome import Simulated
from control_plane.simulation.sizing import (
    EXCERPT_REQUESTS,
    LateCount,
    SloUnreachableError,
    Watch,
    excerpt_one_in,
    fewest_replicas,
)
from control_plane.simulation.trace import Trace
from control_plane.simulation.what_if import hosted, site_for

Play = Callable[[str, Trace, Fleet, int | None, Watch | None], Simulated]
"""(what it is, trace, fleet, GPUs there are, watch) -> its run."""

MORE_ONE_IN = 16
"""Larger and slower static fleets are tried in steps of so small a share of their replicas."""
PATIENCE = 4
MARGINS = (1.0, 1.15, 1.3, 1.5, 1.8, 2.2)
"""A fleet sized by a fluid is tried for so many times the load, until it holds the SLO."""


@dataclass(frozen=True, slots=True)
class Contest:
    """What yardsticks are found for. ``baseline``: replicas of single-pool, where the search begins."""

    trace: Trace
    profile: MachineProfile
    settings: Settings
    tables: Mapping[int, ShapeTables]
    attainment: float
    gpus: int
    idle_gpu_w: float
    baseline: int
    play: Play

    @property
    def slo(self) -> Slo:
        return self.settings.slo.slo()

    @property
    def site(self) -> Site:
        return site_for(self.trace, self.settings, self.profile, self.gpus, self.idle_gpu_w)

    def holds(self, outcome: Simulated) -> bool:
        return outcome.complete and outcome.slo_attainment(self.slo) >= self.attainment

    def watch(self) -> Watch:
        """Stops a run that can no longer hold the SLO."""
        return LateCount(self.trace, self.slo, self.attainment)


@dataclass(frozen=True, slots=True)
class Found:
    """A yardstick's fleet in words, its run, and how many runs of the trace it took."""

    fleet: str
    outcome: Simulated
    runs: int


@dataclass(frozen=True, slots=True)
class _Static:
    """A pool that never changes, and its run."""

    replicas: int
    tp: int
    freq_mhz: int
    outcome: Simulated

    def __str__(self) -> str:
        return f"{self.replicas} × TP{self.tp}@{self.freq_mhz}"


def static_best(contest: Contest) -> Found:
    """For each tensor parallelism the fewest replicas that hold the SLO at full clock, and more of them at the lowest
    clock that then does, until ``PATIENCE`` more steps save nothing. Of a long trace an excerpt is searched."""
    one_in = len(contest.trace) // EXCERPT_REQUESTS
    if one_in < 4:
        best, runs = _cheapest_static(contest)
        return Found(str(best), best.outcome, runs)
    found, runs = _cheapest_static(replace(contest, trace=excerpt_one_in(contest.trace, one_in)))
    replicas = found.replicas
    while True:
        outcome = _play_static(contest, replicas, found.tp, found.freq_mhz)
        runs += 1
        if contest.holds(outcome):
            return Found(str(_Static(replicas, found.tp, found.freq_mhz, outcome)), outcome, runs)
        if replicas > 2 * found.replicas + 2:
            raise SloUnreachableError(f"static-best: even {replicas} replicas do not hold the SLO on the whole trace")
        replicas += 1


def _cheapest_static(contest: Contest) -> tuple[_Static, int]:
    best: _Static | None = None
    runs = 0
    for tp in sorted(contest.profile.tps, reverse=True):
        try:
            found, more = _best_clock(contest, tp)
        except SloUnreachableError:
            continue
        runs += more
        if best is None or found.outcome.energy_j < best.outcome.energy_j:
            best = found
    if best is None:
        raise SloUnreachableError(f"no static pool holds the SLO for {contest.attainment:.1%}")
    return best, runs


def _play_static(contest: Contest, replicas: int, tp: int, freq_mhz: int) -> Simulated:
    label = f"static-best: {replicas} × TP{tp}@{freq_mhz}"
    return contest.play(label, contest.trace, SinglePool(replicas, tp, freq_mhz), replicas * tp, contest.watch())


def _best_clock(contest: Contest, tp: int) -> tuple[_Static, int]:
    top = contest.profile.max_freq_mhz

    def play(trace: Trace, replicas: int, watch: Watch) -> Simulated:
        label = f"static-best: {replicas} × TP{tp}@{top}"
        return contest.play(label, trace, SinglePool(replicas, tp, top), replicas * tp, watch)

    sized = fewest_replicas(contest.trace, contest.tables[tp], contest.slo, play, contest.attainment)
    best, runs = _Static(sized.replicas, tp, top, sized.outcome), sized.runs
    clocks = sorted(contest.profile.freqs_mhz)
    step = max(1, sized.replicas // MORE_ONE_IN)
    replicas, in_vain = sized.replicas, 0
    while in_vain < PATIENCE:
        found, more = _slowest_clock(contest, replicas, tp, clocks)
        runs += more
        in_vain += 1
        for outcome in found:
            if outcome.outcome.energy_j < best.outcome.energy_j:
                best, in_vain = outcome, 0
        replicas += step
    return best, runs


def _slowest_clock(contest: Contest, replicas: int, tp: int, clocks: Sequence[int]) -> tuple[list[_Static], int]:
    """By bisection the lowest clock at which so many replicas hold the SLO; every run that did hold it."""
    held: list[_Static] = []
    low, high, runs = -1, len(clocks) - 1, 0
    while high - low > 1:
        middle = (low + high) // 2
        outcome = _play_static(contest, replicas, tp, clocks[middle])
        runs += 1
        if contest.holds(outcome):
            held.append(_Static(replicas, tp, clocks[middle], outcome))
            high = middle
        else:
            low = middle
    return held, runs


def clock_only(contest: Contest) -> Found:
    """The fewest TP8 replicas that hold the SLO under the rule; no fewer than single-pool has."""
    tp = max(contest.profile.tps)
    replicas, runs = contest.baseline, 0
    while True:
        fleet = ClockRule(replicas, tp, contest.profile)
        label = f"{replicas} × TP{tp} by the clock rule"
        outcome = contest.play(f"clock-only: {label}", contest.trace, fleet, replicas * tp, contest.watch())
        runs += 1
        if contest.holds(outcome):
            return Found(label, outcome, runs)
        if replicas > 2 * contest.baseline + 2:
            raise SloUnreachableError(f"clock-only: even {replicas} replicas do not hold the SLO")
        replicas += 1


def static_split(contest: Contest) -> Found:
    """From what a fluid replay of the whole trace needs downwards, pool by pool, while the SLO holds."""
    site = contest.site
    hand_over = _hand_over(site)
    fleet = StaticSplit(site, hand_over, {})
    sizer, tps = fleet.sizer(BurstRule(1.0, 0.0, 1.0), decode_factor=1.0), fleet.tps
    arrivals, runs = _arrivals(contest.trace, 0.0, contest.trace.duration_s + 1.0), 0

    def counts(replicas: Mapping[PoolName, int]) -> str:
        return " + ".join(f"{replicas[pool]} × TP{tps[pool]}" for pool in (SHORT, LONG, DECODE))

    def play(replicas: Mapping[PoolName, int]) -> Simulated:
        nonlocal runs
        runs += 1
        policy = StaticSplit(site, hand_over, replicas)
        label = f"static-split: {counts(replicas)}"
        return contest.play(label, contest.trace, hosted(policy, site), contest.gpus, contest.watch())

    for margin in MARGINS:
        replicas = dict(sizer(arrivals, 0.0, margin))
        outcome = play(replicas)
        if contest.holds(outcome):
            break
    else:
        raise SloUnreachableError(f"static-split: {counts(replicas)} do not hold the SLO")
    for pool in sorted(replicas, key=lambda pool: -replicas[pool]):
        step = max(1, replicas[pool] // 4)
        while step:
            fewer = replicas | {pool: replicas[pool] - step}
            if fewer[pool] >= 1:
                tried = play(fewer)
                if contest.holds(tried) and tried.energy_j < outcome.energy_j:
                    replicas, outcome = fewer, tried
                    continue
            step //= 2
    return Found(f"{counts(replicas)} apart", outcome, runs)


def clairvoyant(contest: Contest) -> Found:
    """The least margin at which it holds the SLO; where none does, the run with the largest."""
    site = contest.site
    hand_over = _hand_over(site)

    def future(from_s: float, to_s: float) -> Arrivals:
        return _arrivals(contest.trace, from_s, to_s)

    runs = 0
    for margin in MARGINS:
        runs += 1
        policy = Clairvoyant(site, hand_over, future, margin)
        label = f"clairvoyant, load times {margin}"
        watch = contest.watch() if margin != MARGINS[-1] else None
        outcome = contest.play(label, contest.trace, hosted(policy, site), contest.gpus, watch)
        if contest.holds(outcome):
            break
    return Found(f"load of the next minutes known, times {margin}", outcome, runs)


YARDSTICKS: Mapping[str, Callable[[Contest], Found]] = {
    "static-best": static_best,
    "static-split": static_split,
    "clock-only": clock_only,
    "clairvoyant": clairvoyant,
}


def _hand_over(site: Site) -> HandOver:
    if site.hand_over is None:
        raise NoHandOverError("static-split and clairvoyant need engines that hand KV caches over: set phases to auto")
    least = StaticSplit(site, site.hand_over, {}).least_gpus
    if site.gpus < least:
        raise GpuBudgetError(f"{site.gpus} GPUs are too few for static-split and clairvoyant; at least {least} work")
    return site.hand_over


def _arrivals(trace: Trace, from_s: float, to_s: float) -> Arrivals:
    first, last = np.searchsorted(trace.arrival_ps, [round(from_s * PS_PER_S), round(to_s * PS_PER_S)])
    part = slice(int(first), int(last))
    inputs, outputs = trace.input_tokens[part].astype(float), trace.output_tokens[part].astype(float)
    return Arrivals(trace.arrival_ps[part] / PS_PER_S, inputs, outputs)
