"""Rules of governors and routers, laid out in arrays for the compiled event loop."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from control_plane.domain import InputClass, ReplicaId, Slo
from control_plane.hardware.replica_model import PS_PER_S
from control_plane.serving.phase_router import in_order_of_start
from control_plane.serving.routing import Candidate
from control_plane.serving.rules import DecodeRule, GovernorRule, PhaseRule, PrefillRule
from control_plane.simulation import phase_kernel
from control_plane.simulation.cluster.times import ClusterTimes
from control_plane.simulation.governor_kernel import DECODE, PREFILL, Rules
from control_plane.simulation.phase_kernel import Routes


class RuleBook:
    """The governors' rules of a run, each once; by row the clocks that they may set."""

    def __init__(self, slo: Slo) -> None:
        self._limits_s = np.array([slo.ttft_s(name) for name in InputClass])
        self._numbers: dict[GovernorRule, int] = {}
        self.arrays = self._laid_out(np.zeros((0, 0, 3), np.int64))

    def number(self, rule: GovernorRule) -> int | None:
        """Of a rule that is in the book already."""
        return self._numbers.get(rule)

    def add(self, rule: GovernorRule) -> int:
        number = self._numbers[rule] = len(self._numbers)
        self.arrays = self._laid_out(self.arrays.clocks)
        return number

    def rows(self, count: int) -> None:
        """Make room for so many rows."""
        self.arrays = self._laid_out(self.arrays.clocks, count)

    def _laid_out(self, clocks: NDArray[np.int64], rows: int | None = None) -> Rules:
        rules = tuple(self._numbers)
        most = max((len(rule.costs) for rule in rules), default=0)
        widest = max((len(cost.pass_s) for rule in rules for cost in rule.costs), default=0)
        by_clock = len(rules), most
        pass_s = np.zeros((*by_clock, widest))
        context_s, attention_s = np.zeros(by_clock), np.zeros(by_clock)
        most_tokens = np.ones(by_clock, np.int64)
        for i, rule in enumerate(rules):
            for k, cost in enumerate(rule.costs):
                pass_s[i, k, : len(cost.pass_s)] = cost.pass_s
                context_s[i, k], attention_s[i, k] = cost.context_s, cost.attention_s
                most_tokens[i, k] = cost.most_tokens
        kept = np.zeros((len(clocks) if rows is None else rows, most, 3), np.int64)
        kept[: len(clocks), : clocks.shape[1]] = clocks
        return Rules(
            np.array([PREFILL if isinstance(rule, PrefillRule) else DECODE for rule in rules], np.int64),
            np.array([len(rule.costs) for rule in rules], np.int64),
            np.array([_numbers(rule) for rule in rules]).reshape(-1, 4),
            pass_s,
            np.array([min(len(cost.pass_s) for cost in rule.costs) - 1 for rule in rules], np.int64),
            context_s,
            attention_s,
            most_tokens,
            kept,
            self._limits_s,
        )


def _numbers(rule: GovernorRule) -> tuple[float, float, float, float]:
    if isinstance(rule, DecodeRule):
        return rule.limit_s, rule.full_at, rule.most, 0.0
    shares = rule.shares
    return shares.shorter, shares.long, shares.long_from_tokens, rule.settle_s


NO_ROUTES = Routes(
    *(np.zeros(7), np.zeros(3), np.zeros(6), np.zeros(0, np.int64), np.zeros((3, 0), np.int64), np.zeros(0)),
    *(np.zeros(0), np.zeros(0, np.int64), np.zeros(0), np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)),
    *(np.zeros(0), np.zeros((0, 2, 2), np.int64)),
)


class RouteBook:
    """A router's rule, the candidates of now and the accounts of all rows."""

    def __init__(self, rule: PhaseRule, times: ClusterTimes) -> None:
        self._rule = rule
        rules = rule.rules
        self.arrays = NO_ROUTES._replace(
            knobs=np.array(
                [
                    *(rules.hopeless_ratio, rules.most_overflow_s, rules.most_decoding, rules.grown_tokens),
                    *(rules.link_share, rules.most_link_wait_s, rule.token_s),
                ]
            ),
            limits_s=np.array(rule.limits_s),
            links=np.array(
                [
                    *(times.kv_link_bytes_per_s, times.kv_node_bytes_per_s, times.kv_bytes_per_token),
                    *(round(times.kv_latency_s * PS_PER_S), times.kv_layers, times.kv_streamed),
                ]
            ),
        )

    def rows(self, count: int) -> None:
        """Make room for so many rows."""
        before = self.arrays
        grown = {name: longer(getattr(before, name), count) for name in phase_kernel.BY_ROW}
        self.arrays = before._replace(**grown)

    def clear(self, r: int) -> None:
        """A row begins anew."""
        for name in phase_kernel.BY_ROW:
            getattr(self.arrays, name)[r] = 0

    def offer(
        self, prefills: Sequence[Candidate], decodes: Sequence[Candidate], row_of: Mapping[ReplicaId, int]
    ) -> None:
        """The replicas that requests may go to from now on."""
        rule = self._rule
        handicaps, share = rule.rules.handicap_tokens, rule.rules.most_kv_ratio
        ordered = in_order_of_start(decodes)
        self.arrays = self.arrays._replace(
            prefills=np.array([row_of[c.replica_id] for c in prefills], np.int64),
            handicap=np.array(
                [[handicaps.get((c.pool, name), 0) for c in prefills] for name in InputClass], np.int64
            ).reshape(3, -1),
            base_s=np.array([c.base_s for c in prefills], np.float64),
            token_s=np.array([c.token_s for c in prefills], np.float64),
            decodes=np.array([row_of[c.replica_id] for c in ordered], np.int64),
            room=np.array([share * rule.kv_tokens[c.pool] for c in ordered], np.float64),
        )


def longer(column: NDArray[Any], count: int) -> NDArray[Any]:
    """The same with zeros behind, ``count`` in all."""
    grown = np.zeros((count, *column.shape[1:]), column.dtype)
    grown[: len(column)] = column
    return grown
