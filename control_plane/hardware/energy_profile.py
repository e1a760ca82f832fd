"""What a replica of a shape does under a load: power, TTFT, TBT, and the highest load that meets the SLO.

The closed forms below describe exactly the machine that ``replica_model`` steps through, seen from far away, so a
policy that plans with them is judged by the same physics. Steady state, Poisson arrivals: bursts need headroom.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from control_plane.domain import ClassLoad, InputClass, Load, Shape, Slo
from control_plane.hardware.gpu_model import H100_SXM, Activity, GpuSpec
from control_plane.hardware.replica_model import PS_PER_S, ReplicaLimits


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A dense transformer. Bytes are of one whole copy; KV bytes are per token of context."""

    name: str
    parameters: float
    layers: int
    hidden: int
    kv_bytes_per_token: int
    bytes_per_parameter: int = 2


LLAMA2_70B = ModelSpec("llama2-70b", 69e9, 80, 8192, 80 * 2 * 8 * 128 * 2)


@dataclass(frozen=True, slots=True)
class EngineEra:
    """How well an engine uses the hardware."""

    name: str
    compute_efficiency: float
    memory_efficiency: float
    overhead_s: float
    """Launches and scheduling, an iteration, at the highest clock."""
    allreduce_latency_s: float
    """A pair of all-reduces of a few tokens, per extra GPU, all layers together, an iteration."""
    era: str


CURRENT_ENGINE = EngineEra(
    name="current",
    compute_efficiency=0.52,
    memory_efficiency=0.85,
    overhead_s=0.0029,
    allreduce_latency_s=0.00020,
    era="2024-2026 engines (continuous batching, chunked prefill, CUDA graphs)",
)
"""Prefill efficiency: fit of splitwise's H100 latencies. The rest: solved from the public TP4 anchor,
inter-token 15.7 + 0.104·B ms (Llama-3-70B, H100)."""

PEAK_FLOPS = 989e12
MEMORY_BYTES_PER_S = 3.35e12
LINK_BYTES_PER_S = 300e9
GPU_BYTES = 85.5e9
USABLE_MEMORY_RATIO = 0.90
"""H100 SXM5 data sheet; NVLink at the 300 GB/s that DynamoLLM measured; vLLM's default memory share."""


class RooflineTimes:
    """Iteration times of one tensor parallelism at every clock, compiled at first use."""

    def __init__(
        self,
        base_ps: Mapping[int, int],
        token_ps: Mapping[int, int],
        attention_ps: Mapping[int, int],
        context_ps: int,
        most_tokens: int,
    ) -> None:
        self.base_ps, self.token_ps = base_ps, token_ps
        self._attention_ps = attention_ps
        self._context_ps = context_ps
        self._most_tokens = most_tokens
        self._alpha_ps: dict[int, tuple[int, ...]] = {}
        self._activity = tuple(activity_of(tokens) for tokens in range(most_tokens + 1))

    @property
    def context_ps(self) -> int:
        return self._context_ps

    def alpha_ps(self, freq_mhz: int) -> Sequence[int]:
        table = self._alpha_ps.get(freq_mhz)
        if table is None:
            base, token = self.base_ps[freq_mhz], self.token_ps[freq_mhz]
            table = tuple(base + token * tokens for tokens in range(self._most_tokens + 1))
            self._alpha_ps[freq_mhz] = table
        return table

    def attention_ps(self, freq_mhz: int) -> int:
        return self._attention_ps[freq_mhz]

    def activity(self, tokens: int) -> Activity:
        return self._activity[tokens]


def activity_of(tokens: int) -> Activity:
    """SM and memory activity of an iteration over this many tokens: memory-bound at one token, compute-bound from
    about 500. With H100_SXM it gives the public anchor's P = 426 + 203(1 - exp(-B/117)) W per GPU in its slope."""
    saturation = 1.0 - math.exp(-tokens / 152.0)
    return Activity(sm=0.287 + 0.713 * saturation, mem=1.0 - 0.75 * saturation)


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """Steady state of one replica: TBT and P99 TTFT per input class in seconds, requests in the batch, watts."""

    saturated: bool
    utilisation: float
    tbt_s: float
    concurrency: float
    ttft_p99_s: Mapping[InputClass, float]
    power_w: float
    kv_tokens: float


