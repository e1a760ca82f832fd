"""A profile composed from a database's step times: what an iteration takes at each tensor parallelism, sampled finely,
and what it draws by its roofline shares.

The database times one operation after the other, too shortly for the power limit to hold the clock: its prefills are
15 to 25 % quicker than whole iterations that we measured on an H100 and an H200. So its times are taken to be those of
the highest clock, and the model of the GPU's power says to which clock the limit holds an iteration; lower clocks are
scaled by roofline share. Its tables fall by a few percent at tile steps and jump at others: every count of tokens is
sampled, and where a table falls, neighbours are pooled.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from control_plane.hardware.energy_profile import memory_slowdown
from control_plane.hardware.fitted_times import pooled
from control_plane.hardware.gpu_power import SHAPE_ONLY, SHAPE_ONLY_ERROR, GpuPower, policy_clocks
from control_plane.hardware.iteration_tables import Floats
from control_plane.hardware.profile_file import (
    SCHEMA,
    GpuPart,
    PointPart,
    ProfileError,
    ProfileFile,
    ReplicaPart,
    ShapePart,
)

DECODE_CONTEXTS = (256, 512, 1024, 2048, 4096, 8192)
"""At which decodes are sampled."""
TYPICAL_CONTEXT = 1536
"""Where the straight line in contexts is exact."""
PREFIXES = (0, 2048, 8192)
CURVE_TOLERANCE = 0.002
"""Points left out of the file are met by straight lines within this."""


class StepTimes(Protocol):
    """One tensor parallelism in the database. Milliseconds of one iteration of the whole model."""

    @property
    def kv_tokens(self) -> int:
        """The KV cache beside the weights."""
        ...

    @property
    def reading_ms(self) -> float:
        """Reading the weights that one token needs, at the memory's rate."""
        ...

    def decode_ms(self, batch: int, context: int) -> float: ...
    def prefill_ms(self, tokens: int, before: int) -> float:
        """A chunk of one prompt of which ``before`` tokens are prefilled already."""
        ...

    def waiting_ms(self, tokens: int) -> float:
        """Of such an iteration, what goes to exchanges between GPUs."""
        ...


@dataclass(frozen=True, slots=True)
class Build:
    """What is built: its name, the GPU, and the engine's settings."""

    name: str
    power: GpuPower
    source: str
    era: str
    notes: Sequence[str] = ()
    batch_tokens: int = 2048
    batch_requests: int = 256
    overhead_ms: float = 0.0
    """Of the engine on the host, an iteration."""
    freqs_mhz: Sequence[int] = ()
    """Policies' clocks; seven of the GPU's where none are given."""
    errors: Mapping[str, float] | None = None


@dataclass(frozen=True, slots=True)
class Composed:
    """One tensor parallelism at the database's own clocks: milliseconds by tokens from 1 on, a decoder's context token
    and a pair of prefill tokens; shares of the time by tokens."""

    alpha_ms: Floats
    context_ms: float
    pair_ms: float
    waiting_ms: Floats
    products: Floats
    reading: Floats

    @property
    def waiting(self) -> Floats:
        return np.minimum(0.95, self.waiting_ms / self.alpha_ms)


def compose(times: StepTimes, batch_tokens: int, batch_requests: int) -> Composed:
    """Sample one tensor parallelism. Raises ProfileError where its times make no sense."""
    most = batch_tokens + batch_requests
    tokens = np.arange(1, most + 1)
    context_ms = _context_ms(times, batch_requests)
    pair_ms = _pair_ms(times, batch_tokens)
    small = tokens[: min(batch_requests, most)]
    decodes = np.array([times.decode_ms(batch, TYPICAL_CONTEXT) for batch in small.tolist()])
    decodes -= context_ms * small * TYPICAL_CONTEXT
    large = tokens[len(small) :]
    prefills = np.array([times.prefill_ms(count, 0) for count in large.tolist()]) - pair_ms * large * (large + 1) / 2
    alpha_ms = np.concatenate([decodes, prefills])
    if not np.all(np.isfinite(alpha_ms)) or alpha_ms.min() <= 0:
        raise ProfileError(f"the database's times are no times: {alpha_ms.min():g} ms at least")
    alpha_ms = pooled(alpha_ms)
    waiting_ms = np.interp(tokens, *_sampled(times.waiting_ms, most))
    own_ms = np.maximum(0.05 * alpha_ms, alpha_ms - waiting_ms)
    half = most // 2
    token_ms = max(0.0, float((own_ms[-1] - own_ms[half]) / (most - 1 - half)))
    products = np.minimum(1.0, token_ms * tokens / own_ms)
    reading = np.minimum(1.0 - products, times.reading_ms / own_ms)
    return Composed(alpha_ms, context_ms, pair_ms, waiting_ms, products, reading)


