"""A GPU's power by roofline share: a few constants per GPU, each with its origin and its error.

Above an idle context an iteration draws ``busy_w`` while any kernel runs, ``memory_w`` by the share of its time that
reading the weights takes, and ``compute_w`` by the share that matrix products take. Products follow f·V²; of the rest
``CLOCKED_SHARE`` does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from control_plane.hardware.gpu_model import H100_SXM, Activity, GpuSpec
from control_plane.hardware.h100_profile import h100_fit
from control_plane.hardware.iteration_tables import Floats
from control_plane.hardware.share_fit import CLOCKED_SHARE, activities

SHAPE_ONLY_ERROR = 0.10
"""From this error on a profile says that only ratios of its powers are to be trusted."""
SHAPE_ONLY = "power is shape only: trust ratios, not joules"


@dataclass(frozen=True, slots=True)
class Constant:
    """A number in watts, where it comes from, and by how much it may be off, as a ratio."""

    watts: float
    origin: str
    error: float


@dataclass(frozen=True, slots=True)
class GpuPower:
    """One GPU type."""

    name: str
    freqs_mhz: Sequence[int]
    """Every clock that it supports, ascending."""
    idle: Constant
    """No process holds a context."""
    context: Constant
    """A context is held and nothing runs."""
    busy: Constant
    memory: Constant
    compute: Constant
    limit_w: float

    @property
    def constants(self) -> Mapping[str, Constant]:
        return {
            "idle_w": self.idle,
            "context_w": self.context,
            "busy_w": self.busy,
            "memory_w": self.memory,
            "compute_w": self.compute,
        }

    @property
    def error(self) -> float:
        """The largest error of the constants that make up the power of work."""
        return max(self.busy.error, self.memory.error, self.compute.error)

    def spec(self, freqs_mhz: Sequence[int] | None = None) -> GpuSpec:
        """As the GPU model simulates it, with these clocks or all."""
        top, share = self.freqs_mhz[-1], self.limit_w / H100_SXM.power_limit_w
        return GpuSpec(
            name=self.name,
            freqs_mhz=tuple(freqs_mhz or self.freqs_mhz),
            idle_w=self.idle.watts,
            context_w=self.context.watts,
            mem_w=H100_SXM.mem_w * share,
            sm_w=H100_SXM.sm_w * share,
            knee_mhz=round(H100_SXM.knee_mhz * top / H100_SXM.max_freq_mhz),
            knee_voltage_ratio=H100_SXM.knee_voltage_ratio,
            power_limit_w=self.limit_w,
            settle_ns=H100_SXM.settle_ns,
        )

    def activities(self, products: Floats, reading: Floats, waiting: Floats) -> tuple[Activity, ...]:
        """Of iterations in which these shares of the time go to matrix products, to reading weights and to waiting
        for other GPUs, at the highest clock."""
        steady = self.busy.watts * (1.0 - products * (1.0 - waiting)) + self.memory.watts * reading * (1.0 - waiting)
        clocked = CLOCKED_SHARE * steady + self.compute.watts * products * (1.0 - waiting)
        return activities(self.spec(), (1.0 - CLOCKED_SHARE) * steady, clocked)


def h100_sxm() -> GpuPower:
    fit = h100_fit()
    origin = "117 points of Llama2-70B's shares on one H100, default clocks, 700 W"
    error = fit.errors["power_held_out"]
    measured = "one H100, NVML"
    return GpuPower(
        name=H100_SXM.name,
        freqs_mhz=H100_SXM.freqs_mhz,
        idle=Constant(77.6, measured, 0.01),
        context=Constant(123.6, measured, 0.01),
        busy=Constant(fit.share.busy_w, origin, error),
        memory=Constant(fit.share.memory_w, origin, error),
        compute=Constant(fit.share.compute_w, origin, error),
        limit_w=H100_SXM.power_limit_w,
    )


def h200_sxm() -> GpuPower:
    """The H100's die: its constants, and the idle powers and the limit that were measured on one H200."""
    measured = "one H200, NVML"
    board = "the H100's constants on the same die; against 56 points of Llama-8B on one H200"
    ours = h100_sxm()
    return replace(
        ours,
        name="H200-SXM-141GB",
        idle=Constant(84.0, measured, 0.01),
        context=Constant(127.0, measured, 0.01),
        busy=Constant(ours.busy.watts, board, H200_ERROR),
        memory=Constant(ours.memory.watts, board, H200_ERROR),
        compute=Constant(ours.compute.watts, board, H200_ERROR),
    )


H200_ERROR = 0.045
"""Mean error of the H100's constants on the H200's points (benchmarks/profiles/compare_built.py, docs/profiles.md)."""


def scaled(name: str, limit_w: float, top_mhz: int) -> GpuPower:
    """A GPU of which nothing but its power limit and its highest clock is known: the H100's constants by the limit."""
    ours, share = h100_sxm(), limit_w / H100_SXM.power_limit_w
    origin = f"the H100's, scaled by the vendor's limit of {limit_w:g} W"

    def part(constant: Constant) -> Constant:
        return Constant(round(constant.watts * share, 1), origin, UNMEASURED_ERROR)

    return GpuPower(
        name=name,
        freqs_mhz=tuple(np.unique(np.append(np.arange(top_mhz % 15 or 15, top_mhz + 1, 15), top_mhz)).tolist()),
        idle=part(ours.idle),
        context=part(ours.context),
        busy=part(ours.busy),
        memory=part(ours.memory),
        compute=part(ours.compute),
        limit_w=limit_w,
    )


UNMEASURED_ERROR = 0.30
"""By how much powers scaled from another GPU may be off; boards of one type already differ by a tenth."""

TOP_MHZ = {
    "a100_sxm": 1410, "a100_pcie": 1410, "a30": 1440, "h100_pcie": 1755, "l4": 2040, "l40s": 2520,
    "b200_sxm": 1965, "b300_sxm": 1920, "gb200": 1965, "gb300": 1920, "rtx_pro_6000_server": 2430,
}  # fmt: skip
"""Highest SM clocks by NVML or data sheet, where nothing was measured by us."""


KNOWN = ("h100_sxm", "h200_sxm", *TOP_MHZ)


def gpu_power(system: str, limit_w: float) -> GpuPower:
    """By the name of a system in NVIDIA's database; ``limit_w`` is the vendor's. Raises KeyError for an unknown
    one."""
    if system == "h100_sxm":
        return h100_sxm()
    if system == "h200_sxm":
        return h200_sxm()
    return scaled(system, limit_w, TOP_MHZ[system])


def policy_clocks(power: GpuPower) -> tuple[int, ...]:
    """Seven clocks from two fifths of the highest up, each supported: what policies choose from."""
    top = power.freqs_mhz[-1]
    wanted = np.linspace(0.4 * top, top, 7)
    clocks = np.array(power.freqs_mhz)
    return tuple(sorted({int(clocks[np.abs(clocks - mhz).argmin()]) for mhz in wanted}))
