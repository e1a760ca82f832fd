"""The least energy any policy could spend on a trace: a clairvoyant autoscaler with shared pools and free switching.

By prices. Say a second with a replica held costs ``a`` joules, a decoded token ``y``, a token of context attended to
``v``, a prefilled token ``x``, a unit of prefill attention ``z``, and a decoder's second in an iteration gives ``w``
back. If no iteration of any shape, clock and batch draws less than its parts cost at these prices, then no schedule of
iterations does, whatever the policy: combined or split phases, any fleet size. Who holds its SLO gets at most ``w``
times its TBT limit back per token: the iterations it decodes in lie one after the other between its first token and its
last. A linear program finds the prices that make the trace dearest; the trace's cost is the bound.

A prompt recomputed after a preemption yields a token that no decoding paid for, nor the c >= 2 tokens of context that
decoding would attend to. The recomputed tokens are not asked for, so they stand for those: c - 1 at ``x``, which is
kept at 2 ``v`` or more, and the last as a decoder.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from control_plane.domain import Slo
from control_plane.hardware.replica_model import PS_PER_S
from control_plane.hardware.shape_tables import ShapeTables
from control_plane.simulation.trace import Trace

Floats = NDArray[np.float64]

_SCALE = np.array([1.0, 1.0, 1e-3, 1.0, 1e-6, 1.0])
"""Prices (a, y, v, x, z, w) differ by orders of magnitude: the solver sees them scaled."""
_GRID_RATIO = 1.02
_CAP_RATIO = 1.2
"""Between the numbers of decoders for which prices are found."""
_BLOCK_S = 60.0
_SECONDS, _DECODED, _CONTEXT, _INPUTS, _UNITS, _WAITED = range(6)
_ROWS = 1 << 20
"""Requests worked on at a time: a week's would fill memory five times over."""
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
    progress: Callable[[float], None] = lambda _share: None,
) -> Bound:
    """``idle_gpus`` GPUs are billed at idle power until ``until_s`` when nothing holds them (0: released).
    ``progress`` is told which share of the work is done."""
    if not len(trace):
        return Bound(0.0, 0.0, attainment)
    gpu = next(iter(tables.values())).gpu
    idle_gpu_w = gpu.idle_w if idle_gpus else 0.0
    always_j = idle_gpu_w * idle_gpus * max(until_s, trace.duration_s)
    machine = _Machine.of(tables, idle_gpu_w)
    demand = _Demand.of(trace, slo, machine)
    progress(0.4)
    prices = _Prices.of(demand, machine)
    # Whoever breaks its SLO may come at any time beside anybody: it pays at least its margin. The policy chooses who.
    at_risk = np.empty(len(trace))
    total_j = 0.0
    for part in _slices(len(trace)):
        cost = prices.least_cost(demand, part)
        at_risk[part] = np.maximum(0.0, cost - machine.marginal(demand.parts(part)))
        total_j += float(cost.sum())
        progress(0.7 + 0.3 * part.stop / len(trace))
    excused = int(np.floor((1 - attainment) * len(trace) + 1e-9))
    kept = len(trace) - excused
    if 0 < kept < len(trace):
        at_risk.partition(kept)
    saved = float(at_risk[kept:].sum())
    progress(1.0)
    return Bound(total_j - saved + always_j, always_j, attainment)


def _slices(count: int) -> Iterator[slice]:
    return (slice(first, min(count, first + _ROWS)) for first in range(0, count, _ROWS))


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
        """``rows @ (a, y, v, x, z, w) <= limits``: what an iteration's parts may cost at most. Linear in decoders at
        any context and in context at any number of decoders, so the ends of both are all that matters."""
        none = np.zeros_like(self.tokens)
        decoders = np.minimum(self.tokens, most_decoders)
        one = np.minimum(1.0, self.tokens)
        full_s = self.seconds + self.context_s * self.kv_tokens
        blocks = [
            (self.seconds, none, none),
            (self.seconds, decoders, none),
            (full_s, decoders, self.kv_tokens),
            (full_s, one, self.kv_tokens),
        ]
        rows = np.concatenate(
            [
                np.column_stack((lasts_s, many, context, self.tokens - many, none, -many * lasts_s))
                for lasts_s, many, context in blocks
            ]
        )
        limits = np.concatenate([self.watts * block[0] for block in blocks])
        per_unit, watts = self.attention_rows.T
        attention, held = np.zeros((len(watts), 6)), np.zeros((1, 6))
        attention[:, _SECONDS], attention[:, _UNITS] = per_unit, 1.0
        held[0, _SECONDS] = 1.0
        return np.concatenate((rows, attention, held)), np.concatenate((limits, per_unit * watts, [self.held_w]))

    def marginal(self, parts: Floats) -> Floats:
        """What a request adds at least to iterations that run anyway."""
        token_s, context_s, watts = self.margins.T
        above = np.maximum(0.0, watts - self.held_w)
        token_j, context_j = float((above * token_s).min()), float((above * context_s).min())
        margin: Floats = token_j * (parts[:, _DECODED] + parts[:, _INPUTS]) + context_j * parts[:, _CONTEXT]
        return margin


