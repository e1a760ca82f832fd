"""Rules of governors and routers as data, so that a simulator may apply them in machine code.

A governor or router with a ``rule`` promises that its answers follow from these numbers alone, by the method of the
class that names the rule; tests hold both ways equal. One without, or with None, is called.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from control_plane.domain import LONG_FROM_TOKENS, InputClass, PoolName
from control_plane.serving.clock_costs import ClockCosts


@dataclass(frozen=True, slots=True)
class LimitShares:
    """How much of a TTFT limit the engine may use up: the rest is for arrivals that come meanwhile."""

    shorter: float
    long: float
    long_from_tokens: int = LONG_FROM_TOKENS

    def of(self, input_tokens: int) -> float:
        return self.long if input_tokens >= self.long_from_tokens else self.shorter


@dataclass(frozen=True, slots=True)
class PrefillRule:
    """``governors.PrefillGovernor``. The clocks to choose from, ascending."""

    costs: tuple[ClockCosts, ...]
    shares: LimitShares
    settle_s: float


@dataclass(frozen=True, slots=True)
class DecodeRule:
    """``governors.DecodeGovernor``. The clocks to choose from, ascending."""

    costs: tuple[ClockCosts, ...]
    limit_s: float
    full_at: int
    most: int


GovernorRule = PrefillRule | DecodeRule


@runtime_checkable
class RuledGovernor(Protocol):
    @property
    def rule(self) -> GovernorRule | None: ...


@runtime_checkable
class RuledRouter(Protocol):
    @property
    def rule(self) -> "PhaseRule | None": ...


@dataclass(frozen=True, slots=True)
class PhaseRules:
    """Knobs of ``phase_router.PhaseRouter``, the same for every trace. Chosen on the Azure 2023 traces, simulated."""

    handicap_tokens: Mapping[tuple[PoolName, InputClass], int]
    """Queued tokens that a pool counts more for a request of a class that is not its own."""
    hopeless_ratio: float = 0.85
    """A prompt that would take longer than this share of its TTFT limit at full clock gives way to others."""
    most_overflow_s: float = 20.0
    """Work that is put before one replica at most."""
    most_decoding: int = 200
    """Requests in a decode replica's batch."""
    grown_tokens: float = 400.0
    """By how much a request's context is expected to grow at most."""
    most_kv_ratio: float = 0.9
    link_share: float = 0.5
    """Of the time that is left until its TTFT limit, a request may wait for the link so much."""
    most_link_wait_s: float = 0.3


@dataclass(frozen=True, slots=True)
class PhaseRule:
    """``phase_router.PhaseRouter`` as data."""

    rules: PhaseRules
    limits_s: tuple[float, float, float]
    """TTFT limits by input class, in their order."""
    token_s: float
    """What a token's KV cache takes on a decode replica's link."""
    kv_tokens: Mapping[PoolName, int]
    """Of a replica, by pool."""
