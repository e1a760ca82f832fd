"""What a job's computations are charged on simulated GPUs, which run nothing: invented, layer by layer."""

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import Field, model_validator

from control_plane.hardware.gpu_model import H100_SXM, Activity, GpuSpec
from control_plane.hardware.stage_model import StageWork
from control_plane.training.schedules import BACKWARD, FORWARD
from train_jobs.file_part import FilePart


class LayerCost(FilePart):
    """What one layer is charged for one micro-batch on a simulated GPU, at the highest clock."""

    forward_s: float = Field(0.024, gt=0)
    backward_ratio: float = Field(2.0, gt=0)
    """A backward takes this many times the forward: gradients of inputs and of weights."""
    compute_share: float = Field(0.75, gt=0, le=1)
    """The part that stretches as the clock falls; the rest is memory traffic."""
    sm: float = Field(0.85, ge=0, le=1)
    mem: float = Field(0.45, ge=0, le=1)
    """Shares of SM and memory power while it runs: large matrix products keep the SMs busy."""


class SweepSettings(FilePart):
    """Which clocks the job measures itself at."""

    clocks_mhz: tuple[int, ...] | None = Field(None, min_length=2)
    """Default: ten of the GPU's own, from the highest to about half of it."""
    idle_s: float = Field(0.1, gt=0)
    """Blocking power is measured over this long."""

    @model_validator(mode="after")
    def _clocks_exist(self) -> "SweepSettings":
        if self.clocks_mhz is None:
            return self
        unknown = sorted(set(self.clocks_mhz) - set(H100_SXM.freqs_mhz))
        if unknown:
            nearest = H100_SXM.supported_at_most(unknown[0])
            raise ValueError(f"{H100_SXM.name} has no clock of {unknown[0]} MHz; the nearest is {nearest}")
        if H100_SXM.max_freq_mhz not in self.clocks_mhz:
            raise ValueError(f"the highest clock, {H100_SXM.max_freq_mhz} MHz, must be measured")
        return self

    def clocks_on(self, gpu: GpuSpec) -> tuple[int, ...]:
        """The clocks to measure on this GPU, highest first. Raises ValueError where it lacks one that was asked for."""
        if self.clocks_mhz is None:
            wished = (round(gpu.max_freq_mhz * (1 - 0.525 * i / 9)) for i in range(10))
            return tuple(sorted({gpu.supported_at_most(mhz) for mhz in wished}, reverse=True))
        unknown = sorted(set(self.clocks_mhz) - set(gpu.freqs_mhz))
        if unknown or gpu.max_freq_mhz not in self.clocks_mhz:
            wrong = f"it has no {unknown[0]} MHz" if unknown else f"its highest, {gpu.max_freq_mhz} MHz, is not listed"
            raise ValueError(wrong)
        return self.clocks_mhz


@dataclass(frozen=True, slots=True)
class ParameterCosts:
    """What a user's own stages are charged: as a layer would be, in proportion to the parameters that a rank holds.
    ``shares`` are each rank's over the mean; all of a rank's ``chunks`` together take what one stage would."""

    layer: LayerCost
    shares: Mapping[int, float]
    chunks: int = 1

    def work(self, rank: int, instruction: str) -> StageWork:
        """One micro-batch's computation of one chunk. A backward in two parts takes as long as in one."""
        time_s = self.layer.forward_s * self.shares[rank] / self.chunks
        if instruction == BACKWARD:
            time_s *= self.layer.backward_ratio
        elif instruction != FORWARD:
            time_s *= self.layer.backward_ratio / 2
        compute_s = time_s * self.layer.compute_share
        return StageWork(compute_s, time_s - compute_s, Activity(self.layer.sm, self.layer.mem))


@dataclass(frozen=True, slots=True)
class StageCosts:
    """What every stage's computations take on a healthy GPU; ``layers`` is by stage."""

    layer: LayerCost
    layers: tuple[int, ...]

    def work(self, stage: int, instruction: str) -> StageWork:
        """One micro-batch's forward or backward."""
        layer = self.layer
        time_s = self.layers[stage] * layer.forward_s
        if instruction == BACKWARD:
            time_s *= layer.backward_ratio
        compute_s = time_s * layer.compute_share
        return StageWork(compute_s, time_s - compute_s, Activity(layer.sm, layer.mem))

    def healthy_s(self, gpu: GpuSpec, microbatches: int) -> float:
        """GPU time of an iteration at full clock: every stage once, and the heaviest for the other micro-batches."""
        times_s = [
            sum(self.work(stage, name).time_s(gpu, gpu.max_freq_mhz) for name in (FORWARD, BACKWARD))
            for stage in range(len(self.layers))
        ]
        return sum(times_s) + (microbatches - 1) * max(times_s)
