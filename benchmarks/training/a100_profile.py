"""Simulated A100s in the shape of a measured profile: a GPU model and the work of its stages that fit it.

Times are fitted as compute·f_max/f + memory, powers as what waiting draws plus a share per clock that all computations
have in common; ``worst_misfit`` says how far the fit is off.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np

from control_plane.hardware.gpu_model import Activity, GpuSpec
from control_plane.hardware.stage_model import StageWork
from control_plane.training.profile import Choice, ComputationKey, read_profile

BLOCKING_W = 83.64
"""Of an A100, in the paper's artifact."""


@dataclass(frozen=True, slots=True)
class Shaped:
    """``work`` by (stage, instruction); ``worst_misfit`` is the largest error of a fitted time or energy."""

    spec: GpuSpec
    work: Mapping[ComputationKey, StageWork]
    worst_misfit: float


def shaped_like(path: Path, stages: int, time_scale: float, settle_s: float) -> Shaped:
    """The first and last of a profile's stages and what is between, times scaled; clocks settle in ``settle_s``."""
    profile = read_profile(path.read_text()).resampled(stages)
    clocks = sorted({c.freq_mhz for choices in profile.choices.values() for c in choices})
    top_mhz = clocks[-1]
    by_clock = {key: {c.freq_mhz: c for c in choices} for key, choices in profile.choices.items()}
    top_w = {key: _w(found[top_mhz]) - BLOCKING_W for key, found in by_clock.items()}
    most_w = max(top_w.values())
    shares = [
        fmean((_w(found[mhz]) - BLOCKING_W) / top_w[key] for key, found in by_clock.items() if mhz in found)
        for mhz in clocks
    ]
    spec = GpuSpec(
        name="A100-shaped",
        freqs_mhz=tuple(clocks),
        idle_w=BLOCKING_W,
        context_w=BLOCKING_W,
        mem_w=0.0,
        sm_w=most_w,
        knee_mhz=clocks[0],
        knee_voltage_ratio=1.0,
        power_limit_w=2 * (BLOCKING_W + most_w),
        settle_ns=round(settle_s * 1e9),
        sm_shares=tuple(share / shares[-1] for share in shares),
    )
    work = {key: _work(found, top_mhz, time_scale, top_w[key] / most_w) for key, found in by_clock.items()}
    misfits = [
        abs(fitted / (measured * time_scale) - 1)
        for key, found in by_clock.items()
        for c in found.values()
        for fitted, measured in (
            (work[key].time_s(spec, c.freq_mhz), c.time_s),
            (work[key].energy_j(spec, c.freq_mhz), c.energy_j),
        )
    ]
    return Shaped(spec, work, max(misfits))


def _w(choice: Choice) -> float:
    return choice.energy_j / choice.time_s


def _work(found: Mapping[int, Choice], top_mhz: int, time_scale: float, share: float) -> StageWork:
    stretch = np.array([[top_mhz / mhz, 1.0] for mhz in found])
    measured_s = np.array([choice.time_s for choice in found.values()])
    (compute_s, memory_s), *_ = np.linalg.lstsq(stretch, measured_s, rcond=None)
    return StageWork(float(compute_s) * time_scale, max(0.0, float(memory_s)) * time_scale, Activity(share, 0.0))
