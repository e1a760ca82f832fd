"""The physics of one GPU: clock, power and energy as pure functions of time.

Power is what idles plus what memory traffic and the SMs draw at the current clock; energy is its exact integral,
because power only changes at the moments that ``advance`` is told about.
"""

import json
import math
from bisect import bisect_right
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Self


@dataclass(frozen=True, slots=True)
class Activity:
    """How hard a GPU works: shares of its SM power and of its memory power. Above 1 where the work would draw more than
    the GPU model's own figures, which only its power limit keeps it from."""

    sm: float = 0.0
    mem: float = 0.0


IDLE = Activity()


@dataclass(frozen=True)
class GpuSpec:
    """One GPU model. Clocks in MHz, ascending; powers in watts; ``settle_ns`` is how long a new clock takes."""

    name: str
    freqs_mhz: tuple[int, ...]
    idle_w: float
    """No process holds a context."""
    context_w: float
    """A context is held and nothing runs."""
    mem_w: float
    sm_w: float
    """SM power at the highest clock."""
    knee_mhz: int
    """Below this clock the voltage no longer falls."""
    knee_voltage_ratio: float
    power_limit_w: float
    settle_ns: int
    sm_shares: tuple[float, ...] | None = None
    """SM power by clock as a share of that at the highest, where it was measured; else f·V²."""

    def __post_init__(self) -> None:
        if not self.freqs_mhz or list(self.freqs_mhz) != sorted(set(self.freqs_mhz)):
            raise ValueError(f"{self.name}: clocks must be distinct and ascending, got {self.freqs_mhz}")
        if self.sm_shares is not None and len(self.sm_shares) != len(self.freqs_mhz):
            raise ValueError(f"{self.name}: {len(self.sm_shares)} SM shares for {len(self.freqs_mhz)} clocks")

    @property
    def max_freq_mhz(self) -> int:
        return self.freqs_mhz[-1]

    @cached_property
    def _sm_scale(self) -> dict[int, float]:
        if self.sm_shares is not None:
            return dict(zip(self.freqs_mhz, self.sm_shares, strict=True))
        top = self.max_freq_mhz
        span = max(1, top - self.knee_mhz)
        scale = {}
        for freq_mhz in self.freqs_mhz:
            above = max(0.0, (freq_mhz - self.knee_mhz) / span)
            voltage_ratio = self.knee_voltage_ratio + (1 - self.knee_voltage_ratio) * above
            scale[freq_mhz] = freq_mhz / top * voltage_ratio**2
        return scale

    def sm_scale(self, freq_mhz: int) -> float:
        """SM power at this clock as a share of that at the highest: f·V² (1 at the highest clock)."""
        return self._sm_scale[freq_mhz]

    def supported_at_most(self, freq_mhz: int) -> int:
        """The highest supported clock not above ``freq_mhz``; the lowest where none is."""
        below = [freq for freq in self.freqs_mhz if freq <= freq_mhz]
        return below[-1] if below else self.freqs_mhz[0]

    def power_w(self, freq_mhz: int, contexts: int, activity: Activity, limit_w: float = math.inf) -> float:
        """Watts of one GPU; ``limit_w`` is a lower power limit than its own, if one is set."""
        if contexts == 0:
            return self.idle_w
        drawn_w = self.context_w + self.mem_w * activity.mem
        drawn_w += self.sm_w * activity.sm * self.sm_scale(freq_mhz)
        return min(drawn_w, self.power_limit_w, limit_w)

    def held_mhz(self, activity: Activity, limit_w: float = math.inf) -> float:
        """The clock to which the power limit holds this activity: a lock above it changes nothing. The highest clock
        where the limit is not reached, the lowest where even that draws more."""
        scaled_w = self.sm_w * activity.sm
        room_w = min(self.power_limit_w, limit_w) - self.context_w - self.mem_w * activity.mem
        if scaled_w <= room_w:
            return float(self.max_freq_mhz)
        scales = [self._sm_scale[freq_mhz] for freq_mhz in self.freqs_mhz]
        share = room_w / scaled_w
        above = bisect_right(scales, share)
        if above == 0:
            return float(self.freqs_mhz[0])
        low, high = scales[above - 1], scales[above]
        between = (share - low) / (high - low)
        return self.freqs_mhz[above - 1] + between * (self.freqs_mhz[above] - self.freqs_mhz[above - 1])

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Raises ValueError for a text that describes no GPU."""
        try:
            values = json.loads(text)
            shares = values.pop("sm_shares")
            freqs_mhz = tuple(values.pop("freqs_mhz"))
            return cls(**values, freqs_mhz=freqs_mhz, sm_shares=None if shares is None else tuple(shares))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no GPU model: {error}") from None


H100_SXM = GpuSpec(
    name="H100-SXM5-80GB",
    freqs_mhz=tuple(range(345, 1981, 15)),
    idle_w=84.0,
    context_w=127.0,
    mem_w=148.0,
    sm_w=526.0,
    knee_mhz=1005,
    knee_voltage_ratio=0.70,
    power_limit_w=700.0,
    settle_ns=50_000_000,
)
"""Idle powers: measured on the same die (H200, default clocks). Memory and SM power: solved from the public anchor
426 W at batch 1 and 629-690 W saturated (Llama-3-70B, TP4, H100), and from DynamoLLM Table I's mean energy shape
over 0.8/1.2/1.6/2.0 GHz (1.13/1/1.06/1.20). Settling: tens of ms (A100) to hundreds (GH200)."""


@dataclass(frozen=True, slots=True)
class GpuState:
    """One GPU at a moment. A lock outlives whoever asked for it, as on real hardware."""

    at_ns: int
    freq_mhz: int
    """The clock that runs now."""
    target_mhz: int
    settles_at_ns: int
    contexts: int = 0
    activity: Activity = IDLE
    energy_j: float = 0.0
    locks: int = 0
    """How many lock or reset requests the driver took."""
    limit_w: float = math.inf
    """A power limit below the GPU's own; infinite where none is set."""

    @classmethod
    def at_default(cls, spec: GpuSpec, now_ns: int) -> Self:
        return cls(now_ns, spec.max_freq_mhz, spec.max_freq_mhz, now_ns)

    def advance(self, spec: GpuSpec, now_ns: int) -> Self:
        """This GPU at ``now_ns``, its energy integrated. A time before ``at_ns`` leaves it as it is: clocks of
        two processes on one host may disagree by microseconds and energy never runs backwards."""
        if now_ns <= self.at_ns:
            return self
        at_ns, freq_mhz, energy_j = self.at_ns, self.freq_mhz, self.energy_j
        if freq_mhz != self.target_mhz and self.settles_at_ns <= now_ns:
            settled_ns = max(self.settles_at_ns, at_ns)
            energy_j += self._drawn_w(spec, freq_mhz) * (settled_ns - at_ns) * 1e-9
            at_ns, freq_mhz = settled_ns, self.target_mhz
        energy_j += self._drawn_w(spec, freq_mhz) * (now_ns - at_ns) * 1e-9
        return replace(self, at_ns=now_ns, freq_mhz=freq_mhz, energy_j=energy_j)

    def with_activity(self, spec: GpuSpec, now_ns: int, activity: Activity) -> Self:
        return replace(self.advance(spec, now_ns), activity=activity)

    def with_contexts(self, spec: GpuSpec, now_ns: int, contexts: int) -> Self:
        if contexts < 0:
            raise ValueError(f"a GPU cannot hold {contexts} contexts")
        return replace(self.advance(spec, now_ns), contexts=contexts, activity=IDLE)

    def locked(self, spec: GpuSpec, now_ns: int, freq_mhz: int) -> Self:
        """The highest supported clock not above ``freq_mhz`` becomes the target, in force once settled."""
        now = self.advance(spec, now_ns)
        target_mhz = spec.supported_at_most(freq_mhz)
        if target_mhz == now.target_mhz:
            return replace(now, locks=now.locks + 1)
        return replace(
            now,
            target_mhz=target_mhz,
            settles_at_ns=max(now_ns, now.at_ns) + spec.settle_ns,
            locks=now.locks + 1,
        )

    def limited(self, spec: GpuSpec, now_ns: int, limit_w: float) -> Self:
        """From ``now_ns`` on no more than ``limit_w`` is drawn."""
        return replace(self.advance(spec, now_ns), limit_w=limit_w)

    def power_w(self, spec: GpuSpec) -> float:
        return self._drawn_w(spec, self.freq_mhz)

    def _drawn_w(self, spec: GpuSpec, freq_mhz: int) -> float:
        return spec.power_w(freq_mhz, self.contexts, self.activity, self.limit_w)
