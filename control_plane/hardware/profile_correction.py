"""Keeping a profile true: factors on its times, by phase, and on its power, from what a deployment measures.

A factor of 1.1 on decode says that iterations take a tenth longer than the profile says. Factors are bounded: beyond
the bounds a profile is wrong, not off, and that is told instead of corrected.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

from control_plane.domain import Shape
from control_plane.hardware.bench_results import BenchRun
from control_plane.hardware.closed_loop import served
from control_plane.hardware.iteration_tables import Floats, IterationTables
from control_plane.hardware.machine_profile import MachineProfile
from control_plane.hardware.replica_model import PS_PER_S

LEAST, MOST = 0.6, 1.7
DECODE_TOKENS = 256
"""Up to this many tokens an iteration is taken to be decoders, and prompts beyond."""


@dataclass(frozen=True, slots=True)
class Factors:
    """Measured over modelled: iterations of decoders, prefilled tokens, watts above idle."""

    decode: float = 1.0
    prefill: float = 1.0
    power: float = 1.0

    def bounded(self) -> "Factors":
        return Factors(*(min(MOST, max(LEAST, one)) for one in (self.decode, self.prefill, self.power)))

    def apart(self, other: "Factors") -> float:
        """The largest ratio between the two, less 1."""
        pairs = ((self.decode, other.decode), (self.prefill, other.prefill), (self.power, other.power))
        return max(abs(math.log(mine / theirs)) for mine, theirs in pairs)


def corrected(profile: MachineProfile, factors: Factors) -> MachineProfile:
    """The same machine with these factors on its tables: closed forms, simulator and live engine read one truth."""
    if factors == Factors():
        return profile
    gpu = profile.gpu
    times = {tp: _corrected_tables(profile, tp, factors) for tp in profile.tps}
    work = replace(gpu, mem_w=gpu.mem_w * factors.power, sm_w=gpu.sm_w * factors.power)
    evidence = profile.evidence
    note = f"corrected: decode x{factors.decode:.3f}, prefill x{factors.prefill:.3f}, power x{factors.power:.3f}"
    return MachineProfile(
        profile.name,
        work,
        profile.slo,
        profile.freqs_mhz,
        times,
        {tp: profile.limits(tp) for tp in profile.tps},
        replace(evidence, notes=(*evidence.notes, note)),
        profile.energy_table,
    )


def corrected_seconds(seconds: Floats, factors: Factors) -> Floats:
    """Seconds by tokens from 0 on: decoders' part by one factor, what more tokens add by the other."""
    knee = min(DECODE_TOKENS, len(seconds) - 1)
    decoders = np.minimum(seconds, seconds[knee])
    return np.maximum.accumulate(factors.decode * decoders + factors.prefill * (seconds - decoders))


def _corrected_tables(profile: MachineProfile, tp: int, factors: Factors) -> IterationTables:
    times, limits = profile.times(tp), profile.limits(tp)
    length = limits.batch_tokens + limits.batch_requests + 1

    def seconds(freq_mhz: int, tokens: Floats) -> Floats:
        table = corrected_seconds(np.array(times.alpha_ps(freq_mhz)) / PS_PER_S, factors)
        result: Floats = np.interp(tokens, np.arange(length), table)
        return result

    return IterationTables(
        seconds,
        profile.gpu.freqs_mhz,
        {freq: times.attention_ps(freq) / PS_PER_S * factors.prefill for freq in profile.gpu.freqs_mhz},
        times.context_ps / PS_PER_S * factors.decode,
        [times.activity(tokens) for tokens in range(length)],
    )


# a profile beside a load generator's results


@dataclass(frozen=True, slots=True)
class Compared:
    """A run and what the profile makes of it."""

    run: BenchRun
    ttft_s: float
    tpot_s: float
    kv_bound: bool
    """Whether requests waited for the KV cache in the model: then its size decides, not the times."""
    power_w: float
    """Mean of the replica in the model."""
    lasts_s: float

    @property
    def ttft_error(self) -> float:
        return self.ttft_s / self.run.ttft_s - 1

    @property
    def tpot_error(self) -> float:
        return self.tpot_s / self.run.tpot_s - 1


def compare(
    profile: MachineProfile, tp: int, freq_mhz: int, runs: Sequence[BenchRun], overhead_s: float = 0.0
) -> Sequence[Compared]:
    """Every run as a closed loop through the replica model, lengths evenly around their means."""
    found = []
    for run in runs:
        concurrency = max(1, round(run.concurrency))
        spread = 0.8
        lengths = round(run.prompt_tokens / 0.9), max(1, round(run.answer_tokens / 0.9))
        requests = min(run.requests or 10 * concurrency, 10 * concurrency, 2000)
        played = served(
            profile.times(tp),
            profile.limits(tp),
            freq_mhz,
            concurrency,
            max(concurrency, requests),
            lengths,
            spread,
            profile.machine(Shape(tp, freq_mhz)).power_w,
        )
        ttft_s, bound = played.mean_ttft_s + overhead_s, played.kv_bound > 0.02
        found.append(Compared(run, ttft_s, played.mean_tpot_s, bound, played.mean_power_w, played.duration_s))
    return found


