"""A profile file from what the profiler measured, with its uncertainty; and everything that was measured, as JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from control_plane.hardware.fitted_times import pooled
from control_plane.hardware.profile_file import (
    SCHEMA,
    GpuPart,
    PointPart,
    ProfileError,
    ProfileFile,
    ReplicaPart,
    ShapePart,
)
from wattray.profiler import Measured

LEAST_POINTS = 2


@dataclass(frozen=True, slots=True)
class Subject:
    """What was measured. Watts at rest are of one GPU, with a context and (``idle_w``) without."""

    name: str
    gpu_name: str
    gpus: int
    kv_tokens: int
    context_w: float
    idle_w: float
    power_limit_w: float
    source: str


def profile_of(subject: Subject, measured: Sequence[Measured]) -> ProfileFile:
    """Times by tokens never fall: neighbours that do are pooled. Raises ProfileError for a clock with too few loads."""
    clocks = sorted({row.freq_mhz for row in measured})
    shapes = tuple(_shape(subject, clock, [row for row in measured if row.freq_mhz == clock]) for clock in clocks)
    longest = min(shape.points[-1].tokens for shape in shapes)
    return ProfileFile(
        schema_=SCHEMA,
        name=subject.name,
        era="measured",
        source=subject.source,
        notes=(
            "attention of prompts and of contexts is not taken off the times",
            *(_note(row) for row in sorted(measured, key=lambda row: (row.freq_mhz, row.tokens))),
        ),
        gpu=GpuPart(
            name=subject.gpu_name,
            idle_w=subject.idle_w,
            context_w=subject.context_w,
            power_limit_w=subject.power_limit_w,
        ),
        batch_tokens=longest,
        batch_requests=max((row.tokens for row in measured if row.tokens <= longest), default=1),
        freqs_mhz=tuple(clocks),
        replicas=(ReplicaPart(tp=subject.gpus, kv_tokens=subject.kv_tokens),),
        shapes=shapes,
    )


def _shape(subject: Subject, clock_mhz: int, rows: Sequence[Measured]) -> ShapePart:
    by_tokens = {row.tokens: row for row in rows}
    if len(by_tokens) < LEAST_POINTS:
        raise ProfileError(f"{clock_mhz} MHz: {len(by_tokens)} loads were measured; at least {LEAST_POINTS} are needed")
    tokens = sorted(by_tokens)
    times_ms = np.exp(pooled(np.log([by_tokens[at].iteration_s.mean * 1e3 for at in tokens])))
    points = tuple(
        PointPart(tokens=at, iteration_ms=float(ms), power_w=by_tokens[at].power_w.mean)
        for at, ms in zip(tokens, times_ms, strict=True)
    )
    return ShapePart(tp=subject.gpus, freq_mhz=clock_mhz, points=points)


def _note(row: Measured) -> str:
    time_ms, power = row.iteration_s, row.power_w
    marks = ("" if row.steady else ", power was not steady") + (
        ", clock held down by heat or power" if row.capped else ""
    )
    return (
        f"{row.freq_mhz} MHz (ran at {row.observed_mhz:.0f}), {row.tokens} tokens: {time_ms.mean * 1e3:.4g} ms "
        f"± {time_ms.ratio:.1%}, {power.mean:.4g} W ± {power.ratio:.1%} (95 %, {power.count} windows){marks}"
    )


def everything(subject: Subject, measured: Sequence[Measured]) -> Mapping[str, Any]:
    return {"subject": asdict(subject), "measured": [asdict(row) for row in measured]}