def _grid(most: int) -> NDArray[np.int64]:
    points = [1]
    while points[-1] < most:
        points.append(max(points[-1] + 1, int(points[-1] * _GRID_RATIO)))
    return np.array([point for point in points if point <= most], np.int64)


@dataclass(frozen=True, slots=True)
class _Demand:
    """What each request needs, and when it may get it."""

    trace: Trace
    present_s: Floats
    """By request: its share of the time when somebody must be here."""
    limit_s: Floats
    """TTFT limit by input class."""
    tbt_s: float
    """Limit of the mean."""
    block_s: float
    most_together: NDArray[np.int64]
    """By block: most requests whose time to be served, if they hold the SLO, includes one moment of it."""

    @classmethod
    def of(cls, trace: Trace, slo: Slo, machine: _Machine) -> "_Demand":
        limit_s = np.array([slo.ttft_short_s, slo.ttft_medium_s, slo.ttft_long_s])
        latest_s, present_s = np.empty(len(trace)), np.empty(len(trace))
        longest_s = 0.0
        for part in _slices(len(trace)):
            arrival_s, limits, decoded = _times(trace, limit_s, part)
            latest_s[part] = arrival_s + limits + slo.tbt_s * decoded
            longest_s = max(longest_s, float((latest_s[part] - arrival_s).max()))
            # Parts of the trace share no moment: where the next one begins, this one ends.
            ends_s = trace.arrival_ps[part.stop] / PS_PER_S if part.stop < len(trace) else np.inf
            done_s = np.minimum(arrival_s + decoded * machine.fastest_s, ends_s)
            present_s[part] = _present_s(arrival_s + limits, done_s)
        block_s = max(_BLOCK_S, longest_s / 3)
        most = _most_together(trace, latest_s, block_s)
        return cls(trace, present_s, limit_s, slo.tbt_s, block_s, most)

    def parts(self, part: slice) -> Floats:
        """By request: seconds of presence, decoded tokens, tokens of context, prefilled tokens, attention units, and
        the most seconds of decoding that its SLO leaves."""
        inputs, decoded = self.trace.input_tokens[part].astype(float), self.trace.output_tokens[part] - 1.0
        context = decoded * (inputs + 1) + decoded * (decoded - 1) / 2
        return np.column_stack(
            (self.present_s[part], decoded, context, inputs, inputs * (inputs + 1) / 2, self.tbt_s * decoded)
        )

    def blocks(self, part: slice) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First and last block in which each request may be served."""
        arrival_s, limits, decoded = _times(self.trace, self.limit_s, part)
        latest_s = arrival_s + limits + self.tbt_s * decoded
        return (arrival_s / self.block_s).astype(np.int64), (latest_s / self.block_s).astype(np.int64)


def _times(trace: Trace, limit_s: Floats, part: slice) -> tuple[Floats, Floats, Floats]:
    """Arrival, TTFT limit, tokens to decode."""
    limits: Floats = limit_s[trace.types(part) // 3]
    return trace.arrival_ps[part] / PS_PER_S, limits, trace.output_tokens[part].astype(float) - 1.0


def _present_s(from_s: Floats, until_s: Floats) -> Floats:
    """Each request's share of the time when somebody must be here: it has its first token by ``from_s`` and cannot
    be done before ``until_s``. Shared among those present, so it adds up whoever is taken away."""
    share = np.zeros(len(from_s))
    chosen = np.flatnonzero(until_s > from_s)
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


def _most_together(trace: Trace, latest_s: Floats, block_s: float) -> NDArray[np.int64]:
    """Sorts ``latest_s``."""
    blocks = int(latest_s.max() / block_s) + 1
    ends = latest_s
    ends.sort()
    most = np.zeros(blocks, np.int64)
    for part in _slices(len(trace)):
        arrival_s = trace.arrival_ps[part] / PS_PER_S
        here = np.arange(part.start + 1, part.stop + 1) - np.searchsorted(ends, arrival_s, side="left")
        # Ties: whoever arrives at the same moment is counted by the last of them.
        np.maximum.at(most, (arrival_s / block_s).astype(np.int64), here)
    starts = np.arange(blocks) * block_s
    came = np.searchsorted(trace.arrival_ps, starts * PS_PER_S, side="right")
    result: NDArray[np.int64] = np.maximum(most, came - np.searchsorted(ends, starts, side="left"))
    return result


@dataclass(frozen=True, slots=True)
class _Prices:
    """``by_span[more][block]``: of each price the least over a block and as many more behind it. A request may be
    served in any of its blocks, a part of it in each, and no part of it for less."""

    by_span: Floats

    @classmethod
    def of(cls, demand: _Demand, machine: _Machine) -> "_Prices":
        """Block by block the prices that make what arrives in blocks as crowded as this one dearest."""
        caps = _rounded_up(np.clip(demand.most_together, 1, machine.most_decoders), machine.most_decoders)
        wanted = np.zeros((len(caps), 6))
        longest = 0
        for part in _slices(len(demand.trace)):
            first, last = demand.blocks(part)
            longest = max(longest, int((last - first).max()))
            for column, amounts in enumerate(demand.parts(part).T):
                wanted[:, column] += np.bincount(first, amounts, len(caps))
        prices = np.empty((len(caps), 6))
        for cap in np.unique(caps).tolist():
            mine = caps == cap
            goal = wanted[mine].sum(axis=0)
            prices[mine] = _dearest_prices(machine, cap, goal if goal.any() else wanted.sum(axis=0))
        prices[:, _WAITED] *= -1
        spans = [prices]
        for more in range(1, longest + 1):
            behind = np.vstack((prices[more:], np.repeat(prices[-1:], more, axis=0)))[: len(prices)]
            spans.append(np.minimum(spans[-1], behind))
        return cls(np.array(spans))

    def least_cost(self, demand: _Demand, part: slice) -> Floats:
        first, last = demand.blocks(part)
        cost: Floats = np.einsum("ij,ij->i", demand.parts(part), self.by_span[last - first, first])
        return cost


def _rounded_up(counts: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    steps = [1]
    while steps[-1] < most:
        steps.append(min(most, max(steps[-1] + 1, int(steps[-1] * _CAP_RATIO))))
    rounded: NDArray[np.int64] = np.array(steps)[np.searchsorted(steps, counts)]
    return rounded


def _dearest_prices(machine: _Machine, most_decoders: int, wanted: Floats) -> Floats:
    """The linear program ``max wanted @ prices`` over all rows. A price of zero is used for what no request needs."""
    asked = np.flatnonzero(wanted)
    rows, limits = machine.rows(most_decoders)
    # What costs nothing in some iteration, such as attention in a profile that has no time for it, has no price.
    free = limits <= 0
    unpriced = np.flatnonzero(np.count_nonzero(rows[free] > 0, axis=0))
    asked = np.setdiff1d(asked, unpriced)
    rows = rows[~free] / limits[~free, None] / _SCALE
    goal = wanted / _SCALE
    goal[_WAITED] *= -1
    prices = np.zeros(6)
    prices[asked] = _dual_simplex(np.ascontiguousarray(rows[:, asked]), goal[asked])
    # Prices hold wherever the search stopped, once they are shrunk until every row does.
    prices = np.maximum(prices, 0.0)
    feasible: Floats = prices / max(1.0, float((rows @ prices).max())) / _SCALE
    feasible[_CONTEXT] = min(feasible[_CONTEXT], feasible[_INPUTS] / 2)
    return feasible


def _dual_simplex(rows: Floats, goal: Floats) -> Floats:
    """Prices from 0 on that make ``goal @ prices`` most while ``rows @ prices <= 1``: as many rows bind as there are
    prices, and the row that is broken worst takes the place of one of them. Near the best where it has to stop."""
    # To begin with no price is higher than where a row allows it nothing else, and nothing is given back.
    gives = goal > 0
    binding, level = np.diag(np.where(gives, rows.max(axis=0), -1.0)), np.where(gives, 1.0, 0.0)
    prices = np.linalg.solve(binding, level)
    for _ in range(_MOST_PIVOTS):
        over = rows @ prices
        worst = int(over.argmax())
        lowest = int(prices.argmin())
        if over[worst] > 1 + 1e-9:
            entering, right = rows[worst], 1.0
        elif prices[lowest] < -1e-12:
            entering, right = -np.eye(len(goal))[lowest], 0.0
        else:
            break
        shares = np.linalg.solve(binding.T, goal)
        change = np.linalg.solve(binding.T, entering)
        can_leave = change > 1e-9 * np.abs(change).max()
        leaving = np.where(can_leave, shares / np.where(can_leave, change, 1.0), np.inf)
        out = int(leaving.argmin())
        if not can_leave[out]:
            break
        binding[out], level[out] = entering, right
        prices = np.linalg.solve(binding, level)
    return prices