class RooflineProfile:
    """Energy profile of one dense model on one GPU type, from published peaks and anchors.

    Valid for the tensor parallelisms and clocks it lists; anything else raises ValueError rather than extrapolate.
    """

    def __init__(
        self,
        model: ModelSpec = LLAMA2_70B,
        gpu: GpuSpec = H100_SXM,
        engine: EngineEra = CURRENT_ENGINE,
        slo: Slo | None = None,
        tps: Sequence[int] = (2, 4, 8),
        freqs_mhz: Sequence[int] = (795, 990, 1200, 1395, 1590, 1785, 1980),
        batch_tokens: int = 2048,
    ) -> None:
        unknown = sorted(set(freqs_mhz) - set(gpu.freqs_mhz))
        if unknown:
            raise ValueError(f"{gpu.name} has no clocks {unknown} MHz; it has {gpu.freqs_mhz[0]}..{gpu.freqs_mhz[-1]}")
        self.model, self.gpu, self.engine = model, gpu, engine
        self.slo = slo or Slo()
        self._tps = tuple(sorted(tps))
        self._freqs_mhz = tuple(sorted(freqs_mhz))
        self._batch_tokens = batch_tokens
        self._times: dict[int, RooflineTimes] = {tp: self._compile(tp) for tp in self._tps}

    @property
    def name(self) -> str:
        return f"{self.model.name}/{self.gpu.name}/{self.engine.name}"

    @property
    def tps(self) -> Sequence[int]:
        return self._tps

    @property
    def freqs_mhz(self) -> Sequence[int]:
        """The clocks policies choose from: the paper's sweep, 0.8-1.98 GHz in steps of about 200 MHz."""
        return self._freqs_mhz

    @property
    def max_freq_mhz(self) -> int:
        return self.gpu.max_freq_mhz

    def times(self, tp: int) -> RooflineTimes:
        """Iteration time tables at every clock the GPU supports."""
        self._check_tp(tp)
        return self._times[tp]

    def limits(self, tp: int) -> ReplicaLimits:
        self._check_tp(tp)
        weights = self.model.parameters * self.model.bytes_per_parameter
        kv_bytes = tp * GPU_BYTES * USABLE_MEMORY_RATIO - weights
        kv_tokens = int(kv_bytes / self.model.kv_bytes_per_token)
        return ReplicaLimits(kv_tokens=kv_tokens, batch_tokens=self._batch_tokens)

    def power_w(self, shape: Shape, load: Load) -> float:
        return self.operating_point(shape, load).power_w

    def idle_power_w(self, tp: int) -> float:
        return tp * self.gpu.context_w

    def meets_slo(self, shape: Shape, load: Load) -> bool:
        """Whether P99 TTFT of every class present, mean TBT and the KV cache all stay within limits."""
        point = self.operating_point(shape, load)
        if point.saturated or point.tbt_s > self.slo.tbt_s:
            return False
        if point.kv_tokens > 0.9 * self.limits(shape.tp).kv_tokens:
            return False
        return all(ttft <= self.slo.ttft_s(name) for name, ttft in point.ttft_p99_s.items())

    def max_load(self, shape: Shape, mix: Load) -> float:
        """Largest factor on ``mix`` that one replica carries within the SLO; 0 where even a trickle breaks it."""
        if mix.rps <= 0:
            return math.inf
        if not self.meets_slo(shape, mix.scaled(1e-6 / mix.rps)):
            return 0.0
        low, high = 0.0, 1.0
        while self.meets_slo(shape, mix.scaled(high)):
            low, high = high, high * 2
        for _ in range(30):
            middle = (low + high) / 2
            low, high = (middle, high) if self.meets_slo(shape, mix.scaled(middle)) else (low, middle)
        return low

    def operating_point(self, shape: Shape, load: Load) -> OperatingPoint:
        """Steady state under Poisson arrivals.

        Decoding: iterations share the time with prefill work, so the mean TBT is base / (1 - work per second).
        First token: P99 of an M/G/1 queue of prefills, plus the own prefill and the iteration under way.
        """
        times = self.times(shape.tp)
        base_s = times.base_ps[shape.freq_mhz] / PS_PER_S
        token_s = times.token_ps[shape.freq_mhz] / PS_PER_S
        attention_s = times.attention_ps(shape.freq_mhz) / PS_PER_S
        context_s = times.context_ps / PS_PER_S
        total = load.total
        parts = {name: part for name, part in load.by_class.items() if part.rps > 0}
        if total.rps <= 0:
            return OperatingPoint(False, 0.0, base_s, 0.0, {}, self.idle_power_w(shape.tp), 0.0)

        def prefill_s(part: ClassLoad) -> float:
            return part.input_tokens * token_s + part.input_tokens**2 / 2 * attention_s

        prefill_share = sum(part.rps * prefill_s(part) for part in parts.values())
        mean_context = total.input_tokens + total.output_tokens / 2
        decode_share = total.rps * total.output_tokens * (token_s + mean_context * context_s)
        work = prefill_share + decode_share
        if work >= 0.97:
            busy_power_w = shape.tp * self._gpu_power_w(shape.freq_mhz, self._batch_tokens)
            return OperatingPoint(True, 1.0, math.inf, math.inf, dict.fromkeys(parts, math.inf), busy_power_w, math.inf)
        tbt_s = base_s / (1 - work)
        in_decoding = total.rps * total.output_tokens * tbt_s
        # Prefills wait for prefills only; decoding slows each of them down by its own share.
        slowdown = 1 / (1 - decode_share)
        queue_utilisation = min(0.999, prefill_share * slowdown)
        second_moment = sum(part.rps * (prefill_s(part) * slowdown) ** 2 * LENGTH_SPREAD for part in parts.values())
        mean_wait_s = second_moment / (2 * (1 - queue_utilisation))
        tail = math.log(100 * queue_utilisation) / queue_utilisation if queue_utilisation > 0.01 else 0.0
        wait_p99_s = mean_wait_s * max(0.0, tail)
        ttft_p99_s = {}
        for name, part in parts.items():
            longest = _LONGEST_INPUT[name] if name in _LONGEST_INPUT else 2.2 * part.input_tokens
            own_s = longest * token_s * slowdown + math.ceil(longest / self._batch_tokens) * base_s
            ttft_p99_s[name] = wait_p99_s + own_s + tbt_s
        concurrency = in_decoding + total.rps * (mean_wait_s + total.input_tokens * token_s * slowdown + base_s)
        busy = max(work, 1 - math.exp(-concurrency))
        prefill_time = min(busy, prefill_share)
        batch = max(1.0, in_decoding / busy)
        gpu_w = self.gpu.context_w + prefill_time * (
            self._gpu_power_w(shape.freq_mhz, self._batch_tokens) - self.gpu.context_w
        )
        gpu_w += (busy - prefill_time) * (self._gpu_power_w(shape.freq_mhz, batch) - self.gpu.context_w)
        kv_tokens = in_decoding * mean_context + total.rps * mean_wait_s * total.input_tokens
        return OperatingPoint(False, busy, tbt_s, concurrency, ttft_p99_s, shape.tp * gpu_w, kv_tokens)

    def _gpu_power_w(self, freq_mhz: int, tokens: float) -> float:
        return self.gpu.power_w(freq_mhz, 1, activity_of(round(tokens)))

    def _check_tp(self, tp: int) -> None:
        if tp not in self._tps:
            raise ValueError(f"profile {self.name} was made for TP {self._tps}, not {tp}")

    def _compile(self, tp: int) -> RooflineTimes:
        model, engine = self.model, self.engine
        weights_s = model.parameters * model.bytes_per_parameter / (tp * MEMORY_BYTES_PER_S * engine.memory_efficiency)
        launch_s = engine.overhead_s + engine.allreduce_latency_s * (tp - 1)
        flops = tp * PEAK_FLOPS * engine.compute_efficiency
        linear_s = 2 * model.parameters / flops
        ring_bytes = 2 * model.layers * 2 * model.hidden * 2 * (tp - 1) / tp
        link_s = ring_bytes / LINK_BYTES_PER_S
        attention_s = 4 * model.layers * model.hidden / flops
        context_s = model.kv_bytes_per_token / (tp * MEMORY_BYTES_PER_S * engine.memory_efficiency)
        ratios = {freq: self.max_freq_mhz / freq for freq in self.gpu.freqs_mhz}
        slow = {freq: memory_slowdown(ratio) for freq, ratio in ratios.items()}
        return RooflineTimes(
            base_ps={f: _ps(weights_s * slow[f] + launch_s * ratios[f]) for f in self.gpu.freqs_mhz},
            token_ps={f: _ps(linear_s * ratios[f] + link_s) for f in self.gpu.freqs_mhz},
            attention_ps={f: _ps(attention_s * ratios[f]) for f in self.gpu.freqs_mhz},
            context_ps=_ps(context_s),
            most_tokens=self._batch_tokens + ReplicaLimits(1).batch_requests,
        )

    @cached_property
    def description(self) -> str:
        return (
            f"{self.model.name} on {self.gpu.name}, {self.engine.era}; roofline with public anchors, "
            f"TP {'/'.join(map(str, self._tps))}, {self._freqs_mhz[0]}-{self._freqs_mhz[-1]} MHz"
        )


LENGTH_SPREAD = 1.35
"""E[S²]/E[S]² of prefill times inside one input class (Azure 2023: 1.2-1.5)."""

_LONGEST_INPUT = {InputClass.SHORT: 256, InputClass.MEDIUM: 1024}


def memory_slowdown(ratio: float) -> float:
    """How much longer memory-bound work takes at a clock ``ratio`` times lower than the highest: L2 and the
    interconnect between the SMs slow down too (DynamoLLM Table I: 1.1 at 1.2 GHz, 1.3 at 0.8 GHz)."""
    return 1 + 0.12 * (ratio - 1) + 0.07 * (ratio - 1) ** 2


def _ps(seconds: float) -> int:
    return round(seconds * PS_PER_S)
