"""Which stages of a pipeline lag, and by how much, from its own compute times: none needs to see another's clock.

Each stage has a sequential test (Page's CUSUM) on the logarithm of its reported ratios, in units of the noise that the
stage itself has shown. What is known already is an argument, so a detector that restarts ends what an earlier one
found.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from statistics import median

from control_plane.training.drift import MOST_REPORTS, is_drift
from control_plane.training.job_spec import StageRatios
from control_plane.training.profile import Choice, ComputationKey

MEAN_STEP_IN_SIGMAS = 1.128
"""Mean distance of two independent normal numbers, in standard deviations."""

DRIFT_STEP = 0.05
"""Lags that grow are planned for in such steps, so that a drift does not change the plan with every percent."""


@dataclass(frozen=True, slots=True)
class DetectorSettings:
    """When slow is slow. Thresholds of the tests are in standard deviations of a stage's reports.

    A CUSUM of allowance k and threshold h raises one false alarm in about exp(2 k (h + 1.17)) / (2 k^2) reports of
    normal noise (Siegmund 1985). The noise is taken as larger than it was estimated, by the estimate's own error;
    `benchmarks.frontier.detection` measures the rates of both tests together.
    """

    margin_ratio: float = 0.03
    """A stage that is slower than planned by less is not worth another plan."""
    fast_allowance: float = 1.3
    fast_threshold: float = 3.75
    """Finds a step of three standard deviations in three or four reports."""
    slow_allowance: float = 0.45
    slow_threshold: float = 18.0
    """Finds a step of one standard deviation, which takes some thirty reports."""
    most_from_one_report: float = 0.6
    """Share of a threshold that one report may add: one page fault or checkpoint is no straggler."""
    recovery_threshold: float = 5.0
    """Log-likelihood ratio at which a lag has ended. Ending one late costs more than finding it again."""
    refined_after: int = 8
    """A lag is estimated once more after so many reports, since the first estimate rests on two or three."""
    first_sigma: float = 0.04
    """Noise assumed of a stage that has reported nothing yet, with the weight of `first_weight` reports."""
    first_weight: int = 8
    most_weight: int = 256
    least_sigma: float = 0.005

    def __post_init__(self) -> None:
        for name in ("margin_ratio", "fast_threshold", "slow_threshold", "recovery_threshold", "least_sigma"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be positive and finite, got {value}")
        if not 0.5 <= self.most_from_one_report < 1:
            raise ValueError(f"most_from_one_report must be in [0.5, 1), got {self.most_from_one_report}")


@dataclass(frozen=True, slots=True)
class MeasuredComputation:
    """One computation as it ran; `power_limit_w` is 0 on a GPU that is steered by its clock."""

    stage: int
    instruction: str
    freq_mhz: int
    time_s: float
    power_limit_w: int = 0


@dataclass(frozen=True, slots=True)
class RunningMean:
    """Mean of the logarithms since a test was last at zero: the change-point estimate of what has begun."""

    sum_log: float = 0.0
    count: int = 0

    def __add__(self, log_ratio: float) -> "RunningMean":
        return RunningMean(self.sum_log + log_ratio, self.count + 1)

    @property
    def mean(self) -> float:
        return self.sum_log / max(1, self.count)


@dataclass(frozen=True, slots=True)
class Cusum:
    """One test: evidence for a change, and the mean of the reports that gave it."""

    evidence: float = 0.0
    since: RunningMean = RunningMean()

    def plus(self, increment: float, log_ratio: float) -> "Cusum":
        evidence = self.evidence + increment
        return Cusum(evidence, self.since + log_ratio) if evidence > 0 else Cusum()


@dataclass(frozen=True, slots=True)
class StageTest:
    """What the reports of one stage leave behind."""

    sigma: float
    weight: int
    last_log: float | None = None
    fast: Cusum = Cusum()
    slow: Cusum = Cusum()
    recovery: Cusum = Cusum()
    lag: RunningMean | None = None
    """Reports since a lag was found, until it is refined."""
    recent: tuple[float, ...] = ()
    """The last reports, from which a drift is told from a step."""
    drifting: bool = False
    """Whether the lag that is known goes on growing."""

    def observe(self, log_ratio: float, level: float, settings: DetectorSettings) -> tuple["StageTest", float]:
        """The next state, and the level (a logarithm, 0 is healthy) that the stage is at from now on."""
        sigma = max(settings.least_sigma, self.sigma * (1 + 1 / math.sqrt(self.weight)))
        test = self._with_noise_of(log_ratio, settings)
        excess = log_ratio - level
        margin = math.log1p(settings.margin_ratio)

        def added(allowance: float, threshold: float) -> float:
            increment = (excess - max(allowance * sigma, margin / 2)) / sigma
            return min(increment, settings.most_from_one_report * threshold)

        fast = self.fast.plus(added(settings.fast_allowance, settings.fast_threshold), log_ratio)
        slow = (
            self.slow.plus(added(settings.slow_allowance, settings.slow_threshold), log_ratio) if not level else Cusum()
        )
        recovery = self.recovery.plus(level * (level / 2 - log_ratio) / sigma**2, log_ratio) if level else Cusum()
        lag = self.lag + log_ratio if self.lag is not None else None
        recent = (*self.recent, log_ratio)[-MOST_REPORTS:]
        test = replace(test, fast=fast, slow=slow, recovery=recovery, lag=lag, recent=recent)

        for cusum, threshold in ((fast, settings.fast_threshold), (slow, settings.slow_threshold)):
            if cusum.evidence > threshold and cusum.since.mean > level + margin:
                found = replace(test._restarted(cusum.since), drifting=is_drift(recent, sigma))
                return found, cusum.since.mean
        if recovery.evidence > settings.recovery_threshold:
            least = recovery.since.mean - 1.5 * sigma / math.sqrt(recovery.since.count)
            if least <= margin:
                return replace(test._restarted(None), drifting=False, recent=()), 0.0
            if recovery.since.count > 1:
                return test._restarted(recovery.since), recovery.since.mean
        if level and lag is not None and lag.count >= settings.refined_after and not self.drifting:
            refined = lag.mean if abs(lag.mean - level) > margin / 2 and lag.mean > margin else level
            return replace(test, lag=None), refined
        return test, level

    def _with_noise_of(self, log_ratio: float, settings: DetectorSettings) -> "StageTest":
        """Noise from distances of successive reports: a step or a drift hardly moves it."""
        if self.last_log is None:
            return replace(self, last_log=log_ratio)
        step = min(abs(log_ratio - self.last_log), 3 * MEAN_STEP_IN_SIGMAS * max(self.sigma, settings.least_sigma))
        weight = min(self.weight + 1, settings.most_weight)
        sigma = self.sigma + (step / MEAN_STEP_IN_SIGMAS - self.sigma) / weight
        return replace(self, sigma=sigma, weight=weight, last_log=log_ratio)

    def _restarted(self, lag: RunningMean | None) -> "StageTest":
        return replace(self, fast=Cusum(), slow=Cusum(), recovery=Cusum(), lag=lag)


@dataclass(frozen=True, slots=True)
class Detector:
    """The tests of one pipeline's stages."""

    settings: DetectorSettings = DetectorSettings()
    stages: tuple[StageTest, ...] = ()

    @property
    def drifting(self) -> tuple[int, ...]:
        """Stages whose known lag is a drift: it goes on growing, where a step stays as it is."""
        return tuple(stage for stage, test in enumerate(self.stages) if test.drifting)

    def observe(self, ratios: StageRatios, known: StageRatios) -> tuple["Detector", StageRatios | None]:
        """The next detector, and what to plan for from now on where that is not what is ``known``: per stage its lag in
        whole percent, so that plans are used again, or 1; a drift is planned for ahead, in steps of five percent.
        ``known`` is empty where no lag is. Raises ValueError where a ratio is not positive and finite; the detector
        then stays as it was."""
        for stage, ratio in enumerate(ratios):
            if not (math.isfinite(ratio) and ratio > 0):
                raise ValueError(f"stage {stage}: a ratio must be positive and finite, got {ratio}")
        before = known or (1.0,) * len(ratios)
        settings = self.settings
        tests = self.stages or (StageTest(settings.first_sigma, settings.first_weight),) * len(ratios)
        stages: list[StageTest] = []
        now: list[float] = []
        for test, ratio, was in zip(tests, ratios, before, strict=True):
            following, level = test.observe(math.log(ratio), math.log(was), settings)
            stages.append(following)
            now.append(was if level == math.log(was) else _quantised(level, following.drifting))
        return Detector(settings, tuple(stages)), tuple(now) if tuple(now) != before else None


