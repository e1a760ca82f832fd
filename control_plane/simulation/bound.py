"""The least energy any policy could spend on a trace: a clairvoyant autoscaler with shared pools and free switching.

By prices. Say a second with a replica held costs ``a`` joules, a decoded token ``y``, a token of context attended to
``v``, a prefilled token ``x``, a unit of prefill attention ``z``. If no iteration of any shape, clock and batch draws
less than its parts cost at these prices, then no schedule of iterations does, whatever the policy: combined or split
phases, any fleet size. A linear program finds the prices that make the trace dearest; the trace's cost is the bound.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from control_plane.domain import Slo
from control_plane.hardware.replica_model import PS_PER_S
from control_plane.hardware.shape_tables import ShapeTables
from control_plane.simulation.trace import Trace

Floats = NDArray[np.float64]

_SCALE = np.array([1.0, 1.0, 1e-3, 1.0, 1e-6])
"""Prices (a, y, v, x, z) differ by orders of magnitude: the solver sees them scaled."""
_GRID_RATIO = 1.02
_BLOCK_S = 60.0
_MOST_PRESENT = 500_000
_MOST_PIVOTS = 200


@dataclass(frozen=True, slots=True)
class Bound:
    """``energy_j`` no policy can beat that holds the SLO for ``attainment`` of the requests and loses nothing."""

    energy_j: float
    idle_energy_j: float
    """Of it: idle GPUs that are billed whatever a policy does."""
    attainment: float


def energy_bound(
    trace: Trace,
    tables: Mapping[int, ShapeTables],
    slo: Slo,
    *,
    idle_gpus: int = 0,
    until_s: float = 0.0,
    attainment: float = 0.99,
) -> Bound:
    """``idle_gpus`` GPUs are billed at idle power until ``until_s`` when nothing holds them (0: released)."""
    if not len(trace):
        return Bound(0.0, 0.0, attainment)
    gpu = next(iter(tables.values())).gpu
    idle_gpu_w = gpu.idle_w if idle_gpus else 0.0
    always_j = idle_gpu_w * idle_gpus * max(until_s, trace.duration_s)
    machine = _Machine.of(tables, idle_gpu_w)
    demand = _Demand.of(trace, slo, machine)
    cost = _least_cost(demand, machine)
    loose = machine.marginal(demand)
    # Whoever breaks its SLO may come at any time beside anybody: it pays at least its margin. The policy chooses who.
    excused = int(np.floor((1 - attainment) * len(trace) + 1e-9))
    at_risk = np.maximum(0.0, cost - loose)
    if excused:
        split = len(at_risk) - excused
        saved = float(np.partition(at_risk, split)[split:].sum()) if split > 0 else float(at_risk.sum())
    else:
        saved = 0.0
    return Bound(float(cost.sum()) - saved + always_j, always_j, attainment)


@dataclass(frozen=True, slots=True)
class _Machine:
    """Every iteration of every shape, on a grid of tokens that errs on the cheap side: row by row the watts (idle
    deducted where it is billed anyway), the seconds without context, and the most tokens they stand for."""

    watts: Floats
    seconds: Floats
    tokens: Floats
    context_s: Floats
    kv_tokens: Floats
    most_decoders: int
    held_w: float
    """The least that a held replica draws."""
    attention_rows: Floats
    """(seconds a unit, watts at one token) of every shape and clock."""
    margins: Floats
    """(least seconds one more token adds, seconds a token of context adds, watts at one token) likewise."""
    fastest_s: float
    """The quickest iteration there is."""

    @classmethod
    def of(cls, tables: Mapping[int, ShapeTables], idle_gpu_w: float) -> "_Machine":
        rows: list[Floats] = []
        attention, margins = [], []
        for tp, table in tables.items():
            limits = table.limits
            starts = _grid(max(limits.batch_tokens, limits.batch_requests))
            ends = np.append(starts[1:] - 1, max(limits.batch_tokens, limits.batch_requests))
            context_s = table.context_ps / PS_PER_S
            for freq_mhz in table.gpu.freqs_mhz:
                alpha_s = np.array(table.alpha_ps(freq_mhz), float) / PS_PER_S
                watts = np.array(table.power_w(freq_mhz))[starts] - tp * idle_gpu_w
                # Valid also where a table is not monotone: the cheapest of everything from here on.
                watts = np.minimum.accumulate(watts[::-1])[::-1]
                seconds = np.minimum.accumulate(alpha_s[::-1])[::-1][starts]
                same = np.ones(len(starts))
                columns = (watts, seconds, ends.astype(float), context_s * same, limits.kv_tokens * same)
                rows.append(np.column_stack(columns))
                attention.append((table.attention_ps(freq_mhz) / PS_PER_S, watts[0]))
                margins.append((max(0.0, float(np.diff(alpha_s).min())), context_s, watts[0]))
        stacked = np.concatenate(rows)
        return cls(
            watts=stacked[:, 0],
            seconds=stacked[:, 1],
            tokens=stacked[:, 2],
            context_s=stacked[:, 3],
            kv_tokens=stacked[:, 4],
            most_decoders=max(table.limits.batch_requests for table in tables.values()),
            held_w=min(table.idle_w - tp * idle_gpu_w for tp, table in tables.items()),
            attention_rows=np.array(attention),
            margins=np.array(margins),
            fastest_s=float(stacked[:, 1].min()),
        )

    def rows(self, most_decoders: int) -> tuple[Floats, Floats]:
        """``rows @ (a, y, v, x, z) <= limits``: what an iteration's parts may cost at most. Linear in decoders and in
        context, so the ends of both are all that matters."""
        none = np.zeros_like(self.tokens)
        decoders = np.minimum(self.tokens, most_decoders)
        one = np.minimum(1.0, self.tokens)
        full_s = self.seconds + self.context_s * self.kv_tokens
        blocks = [
            (self.seconds, none, none, self.tokens),
            (self.seconds, decoders, none, self.tokens - decoders),
            (full_s, decoders, self.kv_tokens, self.tokens - decoders),
            (full_s, one, self.kv_tokens, self.tokens - one),
        ]
        rows = np.concatenate([np.column_stack((*block, none)) for block in blocks])
        limits = np.concatenate([self.watts * block[0] for block in blocks])
        per_unit, watts = self.attention_rows.T
        nothing = np.zeros_like(per_unit)
        attention = np.column_stack((per_unit, nothing, nothing, nothing, np.ones_like(per_unit)))
        held = np.array([[1.0, 0.0, 0.0, 0.0, 0.0]])
        return np.concatenate((rows, attention, held)), np.concatenate((limits, per_unit * watts, [self.held_w]))

    def marginal(self, demand: "_Demand") -> Floats:
        """What a request adds at least to iterations that run anyway."""
        token_s, context_s, watts = self.margins.T
        above = np.maximum(0.0, watts - self.held_w)
        token_j, context_j = float((above * token_s).min()), float((above * context_s).min())
        parts = demand.parts
        margin: Floats = token_j * (parts[:, 1] + parts[:, 3]) + context_j * parts[:, 2]
        return margin


def _grid(most: int) -> NDArray[np.int64]:
    points = [1]
    while points[-1] < most:
        points.append(max(points[-1] + 1, int(points[-1] * _GRID_RATIO)))
    return np.array([point for point in points if point <= most], np.int64)


@dataclass(frozen=True, slots=True)
class _Demand:
    """What each request needs, and when it may get it."""

    parts: Floats
    """By request: seconds of presence, decoded tokens, tokens of context, prefilled tokens, attention units."""
    first_block: NDArray[np.int64]
    last_block: NDArray[np.int64]
    most_together: NDArray[np.int64]
    """By block: most requests whose time to be served, if they hold the SLO, includes one moment of it."""

    @classmethod
    def of(cls, trace: Trace, slo: Slo, machine: _Machine) -> "_Demand":
        arrival_s = trace.arrival_ps / PS_PER_S
        limits = np.array([slo.ttft_short_s, slo.ttft_medium_s, slo.ttft_long_s])
        limit_s = limits[trace.types() // 3]
        inputs, decoded = trace.input_tokens.astype(float), trace.output_tokens - 1.0
        latest_s = arrival_s + limit_s + slo.tbt_s * decoded
        present_s = _present_s(arrival_s + limit_s, arrival_s + decoded * machine.fastest_s)
        context = decoded * (inputs + 1) + decoded * (decoded - 1) / 2
        parts = np.column_stack((present_s, decoded, context, inputs, inputs * (inputs + 1) / 2))
        longest_s = float((latest_s - arrival_s).max())
        block_s = max(_BLOCK_S, longest_s / 3)
        first = (arrival_s / block_s).astype(np.int64)
        last = (latest_s / block_s).astype(np.int64)
        return cls(parts, first, last, _most_together(arrival_s, latest_s, block_s, int(last.max()) + 1))


def _present_s(from_s: Floats, until_s: Floats) -> Floats:
    """Each request's share of the time when somebody must be here: it has its first token by ``from_s`` and cannot
    be done before ``until_s``. Shared among those present, so it adds up whoever is taken away."""
    share = np.zeros(len(from_s))
    stride = max(1, len(from_s) // _MOST_PRESENT)
    chosen = np.flatnonzero(until_s > from_s)[::stride]
    if not len(chosen):
        return share
    times = np.concatenate((from_s[chosen], until_s[chosen]))
    change = np.repeat([1.0, -1.0], len(chosen))
    order = np.argsort(times, kind="stable")
    present = np.cumsum(change[order])[:-1]
    each = np.where(present > 0.5, np.diff(times[order]) / np.maximum(present, 1.0), 0.0)
    shared = np.empty(len(times))
    shared[order] = np.concatenate(([0.0], np.cumsum(each)))
    share[chosen] = np.maximum(0.0, shared[len(chosen) :] - shared[: len(chosen)])
    return share


def _most_together(arrival_s: Floats, latest_s: Floats, block_s: float, blocks: int) -> NDArray[np.int64]:
    ends = np.sort(latest_s)
    arrived = np.arange(1, len(arrival_s) + 1)
    here = arrived - np.searchsorted(ends, arrival_s, side="left")
    # Ties: whoever arrives at the same moment is counted by the last of them.
    most = np.zeros(blocks, np.int64)
    np.maximum.at(most, (arrival_s / block_s).astype(np.int64), here)
    starts = np.arange(blocks) * block_s
    at_start = np.searchsorted(arrival_s, starts, side="right") - np.searchsorted(ends, starts, side="left")
    result: NDArray[np.int64] = np.maximum(most, at_start)
    return result


def _least_cost(demand: _Demand, machine: _Machine) -> Floats:
    """Each request at the prices of the cheapest block that it may be served in."""
    caps = _rounded_up(np.clip(demand.most_together, 1, machine.most_decoders), machine.most_decoders)
    everything = demand.parts.sum(axis=0)
    prices: dict[int, Floats] = {}
    for cap in np.unique(caps)[::-1].tolist():
        mine = caps[demand.first_block] == cap
        wanted = demand.parts[mine].sum(axis=0) if mine.any() else everything
        prices[cap] = _dearest_prices(machine, cap, wanted)
    by_block = np.array([prices[cap] for cap in caps.tolist()])
    cost: Floats = np.full(len(demand.parts), np.inf)
    for step in range(int((demand.last_block - demand.first_block).max()) + 1):
        block = np.minimum(demand.first_block + step, demand.last_block)
        cost = np.minimum(cost, np.einsum("ij,ij->i", demand.parts, by_block[block]))
    return cost


def _rounded_up(counts: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    steps = np.unique(np.append(4 ** np.arange(0, 10), most))
    rounded: NDArray[np.int64] = np.minimum(steps[np.searchsorted(steps, counts)], most)
    return rounded


def _dearest_prices(machine: _Machine, most_decoders: int, wanted: Floats) -> Floats:
    """The linear program ``max wanted @ prices`` over all rows, by the dual simplex method: five rows bind at a time,
    and the row that is broken worst takes the place of one of them."""
    rows, limits = machine.rows(most_decoders)
    rows = rows / limits[:, None] / _SCALE
    goal = wanted / _SCALE
    alone = np.diag(rows.max(axis=0))  # no price can be higher than where a row allows it nothing else
    binding, level = alone.copy(), np.ones(5)
    prices = np.linalg.solve(binding, level)
    for _ in range(_MOST_PIVOTS):
        over = rows @ prices
        worst = int(over.argmax())
        lowest = int(prices.argmin())
        if over[worst] > 1 + 1e-9:
            entering, right = rows[worst], 1.0
        elif prices[lowest] < -1e-12:
            entering, right = -np.eye(5)[lowest], 0.0
        else:
            break
        shares = np.linalg.solve(binding.T, goal)
        change = np.linalg.solve(binding.T, entering)
        leaving = np.where(change > 1e-12, shares / np.maximum(change, 1e-12), np.inf)
        out = int(leaving.argmin())
        if not np.isfinite(leaving[out]):
            break
        binding[out], level[out] = entering, right
        prices = np.linalg.solve(binding, level)
    # Prices hold wherever the search stopped, once they are shrunk until every row does.
    prices = np.maximum(prices, 0.0)
    feasible: Floats = prices / max(1.0, float((rows @ prices).max())) / _SCALE
    return feasible