def build_profile(build: Build, times: Mapping[int, StepTimes]) -> ProfileFile:
    """The profile as a file. Raises ProfileError."""
    power = build.power
    clocks = tuple(build.freqs_mhz) or policy_clocks(power)
    shapes: list[ShapePart] = []
    replicas: list[ReplicaPart] = []
    for tp, steps in sorted(times.items()):
        composed = compose(steps, build.batch_tokens, build.batch_requests)
        replicas.append(ReplicaPart(tp=tp, kv_tokens=steps.kv_tokens, context_ns_per_token=composed.context_ms * 1e6))
        shapes += _shapes(tp, clocks, composed, power, build)
    spec = power.spec()
    notes = [
        *build.notes,
        f"composed from times of single operations at {clocks[-1]} MHz; the power limit and lower clocks are modelled",
    ]
    notes += [f"{name} {one.watts:.0f} W: {one.origin}, {one.error:.0%}" for name, one in power.constants.items()]
    if power.error > SHAPE_ONLY_ERROR:
        notes.append(SHAPE_ONLY)
    return ProfileFile(
        schema_=SCHEMA,
        name=build.name,
        era=build.era,
        source=build.source,
        notes=tuple(notes),
        errors={"power": power.error, **(build.errors or {})},
        gpu=GpuPart(
            name=power.name,
            idle_w=spec.idle_w,
            context_w=spec.context_w,
            power_limit_w=spec.power_limit_w,
            mem_w=spec.mem_w,
            sm_w=spec.sm_w,
            knee_mhz=spec.knee_mhz,
            knee_voltage_ratio=spec.knee_voltage_ratio,
        ),
        batch_tokens=build.batch_tokens,
        batch_requests=build.batch_requests,
        freqs_mhz=clocks,
        measured_freqs_mhz=(clocks[-1],),
        replicas=tuple(replicas),
        shapes=tuple(shapes),
    )


def _shapes(tp: int, clocks: Sequence[int], composed: Composed, power: GpuPower, build: Build) -> Sequence[ShapePart]:
    """One TP at every clock, all over the same counts of tokens."""
    spec = power.spec()
    waits_ms = composed.waiting_ms + build.overhead_ms
    whole_ms = composed.alpha_ms + build.overhead_ms
    own_ms = np.maximum(0.0, whole_ms - waits_ms)
    work = power.activities(composed.products, composed.reading, np.minimum(1.0, waits_ms / whole_ms))
    held_mhz = np.minimum.accumulate([spec.held_mhz(activity) for activity in work])
    drawn_w = np.array([spec.sm_w * activity.sm + spec.mem_w * activity.mem for activity in work])
    limited_ms = np.maximum.accumulate(whole_ms * spec.max_freq_mhz / held_mhz)
    kept = sorted({at for curve in (whole_ms, limited_ms, drawn_w) for at in kept_points(curve)})
    shapes = []
    for clock in clocks:
        ratio = spec.max_freq_mhz / np.minimum(clock, held_mhz)
        slower = composed.products * ratio + (1.0 - composed.products) * memory_slowdown(ratio)
        ms = np.maximum.accumulate(own_ms * slower + (whole_ms - own_ms))
        full = min(build.batch_tokens, len(ms)) - 1
        shapes.append(
            ShapePart(
                tp=tp,
                freq_mhz=clock,
                attention_ps_per_pair=composed.pair_ms * float(ratio[full]) * 1e9,
                points=tuple(
                    PointPart(
                        tokens=at + 1,
                        iteration_ms=round(float(ms[at]), 5),
                        steady_w=round(spec.mem_w * work[at].mem, 2),
                        clocked_w=round(spec.sm_w * work[at].sm, 2),
                    )
                    for at in kept
                ),
            )
        )
    return shapes


def _context_ms(times: StepTimes, batch_requests: int) -> float:
    """A context token's milliseconds: least squares of relative errors, every batch with a level of its own. Where
    few decode, contexts cost next to nothing, so the batches that fill the GPU decide."""
    batches = sorted({batch for batch in (8, 16, 32, 64, 128, 256) if batch <= batch_requests} | {batch_requests})
    above = below = 0.0
    for batch in batches:
        ms = np.array([times.decode_ms(batch, context) for context in DECODE_CONTEXTS])
        tokens = batch * np.array(DECODE_CONTEXTS, dtype=np.float64)
        weight = 1 / ms**2
        centre = tokens - (weight @ tokens) / weight.sum()
        above += float((weight * centre) @ ms)
        below += float((weight * centre) @ tokens)
    return max(0.0, above / below)


def _pair_ms(times: StepTimes, batch_tokens: int) -> float:
    """What a pair of a chunk's token and an earlier one costs."""
    chunk = min(batch_tokens, 2048)
    ms = [times.prefill_ms(chunk, before) for before in PREFIXES]
    slope = np.polyfit(np.array(PREFIXES, dtype=np.float64) * chunk, ms, 1)[0]
    return max(0.0, float(slope))


def _sampled(ask: "Asked", most: int) -> tuple[Floats, Floats]:
    """The answers at about forty counts of tokens."""
    counts = np.unique(np.rint(np.geomspace(1, most, 40)).astype(int))
    return counts.astype(np.float64), np.array([ask(count) for count in counts.tolist()])


class Asked(Protocol):
    def __call__(self, tokens: int) -> float: ...


def kept_points(ms: Floats) -> Sequence[int]:
    """Indices of the points that straight lines between them need, ends included (Douglas and Peucker)."""
    kept, spans = {0, len(ms) - 1}, [(0, len(ms) - 1)]
    while spans:
        first, last = spans.pop()
        if last - first < 2:
            continue
        inside = np.arange(first + 1, last)
        straight = ms[first] + (ms[last] - ms[first]) * (inside - first) / (last - first)
        apart = np.abs(straight / ms[inside] - 1)
        worst = int(apart.argmax())
        if apart[worst] > CURVE_TOLERANCE:
            at = int(inside[worst])
            kept.add(at)
            spans += [(first, at), (at, last)]
    return sorted(kept)