def _quantised(level: float, drifting: bool) -> float:
    """A lag as it is planned for; one that grows soon needs the next step anyway."""
    ratio = math.exp(level)
    return round(math.ceil(ratio / DRIFT_STEP - 1e-9) * DRIFT_STEP, 2) if drifting else round(ratio, 2)


def stage_ratios(
    profile: Mapping[ComputationKey, tuple[Choice, ...]], stages: int, measured: Iterable[MeasuredComputation]
) -> StageRatios:
    """Per stage, the median of measured over profiled time at the same setting: half of a stage's computations may be
    disturbed without moving it. A computation at a setting that was never profiled says nothing; nor does a stage
    without any other (1). Where the profile is of power limits (clock 0), the clock that came about does not count."""
    profiled_s = {
        (key, choice.freq_mhz, choice.power_limit_w): choice.time_s
        for key, choices in profile.items()
        for choice in choices
    }
    ratios: list[list[float]] = [[] for _ in range(stages)]
    for step in measured:
        key = (step.stage, step.instruction)
        expected_s = profiled_s.get((key, step.freq_mhz, step.power_limit_w))
        if expected_s is None and step.power_limit_w:
            expected_s = profiled_s.get((key, 0, step.power_limit_w))
        if expected_s:
            ratios[step.stage].append(step.time_s / expected_s)
    return tuple(median(found) if found else 1.0 for found in ratios)
