"""An energy profile as policies, simulator and live engine ask it: iteration tables per tensor parallelism, one GPU
model, and the steady state of every shape.

Valid for the tensor parallelisms and clocks it lists: anything else raises ValueError, and what lies beyond the
measurements behind it is named by ``beyond``.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from control_plane.domain import ClassLoad, InputClass, Load, Shape, Slo
from control_plane.hardware.energy_table import EnergyTable
from control_plane.hardware.gpu_model import GpuSpec
from control_plane.hardware.iteration_tables import IterationTables
from control_plane.hardware.replica_model import PS_PER_S, ReplicaLimits
from control_plane.hardware.steady_state import Machine, OperatingPoint, slo_use, steady_state

ROUNDING_PS = 2
"""Steps of a straight table of integers differ by no more."""

CACHED_POINTS = 4_096
"""Operating points remembered, and as many largest loads: under 20 MB together. A control tick asks for hundreds, many
of them twice, and the next tick for others."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """Where a profile's numbers come from and how far its measurements reach."""

    era: str
    source: str
    measured_freqs_mhz: Sequence[int] = ()
    """Clocks at which times were measured; at others they are scaled by physics."""
    measured_batch: int | None = None
    """Most requests decoding together in a measurement."""
    measured_input: int | None = None
    """Longest prompt measured, in tokens."""
    notes: Sequence[str] = ()
    errors: Mapping[str, float] = field(default_factory=dict)
    """Cross-validated or fit errors as ratios, by name."""