def fitted(profile: MachineProfile, tp: int, freq_mhz: int, runs: Sequence[BenchRun]) -> Factors:
    """Factors of decode and prefill that bring the runs nearest, within the bounds. Times to first token of the runs
    with the fewest in flight tell prefills: with many, the pattern of arrivals decides."""
    factors, fewest = Factors(), min(run.concurrency for run in runs)
    table = np.array(profile.times(tp).alpha_ps(freq_mhz)) / PS_PER_S
    for _ in range(6):
        now = [one for one in compare(corrected(profile, factors), tp, freq_mhz, runs) if not one.kv_bound]
        if not now:
            return Factors()
        lone = [one for one in now if one.run.concurrency <= 1.5 * fewest] or now
        decode = factors.decode * float(np.median([one.run.tpot_s / one.tpot_s for one in now]))
        steps = [
            (one.run.ttft_s / one.ttft_s - 1) / share
            for one in lone
            for share in (_prefilled_share(table, factors, one),)
            if share > 0.2
        ]
        # Prompts too short to tell apart from decoders leave prefills at the decoders' factor.
        prefill = factors.prefill * max(0.5, 1 + float(np.median(steps))) if steps else decode
        after = Factors(decode, prefill, factors.power).bounded()
        if after.apart(factors) < 0.005:
            return after
        factors = after
    return factors


def _prefilled_share(table: Floats, factors: Factors, one: Compared) -> float:
    """Of a time to first token, what the prefill's factor multiplies."""
    prompt, most = round(one.run.prompt_tokens), len(table) - 1
    whole, rest = divmod(prompt, most)
    beyond_s = whole * (table[most] - table[DECODE_TOKENS]) + max(0.0, table[rest] - table[DECODE_TOKENS])
    return min(1.0, float(factors.prefill * beyond_s / one.ttft_s))


# live


class Phase(StrEnum):
    DECODE = "decode"
    PREFILL = "prefill"
    POWER = "power"


@dataclass(frozen=True, slots=True)
class CorrectionRules:
    """How slowly. Half of a step of the measured ratio is in the factor after ``half_life_s``; a replica counts only
    ``warm_after_s`` after it became ready; factors are handed on once they moved by ``step``."""

    half_life_s: float = 600.0
    warm_after_s: float = 120.0
    step: float = 0.02
    least_samples: int = 30


@dataclass(frozen=True, slots=True)
class _Level:
    log_ratio: float = 0.0
    samples: int = 0
    at_s: float = 0.0


class SlowCorrection:
    """The planner's own correction of its profile: one bounded factor a phase, from ratios measured in use."""

    def __init__(self, rules: CorrectionRules, stated_errors: Mapping[Phase, float]) -> None:
        """``stated_errors``: what the profile says of itself, as ratios; a tenth where it says nothing."""
        self._rules, self._stated = rules, stated_errors
        self._levels = {phase: _Level() for phase in Phase}
        self._handed_on = Factors()

    def see(self, phase: Phase, now_s: float, modelled: float, measured: float, ready_for_s: float) -> None:
        """One replica's reading. Cold starts and readings without a meaning (zero, not finite) are left out."""
        if ready_for_s < self._rules.warm_after_s or not (modelled > 0 and 0 < measured < math.inf):
            return
        ratio = math.log(min(4.0, max(0.25, measured / modelled)))
        level = self._levels[phase]
        share = 1.0 - 0.5 ** (max(0.0, now_s - level.at_s) / self._rules.half_life_s)
        if level.samples < self._rules.least_samples:
            share = 1.0 / (level.samples + 1)  # The mean, until enough was seen to be believed.
        moved = level.log_ratio + share * (ratio - level.log_ratio)
        self._levels[phase] = _Level(moved, level.samples + 1, now_s)

    def factors(self) -> Factors:
        """What plans are made with: moves in steps, and only once enough was seen."""
        wanted = Factors(*(self._known(phase) for phase in Phase)).bounded()
        if wanted.apart(self._handed_on) >= self._rules.step:
            self._handed_on = wanted
        return self._handed_on

    def disagreements(self) -> dict[Phase, float]:
        """Phases whose measured ratio is further from 1 than the profile's stated error, and by how much: a warning
        is due, and headroom."""
        found = {}
        for phase in Phase:
            apart = abs(math.expm1(math.log(self._known(phase))))
            if apart > self._stated.get(phase, 0.10):
                found[phase] = apart
        return found

    def headroom_factor(self) -> float:
        """What times are to be multiplied by while they disagree with the profile: half of the disagreement more."""
        apart = self.disagreements()
        return 1.0 + 0.5 * max(apart.get(Phase.DECODE, 0.0), apart.get(Phase.PREFILL, 0.0))

    def _known(self, phase: Phase) -> float:
        level = self._levels[phase]
        return math.exp(level.log_ratio) if level.samples >= self._rules.least_samples else 1.0
