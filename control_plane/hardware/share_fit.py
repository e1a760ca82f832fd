"""One GPU's share of a model at any tensor parallelism: iteration times and power by roofline share, fitted to
measured points, under a power limit that holds the clock.

Milliseconds in the parameters, seconds out. ``tokens`` are those of one iteration. The highest clock is where
nothing is slowed down; the power limit may hold the GPU below it (``GpuSpec.held_mhz``).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict

from control_plane.hardware.energy_profile import memory_slowdown
from control_plane.hardware.gpu_model import Activity, GpuSpec
from control_plane.hardware.iteration_tables import Floats

CLOCKED_SHARE = 0.70
"""How much of the power that memory-bound work draws above an idle context follows f·V². Fitted to the one public
set that varies the SM clock (RTX PRO 6000, 28 cells, power within 6 % in the mean); never measured on an H100."""


class ShareFit(BaseModel):
    """Iterations of a share without all-reduces and without an engine.

    Time: a norm of what does not depend on tokens (launches, reading the weights) and of the matrix products, plus
    elementwise work, contexts of decoders and prefill attention. Power above an idle context: what any running
    kernel draws, reading weights by the share of time it would take alone, and products likewise.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    launch_ms: float
    weights_ms: float
    """Reading the weights on one GPU; a share takes 1/tp of it."""
    token_ms: float
    """A token's matrix products on one GPU at the highest clock."""
    activation_ms: float
    """A token's work that is not shared among the GPUs."""
    exponent: float
    context_ms: float
    """A token of a decoder's context on one GPU."""
    attention_ms: float
    """A pair of tokens in a prefill on one GPU."""
    busy_w: float
    memory_w: float
    compute_w: float

    def share_s(self, tp: int, tokens: Floats, ratio: Floats | float = 1.0) -> Floats:
        """Seconds of an iteration, contexts and attention left out, at a clock ``ratio`` times below the highest."""
        fixed = (self.launch_ms + self.weights_ms / tp) * memory_slowdown(np.asarray(ratio, dtype=np.float64))
        products = self.token_ms * tokens / tp * ratio
        norm = (fixed**self.exponent + products**self.exponent) ** (1 / self.exponent)
        result: Floats = (norm + self.activation_ms * tokens) / 1e3
        return result

    def context_s(self, tp: int) -> float:
        return self.context_ms / tp / 1e3

    def attention_s(self, tp: int, ratio: float = 1.0) -> float:
        return self.attention_ms * ratio / tp / 1e3

    def draws(self, tp: int, tokens: Floats) -> tuple[Floats, Floats]:
        """Watts above an idle context at the highest clock, without a power limit: what does not follow the clock,
        and what does."""
        whole_ms = self.share_s(tp, tokens) * 1e3
        products = np.minimum(1.0, self.token_ms * tokens / tp / whole_ms)
        reading = self.weights_ms / tp / whole_ms
        steady = self.busy_w * (1.0 - products) + self.memory_w * reading
        return (1.0 - CLOCKED_SHARE) * steady, CLOCKED_SHARE * steady + self.compute_w * products

    def waiting_w(self) -> tuple[float, float]:
        """The same while a kernel runs that waits for other GPUs."""
        return (1.0 - CLOCKED_SHARE) * self.busy_w, CLOCKED_SHARE * self.busy_w


@dataclass(frozen=True, slots=True)
class EngineCosts:
    """What an engine adds to a share's iteration."""

    overhead_s: float
    """Scheduling, sampling and hand-over on the host, at any clock."""
    layers: int
    allreduce_us: Mapping[int, "AllReduceFit"]
    """By tensor parallelism; two are run a layer."""

    def waiting_s(self, tp: int, tokens: Floats) -> Floats:
        """Seconds of an iteration in which the GPU waits for its peers or for the host."""
        reduce = self.allreduce_us.get(tp)
        shared_s = 0.0 if reduce is None else 2 * self.layers * reduce.us(tokens) / 1e6
        result: Floats = self.overhead_s + shared_s + 0.0 * tokens
        return result


class AllReduceFit(BaseModel):
    """Microseconds of one all-reduce by tokens: a latency, and a rate once messages are large."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    latency_us: float
    token_us: float
    exponent: float

    def us(self, tokens: Floats) -> Floats:
        latency, moving = self.latency_us**self.exponent, (self.token_us * tokens) ** self.exponent
        result: Floats = (latency + moving) ** (1 / self.exponent)
        return result


def activities(gpu: GpuSpec, steady_w: Floats, clocked_w: Floats) -> tuple[Activity, ...]:
    """Watts above an idle context as shares of the GPU model's two parts."""
    pairs = zip((clocked_w / gpu.sm_w).tolist(), (steady_w / gpu.mem_w).tolist(), strict=True)
    return tuple(Activity(sm=sm, mem=mem) for sm, mem in pairs)
