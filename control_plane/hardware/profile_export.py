"""Any profile as a profile file: its tables at the clocks that policies choose from, and its powers as the GPU model
has them."""

from collections.abc import Mapping

import numpy as np

from control_plane.hardware.machine_profile import MachineProfile
from control_plane.hardware.profile_build import kept_points
from control_plane.hardware.profile_file import (
    SCHEMA,
    GpuPart,
    PointPart,
    ProfileFile,
    ReplicaPart,
    ShapePart,
)
from control_plane.hardware.replica_model import PS_PER_S
from control_plane.settings import SloSettings

PS_PER_MS = PS_PER_S / 1e3


def exported(profile: MachineProfile, note: str, errors: Mapping[str, float]) -> ProfileFile:
    """``note`` joins the notes, ``errors`` replace those of the same name."""
    gpu, slo, evidence = profile.gpu, profile.slo, profile.evidence
    first = profile.limits(profile.tps[0])
    shapes = [shape for tp in profile.tps for shape in _shapes(profile, tp)]
    return ProfileFile(
        schema_=SCHEMA,
        name=profile.name,
        era=evidence.era,
        source=evidence.source,
        notes=(*evidence.notes, note),
        errors={**evidence.errors, **errors},
        gpu=GpuPart(
            name=gpu.name,
            idle_w=gpu.idle_w,
            context_w=gpu.context_w,
            power_limit_w=gpu.power_limit_w,
            settle_ms=gpu.settle_ns / 1e6,
            mem_w=gpu.mem_w,
            sm_w=gpu.sm_w,
            knee_mhz=gpu.knee_mhz,
            knee_voltage_ratio=gpu.knee_voltage_ratio,
            sm_shares=None if gpu.sm_shares is None else tuple(gpu.sm_scale(freq) for freq in profile.freqs_mhz),
        ),
        slo=SloSettings(
            ttft_short_s=slo.ttft_short_s,
            ttft_medium_s=slo.ttft_medium_s,
            ttft_long_s=slo.ttft_long_s,
            tbt_s=slo.tbt_s,
        ),
        batch_tokens=first.batch_tokens,
        batch_requests=first.batch_requests,
        freqs_mhz=tuple(profile.freqs_mhz),
        measured_freqs_mhz=tuple(freq for freq in evidence.measured_freqs_mhz if freq in profile.freqs_mhz),
        measured_batch=evidence.measured_batch,
        measured_input=evidence.measured_input,
        replicas=tuple(
            ReplicaPart(
                tp=tp,
                kv_tokens=profile.limits(tp).kv_tokens,
                context_ns_per_token=profile.times(tp).context_ps / 1e3,
            )
            for tp in profile.tps
        ),
        shapes=tuple(shapes),
    )


def _shapes(profile: MachineProfile, tp: int) -> list[ShapePart]:
    times, gpu, limits = profile.times(tp), profile.gpu, profile.limits(tp)
    length = limits.batch_tokens + limits.batch_requests
    tables = {freq: np.array(times.alpha_ps(freq)[1:]) / PS_PER_MS for freq in profile.freqs_mhz}
    drawn_w = np.array(
        [work.sm * gpu.sm_w + work.mem * gpu.mem_w for work in map(times.activity, range(1, 1 + length))]
    )
    kept = sorted({at for curve in (*tables.values(), drawn_w) for at in kept_points(curve)})
    return [
        ShapePart(
            tp=tp,
            freq_mhz=freq,
            attention_ps_per_pair=float(times.attention_ps(freq)),
            points=tuple(
                PointPart(
                    tokens=at + 1,
                    iteration_ms=float(ms[at]),
                    steady_w=gpu.mem_w * times.activity(at + 1).mem,
                    clocked_w=gpu.sm_w * times.activity(at + 1).sm,
                )
                for at in kept
            ),
        )
        for freq, ms in tables.items()
    ]
