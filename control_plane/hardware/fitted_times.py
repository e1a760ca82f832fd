"""Iteration times as formulas with fitted parameters, and how measured cells are pinned on top of a fit.

Milliseconds in the parameters, seconds out. Every formula takes the clock as a ratio to the highest and is exact only
at ratio 1, where the measurements were made: other clocks follow the scaling named in each.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict

from control_plane.hardware.energy_profile import memory_slowdown
from control_plane.hardware.iteration_tables import Floats


class _Fit(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Cell(_Fit):
    """A measured iteration: tokens in it and how long it took, contexts and attention taken off."""

    tokens: int
    ms: float


class WholePassFit(_Fit):
    """Prefill and decode of a 2023 engine: whole prompts in one pass, launched from the CPU.

    Prefill is the sixth-power norm of a launch floor and of matrix products plus all-reduces, which change algorithm
    above ``switch_tokens``. Decode is a floor (weights, launch, all-reduces) plus c·B + q·B²/tp.
    Clocks: matrix products as 1/f; floors and decode as memory-bound work.
    """

    floor_ms: float
    linear_ms: float
    """A token's matrix products on one GPU."""
    attention_ms: float
    """A pair of tokens on one GPU."""
    allreduce_ms: float
    switch_ms: float
    switch_tokens: int
    weights_ms: float
    launch_ms: float
    peer_ms: float
    decoder_ms: float
    decoder2_ms: float

    def prefill_s(self, tp: int, tokens: Floats, ratio: float = 1.0) -> Floats:
        shared = (tp - 1) / tp * self.allreduce_ms * tokens
        switched = np.log2(tp / 2) * self.switch_ms * np.where(tokens > self.switch_tokens, tokens, 0.0)
        work = self.linear_ms * ratio * tokens / tp + shared + switched
        floor = self.floor_ms * memory_slowdown(ratio)
        result: Floats = (floor**6 + work**6) ** (1 / 6) / 1e3
        return result

    def decode_s(self, tp: int, batch: Floats, ratio: float = 1.0) -> Floats:
        floor = self.weights_ms / tp + self.launch_ms + self.peer_ms * (tp - 1)
        result: Floats = floor + self.decoder_ms * batch + self.decoder2_ms * batch**2 / tp
        return result * memory_slowdown(ratio) / 1e3

    def iteration_s(self, tp: int, tokens: Floats, ratio: float = 1.0) -> Floats:
        """Few tokens run as a decode, many as a prefill: whichever is quicker."""
        return np.minimum(self.decode_s(tp, tokens, ratio), self.prefill_s(tp, tokens, ratio))

    def attention_s(self, tp: int, ratio: float = 1.0) -> float:
        return self.attention_ms * ratio / tp / 1e3


class NormFit(_Fit):
    """Iterations of a current engine on one GPU: a norm of the memory-bound floor and of the tokens' work, plus
    contexts. Measured at default clocks, where the power limit holds matrix products to about ``capped_mhz``: a
    higher lock changes nothing for them. Below: matrix products as 1/f, the floor as memory-bound work."""

    floor_ms: float
    token_ms: float
    exponent: float
    context_ms: float
    attention_ms: float
    capped_mhz: int

    def iteration_s(self, tokens: Floats, freq_mhz: int, max_freq_mhz: int) -> Floats:
        floor = self.floor_ms * memory_slowdown(max_freq_mhz / freq_mhz)
        work = self.token_ms * self.compute_ratio(freq_mhz) * tokens
        result: Floats = (floor**self.exponent + work**self.exponent) ** (1 / self.exponent) / 1e3
        return result

    def compute_ratio(self, freq_mhz: int) -> float:
        return self.capped_mhz / min(freq_mhz, self.capped_mhz)


class PowerFit(_Fit):
    """Watts of one GPU by tokens in an iteration: memory power falls and SM power rises as products saturate it."""

    mem_w: float
    sm_w: float
    saturation_tokens: float


@dataclass(frozen=True, slots=True)
class Pins:
    """Measured cells as factors on a fit: exact at the cells, in between by the logarithm of the tokens."""

    log_tokens: Floats
    log_factors: Floats

    @classmethod
    def of(cls, cells: Sequence[Cell], fitted_s: Floats) -> "Pins":
        """Cells in ascending order of tokens, and what the fit says at each. Where measured times fall as tokens
        rise, neighbours are pooled: a heavier iteration is never quicker."""
        tokens = np.array([float(cell.tokens) for cell in cells])
        measured = pooled(np.log([cell.ms / 1e3 for cell in cells]))
        return cls(np.log(tokens), measured - np.log(fitted_s))

    def factors(self, tokens: Floats) -> Floats:
        result: Floats = np.exp(np.interp(np.log(np.maximum(tokens, 1.0)), self.log_tokens, self.log_factors))
        return result


def pooled(values: Floats) -> Floats:
    """The closest non-decreasing values in the least-squares sense (pool adjacent violators)."""
    means: list[float] = []
    counts: list[int] = []
    for value in values:
        means.append(float(value))
        counts.append(1)
        while len(means) > 1 and means[-2] > means[-1]:
            total = means[-2] * counts[-2] + means[-1] * counts[-1]
            count = counts.pop() + counts.pop()
            means[-2:] = [total / count]
            counts.append(count)
    return np.repeat(means, counts)


def rising(values: Floats) -> Floats:
    """The values with every fall levelled: never less than any before."""
    return np.maximum.accumulate(values)
