"""The governors of a simulated cluster: one beside each replica that has one, as a live replica hosts it.

A governor is asked every second and at once when a request comes. What it answers is kept within the bounds that the
pool's controller set and is rounded to a clock that the GPU supports; it is in force once the GPU has settled.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from control_plane.actions import SetGovernor
from control_plane.domain import InputClass, QueuedPrompt, QueueView, Slo
from control_plane.hardware.gpu_model import GpuSpec
from control_plane.hardware.replica_model import PS_PER_S
from control_plane.serving.policy import HearingGovernor
from control_plane.serving.rules import GovernorRule, RuledGovernor
from control_plane.simulation.cluster.asked_fleet import PS_IN_S
from control_plane.simulation.cluster.replicas import Hosted
from control_plane.simulation.event_loop import EventLoop
from control_plane.simulation.trace import Trace

if TYPE_CHECKING:
    from control_plane.simulation.compiled_loop import Compiled

TICK_PS = PS_PER_S


@dataclass(frozen=True, slots=True)
class ClockBounds:
    """Within these a governor may move the clock."""

    floor_mhz: int
    ceiling_mhz: int

    def clamped(self, gpu: GpuSpec, wished_mhz: int) -> int:
        """The highest supported clock that is not above the wish, nor above the ceiling, nor below the floor. Where no
        clock is supported between the bounds, the highest below the ceiling."""
        clock_mhz = gpu.supported_at_most(min(wished_mhz, self.ceiling_mhz))
        if clock_mhz >= self.floor_mhz:
            return clock_mhz
        allowed = [mhz for mhz in gpu.freqs_mhz if self.floor_mhz <= mhz <= self.ceiling_mhz]
        return allowed[0] if allowed else gpu.supported_at_most(self.ceiling_mhz)


class Governors:
    def __init__(self, gpu: GpuSpec, slo: Slo, trace: Trace, loop: EventLoop, ruled: "Compiled | None" = None) -> None:
        """``ruled``: the loop where it applies rules by itself."""
        self._gpu, self._slo, self._loop = gpu, slo, loop
        self._arrivals, self._inputs = trace.arrival_ps.data, trace.input_tokens.data
        self._ruled = ruled
        self._rules: dict[int, GovernorRule] = {}
        self._hearing: dict[int, HearingGovernor] = {}
        self._bounds: dict[int, ClockBounds] = {}
        self._wished_mhz: dict[int, int] = {}

    def adopt(self, hosted: Hosted) -> None:
        """A new replica: where its governor has a rule and the loop applies rules, the loop sets its clocks."""
        if self._ruled is not None and isinstance(hosted.governor, RuledGovernor) and hosted.governor.rule is not None:
            self._rules[hosted.number] = hosted.governor.rule
            self._hand_rule(self._ruled, hosted.number)

        if isinstance(hosted.governor, HearingGovernor):
            self._hearing[hosted.number] = hosted.governor

    def first_token(self, number: int, position: int, ttft_s: float) -> None:
        hearing = self._hearing.get(number)
        if hearing is not None:
            hearing.first_token(ttft_s, self._limit_s(self._inputs[position]))

    def look_at_all(self, governed: Sequence[Hosted], now_ps: int) -> None:
        by_rule = [hosted.number for hosted in governed if hosted.number in self._rules]
        if self._ruled is not None and by_rule:
            self._ruled.look(by_rule, now_ps)
        for hosted in governed:
            if hosted.number not in self._rules:
                self.look(hosted, now_ps)

    def look(self, hosted: Hosted, now_ps: int) -> None:
        """Ask a replica's governor and set the clock that it wants."""
        if self._ruled is not None and hosted.number in self._rules:
            self._ruled.look([hosted.number], now_ps)
            return
        if hosted.governor is None:
            raise ValueError(f"{hosted.replica_id} has no governor")
        self._wished_mhz[hosted.number] = hosted.governor.look(self.view(hosted, now_ps), now_ps / PS_IN_S)
        self._apply(hosted, now_ps)

    def bound(self, hosted: Hosted, action: SetGovernor, now_ps: int) -> None:
        """New bounds hold at once for the governor's last answer. Raises ValueError for bounds that no clock meets and
        for a replica without a governor."""
        if hosted.governor is None:
            raise ValueError(f"SetGovernor for {hosted.replica_id}, which has no governor: use SetFrequency")
        if action.floor_mhz > action.ceiling_mhz:
            raise ValueError(
                f"SetGovernor for {hosted.replica_id}: floor_mhz {action.floor_mhz} is above ceiling_mhz "
                f"{action.ceiling_mhz}"
            )
        self._bounds[hosted.number] = ClockBounds(action.floor_mhz, action.ceiling_mhz)
        if self._ruled is not None and hosted.number in self._rules:
            self._hand_rule(self._ruled, hosted.number)
            clock = self._ruled.wished(hosted.number)
            if clock is not None:
                self._wished_mhz[hosted.number] = self._rules[hosted.number].costs[clock].freq_mhz
        self._apply(hosted, now_ps)

    def view(self, hosted: Hosted, now_ps: int) -> QueueView:
        """All that the replica's governor may look at."""
        engine = hosted.engine
        queued = tuple(self._prompt(position, left) for position, left in engine.queued())
        return QueueView(
            hosted.tp,
            hosted.role,
            engine.freq_mhz(now_ps),
            queued,
            engine.decoding,
            engine.context_tokens(now_ps),
            engine.kv_used_tokens(now_ps),
            hosted.kv_tokens,
        )

    def _prompt(self, position: int, left_tokens: int) -> QueuedPrompt:
        input_tokens = self._inputs[position]
        return QueuedPrompt(self._arrivals[position] / PS_IN_S, input_tokens, left_tokens, self._limit_s(input_tokens))

    def _limit_s(self, input_tokens: int) -> float:
        return self._slo.ttft_s(InputClass.of(input_tokens))

    def _hand_rule(self, ruled: "Compiled", number: int) -> None:
        rule = self._rules[number]
        ruled.govern(number, rule, [self._bounded(number, cost.freq_mhz) for cost in rule.costs])

    def _bounded(self, number: int, wished_mhz: int) -> int:
        bounds = self._bounds.get(number)
        return wished_mhz if bounds is None else bounds.clamped(self._gpu, wished_mhz)

    def _apply(self, hosted: Hosted, now_ps: int) -> None:
        wished_mhz = self._wished_mhz.get(hosted.number, self._gpu.max_freq_mhz)
        self._loop.set_clock(hosted.number, now_ps, self._bounded(hosted.number, wished_mhz))