class MachineProfile:
    """One model on one GPU type with one engine."""

    def __init__(
        self,
        name: str,
        gpu: GpuSpec,
        slo: Slo,
        freqs_mhz: Sequence[int],
        times: Mapping[int, IterationTables],
        limits: Mapping[int, ReplicaLimits],
        evidence: Evidence,
        energy_table: EnergyTable | None = None,
    ) -> None:
        unknown = sorted(set(freqs_mhz) - set(gpu.freqs_mhz))
        if unknown:
            raise ValueError(f"{gpu.name} has no clocks {unknown} MHz; it has {gpu.freqs_mhz[0]}..{gpu.freqs_mhz[-1]}")
        self.name, self.gpu, self.slo, self.evidence = name, gpu, slo, evidence
        self.energy_table = energy_table
        """Measured energies by request type, where a paper published them for this very machine."""
        self.tps: Sequence[int] = tuple(sorted(times))
        self.freqs_mhz: Sequence[int] = tuple(sorted(freqs_mhz))
        """The clocks policies choose from; the GPU may have more."""
        self._times, self._limits = dict(times), dict(limits)
        self._machines: dict[Shape, Machine] = {}
        self._points: dict[Hashable, OperatingPoint] = {}
        self._max_loads: dict[Hashable, float] = {}

    def with_slo(self, slo: Slo) -> "MachineProfile":
        """The same machine held to other limits."""
        if slo == self.slo:
            return self
        return MachineProfile(
            self.name, self.gpu, slo, self.freqs_mhz, self._times, self._limits, self.evidence, self.energy_table
        )

    def copy(self) -> "MachineProfile":
        """The same tables in an object of its own."""
        return MachineProfile(
            self.name, self.gpu, self.slo, self.freqs_mhz, self._times, self._limits, self.evidence, self.energy_table
        )

    def adopt(self, other: "MachineProfile") -> None:
        """Take over the tables, powers and evidence of a profile of the same shapes, for whoever plans with this
        object. Raises ValueError for other shapes."""
        if (other.tps, other.freqs_mhz) != (self.tps, self.freqs_mhz):
            raise ValueError(f"{other.name} has TP {other.tps} at {other.freqs_mhz} MHz, {self.name} has not")
        self.gpu, self.evidence = other.gpu, other.evidence
        self._times, self._limits = dict(other._times), dict(other._limits)
        self._machines.clear()
        self._points.clear()
        self._max_loads.clear()

    @property
    def max_freq_mhz(self) -> int:
        return self.gpu.max_freq_mhz

    def times(self, tp: int) -> IterationTables:
        self._check_tp(tp)
        return self._times[tp]

    def limits(self, tp: int) -> ReplicaLimits:
        self._check_tp(tp)
        return self._limits[tp]

    def idle_power_w(self, tp: int) -> float:
        """Watts of a replica that holds its model and does nothing."""
        return tp * self.gpu.context_w

    def power_w(self, shape: Shape, load: Load) -> float:
        return self.operating_point(shape, load).power_w

    def meets_slo(self, shape: Shape, load: Load) -> bool:
        """Whether P99 TTFT of every class present, mean TBT, the batch and the KV cache all stay within limits."""
        return slo_use(self.machine(shape), self.operating_point(shape, load), self.slo) <= 1.0

    def operating_point(self, shape: Shape, load: Load) -> OperatingPoint:
        """The steady state of one replica of this shape under this load."""
        parts = tuple((name, part) for name, part in load.by_class.items() if part.rps > 0)
        return self._point(shape, parts)

    def max_load(self, shape: Shape, mix: Load) -> float:
        """Largest factor on ``mix`` that one replica carries within the SLO; 0 where even a trickle breaks it."""
        rps = mix.rps
        if rps <= 0:
            return math.inf
        shares = tuple(
            (name, ClassLoad(round(part.rps / rps, 12), part.input_tokens, part.output_tokens))
            for name, part in mix.by_class.items()
            if part.rps > 0
        )
        key = (shape, shares)
        most_rps = self._max_loads.get(key)
        if most_rps is None:
            if len(self._max_loads) >= CACHED_POINTS:
                self._max_loads.clear()
            most_rps = self._max_loads[key] = self._most_rps(shape, shares)
        return most_rps / rps

    def beyond(self, shape: Shape, load: Load) -> tuple[str, ...]:
        """In what this shape and load lie outside the measurements, in words; empty where they lie inside."""
        evidence, found = self.evidence, []
        if shape.freq_mhz not in evidence.measured_freqs_mhz:
            measured = ", ".join(map(str, evidence.measured_freqs_mhz)) or "none"
            found.append(f"clock {shape.freq_mhz} MHz is scaled by physics (measured: {measured})")
        point = self.operating_point(shape, load)
        if evidence.measured_batch is not None and point.decoding_p99 > evidence.measured_batch:
            found.append(f"{point.decoding_p99:.0f} decoding requests, measured up to {evidence.measured_batch}")
        longest = max((part.input_tokens for part in load.by_class.values() if part.rps > 0), default=0.0)
        if evidence.measured_input is not None and longest > evidence.measured_input:
            found.append(f"inputs of {longest:.0f} tokens, measured up to {evidence.measured_input}")
        return tuple(found)

    def machine(self, shape: Shape) -> Machine:
        """The shape as the closed forms read it."""
        machine = self._machines.get(shape)
        if machine is None:
            machine = self._machines[shape] = self._compile(shape)
        return machine

    def _point(self, shape: Shape, parts: tuple[tuple[InputClass, ClassLoad], ...]) -> OperatingPoint:
        key = (shape, parts)
        point = self._points.get(key)
        if point is None:
            if len(self._points) >= CACHED_POINTS:
                self._points.clear()
            point = self._points[key] = steady_state(self.machine(shape), parts)
        return point

    def _most_rps(self, shape: Shape, shares: tuple[tuple[InputClass, ClassLoad], ...]) -> float:
        """Bracketed search for the load at which the tightest limit is just used up."""
        machine = self.machine(shape)

        def use(rps: float) -> float:
            parts = tuple((name, part.scaled(rps)) for name, part in shares)
            return slo_use(machine, steady_state(machine, parts), self.slo)

        low, high = 1e-6, 1.0
        if use(low) > 1.0:
            return 0.0
        high_use = use(high)
        while high_use <= 1.0:
            low, high = high, high * 4
            high_use = use(high)
        # Halving while saturation hides the slope, then regula falsi with Illinois' correction.
        low_gap, high_gap, was_low = -1.0, high_use - 1.0, None
        for _ in range(60):
            if high - low <= 1e-6 * high:
                break
            middle = (low + high) / 2
            if high_gap < 9.0 and was_low is not None:
                middle = (low * high_gap - high * low_gap) / (high_gap - low_gap)
                middle = min(max(middle, low + 5e-7 * high), high - 5e-7 * high)
            gap = use(middle) - 1.0
            is_low = gap <= 0.0
            if is_low:
                low, low_gap = middle, gap
                high_gap /= 2 if was_low is True else 1
            else:
                high, high_gap = middle, gap
                low_gap /= 2 if was_low is False else 1
            was_low = is_low
        return low

    def _compile(self, shape: Shape) -> Machine:
        times, limits = self.times(shape.tp), self.limits(shape.tp)
        if shape.freq_mhz not in self.gpu.freqs_mhz:
            raise ValueError(f"{self.name}: {self.gpu.name} has no clock of {shape.freq_mhz} MHz")
        alpha_ps = times.alpha_ps(shape.freq_mhz)
        steps_ps = [after - before for before, after in pairwise(alpha_ps)]
        return Machine(
            iteration_s=tuple(duration / PS_PER_S for duration in alpha_ps),
            power_w=tuple(
                shape.tp * self.gpu.power_w(shape.freq_mhz, 1, times.activity(tokens))
                for tokens in range(len(alpha_ps))
            ),
            context_s=times.context_ps / PS_PER_S,
            attention_s=times.attention_ps(shape.freq_mhz) / PS_PER_S,
            idle_power_w=self.idle_power_w(shape.tp),
            batch_tokens=limits.batch_tokens,
            batch_requests=limits.batch_requests,
            kv_tokens=limits.kv_tokens,
            straight=max(steps_ps) - min(steps_ps) <= ROUNDING_PS,
        )

    def _check_tp(self, tp: int) -> None:
        if tp not in self._times:
            raise ValueError(f"profile {self.name} was made for TP {tuple(self._times)}, not {tp}")
