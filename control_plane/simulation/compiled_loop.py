"""All replicas in machine code: the event loop of nearly every run, equal to ``Stepped`` in every time and choice.

Python is asked for every arrival, hand-over and governor's look, and told in a batch what happened since it was last
asked. Where the fleet always takes the quickest first token, the kernel routes by itself and nothing leaves it between
two control steps.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import cast

import numpy as np

from control_plane.domain import ReplicaId, Slo
from control_plane.hardware.replica_kernel import (
    NEVER,
    NONE,
    Batches,
    Outcomes,
    ReplicaRow,
    Scratch,
    Seat,
    Speeds,
    Tally,
    abandon,
    queued,
    record_of,
    running_completed,
)
from control_plane.hardware.replica_model import PS_PER_S
from control_plane.hardware.request_columns import RequestColumns
from control_plane.hardware.shape_tables import ShapeTables
from control_plane.serving.routing import Candidate
from control_plane.serving.rules import GovernorRule
from control_plane.simulation.compiled_rules import NO_ROUTES, RouteBook, RuleBook, longer
from control_plane.simulation.event_loop import NOWHERE, LoopHost, ReplicaEngine
from control_plane.simulation.loop_kernel import (
    ABOUT,
    ARRIVAL,
    CHOSEN,
    DONE,
    DRAINED,
    FLYING,
    FLYING_FULL,
    HANDED,
    LOG_BITS,
    LOG_FULL,
    LOOK,
    MOMENT,
    RULED,
    SEATS_FULL,
    SENT,
    STATUS_BITS,
    STRANDED,
    TARGET,
    THROUGH,
    UNDELIVERED,
    UNTIL,
    Demand,
    Offer,
    Transfers,
    change_clock,
    dialogue,
    enter,
    look_at_all,
    quickest,
    send_on,
    settle,
)
from control_plane.simulation.phase_kernel import leave_decode, to_prefill
from control_plane.simulation.token_gaps import GapHistogram
from control_plane.simulation.trace import Trace

_ROW, _SEAT, _TALLY = record_of(ReplicaRow), record_of(Seat), record_of(Tally)
_LOG_ENTRIES = 1 << 16
_STATUS, _LOGGED = (1 << STATUS_BITS) - 1, (1 << LOG_BITS) - 1
_FIRST_ROWS, _FIRST_SEATS, _FIRST_TRANSFERS = 16, 256, 64


class Compiled:
    """Implements ``EventLoop``. ``self_routing``: arrivals go to the quickest of the last ``offer``, the fleet is not
    asked and not told."""

    def __init__(
        self,
        trace: Trace,
        columns: RequestColumns,
        histogram: GapHistogram,
        host: LoopHost,
        tables: Sequence[ShapeTables],
        self_routing: bool,
        slo: Slo,
        routes: RouteBook | None = None,
    ) -> None:
        """``slo``: the limits that governors see. ``routes``: the router's rule, for phases apart."""
        self._host, self._self_routing = host, self_routing
        self._rules, self._routes = RuleBook(slo), routes
        self._arrivals = trace.blocks()
        most_requests = max(t.limits.batch_requests for t in tables)
        most_tokens = max(t.limits.batch_tokens for t in tables)
        self._widest = most_requests + most_tokens + 1
        self._speeds = Speeds(np.zeros((0, self._widest), np.int64), np.zeros((0, self._widest)))
        self._table_of: dict[tuple[int, int], int] = {}
        self._rows = np.zeros(0, _ROW)
        self._row_of: dict[int, int] = {}
        self._number_of: dict[int, int] = {}
        self._tables: dict[int, ShapeTables] = {}
        self._free_rows: list[int] = []
        self._batches = Batches(
            np.zeros((0, most_requests), np.int64),
            np.zeros((0, most_requests), np.int32),
            np.zeros((0, histogram.bins.shape[0]), np.int64),
            np.zeros(0, np.int64),
        )
        self._tree = np.full(2, NONE, np.int64)
        self._seats = np.zeros(0, _SEAT)
        self._tally = np.zeros(1, _TALLY)
        self._tally["free_seat"] = self._tally["drained"] = NONE
        self._tally["keep_log"] = not self_routing
        self._offer = Offer(np.zeros(0, np.int64), np.zeros(0), np.zeros(0))
        self._post = np.zeros(RULED + 1, np.int64)
        self._post[CHOSEN], self._post[RULED] = NONE, routes is not None
        self._transfers = Transfers(
            np.zeros((_FIRST_TRANSFERS, 6), np.int64), np.zeros((_FIRST_TRANSFERS, 6), np.int64)
        )
        self._sent = self._transfers.sent.reshape(-1).data
        self._dialogue: Iterator[int] | None = None
        self._demand = Demand(trace.arrival_ps, trace.input_tokens, trace.output_tokens, histogram.types)
        self._outcomes = Outcomes(
            np.frombuffer(columns.started_ps, np.int64),
            np.frombuffer(columns.first_token_ps, np.int64),
            np.frombuffer(columns.finished_ps, np.int64),
            np.frombuffer(columns.energy_wps, np.float64),
            np.frombuffer(columns.replica, np.int32),
            histogram.bins,
        )
        self._scratch = Scratch(
            np.zeros(self._widest, np.int64),
            np.zeros(self._widest, np.int64),
            np.zeros(self._widest),
            np.zeros(_LOG_ENTRIES + 4 * self._widest, np.int64),
        )

    @property
    def arrived(self) -> int:
        return int(self._tally["arrived"][0])

    @property
    def ended(self) -> int:
        return int(self._tally["ended"][0])

    @property
    def lost(self) -> int:
        return int(self._tally["lost"][0])

    @property
    def last_ps(self) -> int:
        return int(self._tally["now_ps"][0])

    def place(
        self,
        number: int,
        tables: ShapeTables,
        now_ps: int,
        prefills_only: bool = False,
        governed: bool = False,
        node: int = NOWHERE,
    ) -> ReplicaEngine:
        if not self._free_rows:
            self._add_rows()
        r = self._row_of[number] = self._free_rows.pop()
        self._number_of[r] = number
        gpu, limits = tables.gpu, tables.limits
        self._rows[r] = np.zeros((), _ROW)
        self._batches.kinds[r] = self._batches.load[r] = 0
        if self._routes is not None:
            self._routes.clear(r)
        values = {
            "number": number,
            "wake_ps": NEVER,
            "start_ps": now_ps,
            "born_ps": now_ps,
            "freq_mhz": gpu.max_freq_mhz,
            "table": self._table(tables, gpu.max_freq_mhz),
            "attention_ps": tables.attention_ps(gpu.max_freq_mhz),
            "context_ps": tables.context_ps,
            "settle_ps": max(1, gpu.settle_ns * 1000),
            "pending_ps": NEVER,
            "room": limits.kv_tokens,
            "most_requests": limits.batch_requests,
            "most_tokens": limits.batch_tokens,
            "idle_w": tables.idle_w,
            "prefills_only": prefills_only,
            "governed": governed,
            "rule": NONE,
            "node": node,
        }
        for name, value in values.items():
            self._rows[r][name] = value
        self._tree[len(self._tree) // 2 + r] = r
        settle(self._tree, self._records[0], r)
        self._tables[number] = tables
        return CompiledReplica(self, r)

    def remove(self, number: int) -> None:
        r = self._row_of.pop(number)
        del self._tables[number]
        self._tree[len(self._tree) // 2 + r] = NONE
        settle(self._tree, self._records[0], r)
        self._rows[r]["number"] = NONE
        self._free_rows.append(r)

    def drain(self, number: int) -> None:
        self._rows[self._row_of[number]]["draining"] = 1

    def govern(self, number: int, rule: GovernorRule, clocks_mhz: Sequence[int]) -> None:
        """From now on a replica's clock follows a rule; ``clocks_mhz`` is what each of the rule's clocks is within the
        bounds of now."""
        r, tables = self._row_of[number], self._tables[number]
        found = self._rules.number(rule)
        if found is None:
            found = self._rules.add(rule)
            self._end_talk()
        if self._rows[r]["rule"] == NONE:
            self._rows[r]["wished"] = NONE
        self._rows[r]["rule"], self._rows[r]["governed"] = found, False
        for i, mhz in enumerate(clocks_mhz):
            clock_mhz = tables.gpu.supported_at_most(mhz)
            entry = clock_mhz, self._table(tables, clock_mhz), tables.attention_ps(clock_mhz)
            self._rules.arrays.clocks[r, i] = entry

    def wished(self, number: int) -> int | None:
        """Which of its rule's clocks a replica asked for last."""
        found = int(self._rows[self._row_of[number]]["wished"])
        return None if found == NONE else found

    def look(self, numbers: Sequence[int], now_ps: int) -> None:
        """Ask the rules of these replicas for their clocks."""
        rows, seats, _ = self._records
        which = np.array([self._row_of[number] for number in numbers], np.int64)
        look_at_all(rows, which, now_ps, seats, self._tree, self._demand, self._rules.arrays)

    def offer_phases(
        self, prefills: Sequence[Candidate], decodes: Sequence[Candidate], numbers: Mapping[ReplicaId, int]
    ) -> None:
        """The replicas that prompts and prefilled requests may go to from now on, and their numbers by id."""
        routes = self._routed()
        rows = {c.replica_id: self._row_of[numbers[c.replica_id]] for c in (*prefills, *decodes)}
        routes.offer(prefills, decodes, rows)
        self._end_talk()

    def route(self, position: int) -> int:
        """Where the rule sends a request, which is booked there: a replica's number, or ``NOWHERE``."""
        routes, inputs = self._routed().arrays, int(self._demand.input_tokens[position])
        r = to_prefill(routes, inputs, int(self._demand.types[position]) // 3)
        if r == NONE:
            return NOWHERE
        routes.queued[r] += inputs
        return int(self._rows[r]["number"])

    def send_on(self, position: int, source: int, now_ps: int) -> int:
        """Send a prefilled request that had to wait for a decode replica: what ``loop_kernel.send_on`` returns."""
        if self._post[FLYING] + self._post[SENT] >= len(self._transfers.flying):
            self._add_transfers()
        rows, _, tallies = self._records
        return send_on(
            *(rows, self._row_of[source], position, now_ps, 0.0, self._post, tallies[0]),
            *(self._demand, self._outcomes, self._transfers, self._routed().arrays),
        )

    def dropped(self, number: int, position: int) -> None:
        """A request will not be served where the rule sent it."""
        r = self._row_of.get(number)
        if r is None:
            return
        routes, inputs = self._routed().arrays, int(self._demand.input_tokens[position])
        if self._rows[r]["prefills_only"]:
            routes.queued[r] -= inputs
        else:
            leave_decode(routes, r, inputs)

    def _routed(self) -> RouteBook:
        if self._routes is None:
            raise RuntimeError("this loop has no rule to route by")
        return self._routes

    def offer(self, candidates: Sequence[tuple[int, Candidate]]) -> None:
        """The replicas, by number, that arrivals may go to from now on."""
        ranked = sorted(candidates, key=lambda numbered: numbered[1].replica_id)
        self._offer = Offer(
            np.array([self._row_of[number] for number, _ in ranked], np.int64),
            np.array([candidate.base_s for _, candidate in ranked]),
            np.array([candidate.token_s for _, candidate in ranked]),
        )
        self._end_talk()

    def quickest(self, input_tokens: int) -> int:
        """Where the kernel would send a request: a replica's number, or ``NOWHERE``."""
        r = quickest(self._offer, self._batches.load, input_tokens)
        return NOWHERE if r == NONE else int(self._rows[r]["number"])

    def submit(self, number: int, position: int, now_ps: int) -> None:
        if self._tally["free_seat"][0] == NONE:
            self._add_seats()
        rows, seats, tallies = self._records
        r, due_s = self._row_of[number], 0.0
        if self._routes is not None:
            due_s = now_ps / float(PS_PER_S) + self._routes.arrays.limits_s[self._demand.types[position] // 3]
        enter(
            *(rows, r, position, now_ps, 0, due_s, seats, tallies, self._tree),
            *(self._demand, self._speeds, self._batches, self._outcomes, self._scratch),
        )

    def send_kv(self, position: int, source: int, target: int, arrives_ps: int) -> None:
        post, row_of = self._post.data, self._row_of
        count = post[SENT]
        if count + post[FLYING] >= len(self._transfers.flying):
            self._add_transfers()
        sent, at = self._sent, 6 * count
        sent[at], sent[at + 2], sent[at + 3] = arrives_ps, position, row_of[source]
        sent[at + 4], sent[at + 5] = row_of[target], target
        post[SENT] = count + 1

    def set_clock(self, number: int, now_ps: int, freq_mhz: int) -> None:
        r = self._row_of[number]
        tables = self._tables[number]
        target_mhz = tables.gpu.supported_at_most(freq_mhz)
        table = self._table(tables, target_mhz)
        change_clock(self._records[0], r, self._tree, now_ps, target_mhz, table, tables.attention_ps(target_mhz))

    def play(self, until_ps: int, kv_too: bool) -> None:
        """Talks with the kernel until it has nothing more to ask or to say."""
        post, log, host = self._post.data, self._scratch.log.data, self._host
        post[UNTIL], post[THROUGH], post[CHOSEN] = until_ps, kv_too, NONE
        talk = self._talk()
        while True:
            answer = talk()
            logged = answer >> STATUS_BITS & _LOGGED
            if logged:
                host.logged(log[:logged].tolist())
            status = answer & _STATUS
            if status == ARRIVAL:
                number = host.choose(*self._arrival())
                post[CHOSEN] = NONE if number == NOWHERE else self._row_of[number]
            elif status == DONE:
                return
            elif status == SEATS_FULL:
                self._add_seats()
            elif status == FLYING_FULL:
                self._add_transfers()
            elif status == STRANDED:
                stranded = self._scratch.handed[: post[ABOUT]].tolist()
                now_ps = post[MOMENT]
                for entry in stranded:
                    host.stranded(entry >> 1, bool(entry & 1), now_ps)
            elif status == UNDELIVERED:
                host.undelivered(post[ABOUT], post[TARGET], post[MOMENT])
            elif status != LOG_FULL:
                self._say(status, self._number_of[answer >> STATUS_BITS + LOG_BITS])
            if self._dialogue is None:
                talk = self._talk()

    def _say(self, status: int, number: int) -> None:
        now_ps = int(self._post[MOMENT])
        if status == HANDED:
            self._host.hand_over(number, now_ps, self._scratch.handed[: self._post[ABOUT]].tolist())
        elif status == LOOK:
            self._host.look(number, now_ps)
        elif status == DRAINED:
            self._host.drained(number, now_ps)
        else:
            raise RuntimeError(f"the kernel returned {status}, which is none of its answers")

    @property
    def _records(self) -> tuple[Sequence[ReplicaRow], Sequence[Seat], Sequence[Tally]]:
        """Rows, seats and tally as the kernel sees them: objects with attributes."""
        return cast(
            "tuple[Sequence[ReplicaRow], Sequence[Seat], Sequence[Tally]]", (self._rows, self._seats, self._tally)
        )

    def _talk(self) -> Callable[[], int]:
        if self._dialogue is None:
            self._dialogue = dialogue(
                *(self._post, *self._records, self._tree, self._offer),
                *(self._demand, self._speeds, self._batches, self._outcomes, self._scratch, self._transfers),
                *(self._rules.arrays, NO_ROUTES if self._routes is None else self._routes.arrays),
            )
        return self._dialogue.__next__

    def close(self) -> None:
        self._end_talk()
        del self._host, self._outcomes, self._batches

    def _end_talk(self) -> None:
        """An unfinished talk with the kernel would keep all arrays for good."""
        if self._dialogue is not None:
            until_ps, self._post[UNTIL] = self._post[UNTIL], -1
            for _ in self._dialogue:
                raise RuntimeError("the kernel went on after it was told to end")
            self._dialogue, self._post[UNTIL] = None, until_ps

    def _arrival(self) -> tuple[int, int, int, int]:
        if not self._self_routing and self._routes is None:
            return next(self._arrivals)
        work, position = self._demand, self.arrived - 1
        tokens = int(work.input_tokens[position]), int(work.output_tokens[position])
        return position, int(work.arrival_ps[position]), *tokens

    def seen(self, r: int) -> np.void:
        """A row's record, as it is now."""
        row: np.void = self._rows[r]
        return row

    def queued(self, r: int) -> list[tuple[int, int]]:
        """Of a row: (request, prompt tokens that are not prefilled yet) of those without a first token."""
        row = self._rows[r]
        most = int(row["waiting"] + row["prefilling"])
        if not most:
            return []
        found = np.empty((most, 2), np.int64)
        rows, seats, _ = self._records
        return [(key, left) for key, left in found[: queued(rows, r, seats, found)].tolist()]

    def oldest_unanswered(self, r: int) -> int:
        """The request that has waited longest for its first token, ``NONE`` where nobody waits."""
        row = self._rows[r]
        for first, count in ((row["first_prefilling"], row["prefilling"]), (row["first_waiting"], row["waiting"])):
            taken = first
            for _ in range(count):
                seat = self._seats[taken]
                if seat["generated"] == 0:
                    return int(seat["key"])
                taken = seat["following"]
        return NONE

    def completed(self, r: int, now_ps: int) -> int:
        """How many iterations of a row's run have ended by now."""
        return running_completed(self._records[0], r, now_ps)

    def abandon(self, r: int, now_ps: int) -> list[int]:
        row = self._rows[r]
        found = np.empty((int(row["waiting"] + row["prefilling"] + row["decoding"]), 2), np.int64)
        rows, seats, tallies = self._records
        count = abandon(rows, r, now_ps, seats, tallies[0], self._batches, self._outcomes, found)
        mine = found[:count]
        return [int(key) for key in mine[np.argsort(mine[:, 0]), 1]]

    def kv_left(self, r: int) -> None:
        self._rows[r]["outbox"] -= 1

    def arrived_ps(self, position: int) -> int:
        return int(self._demand.arrival_ps[position])

    def _table(self, tables: ShapeTables, freq_mhz: int) -> int:
        """The row of a shape's and clock's tables, compiled at first use."""
        found = self._table_of.get((tables.tp, freq_mhz))
        if found is None:
            found = self._table_of[tables.tp, freq_mhz] = len(self._table_of)
            alpha_ps, power_w = np.zeros((1, self._widest), np.int64), np.zeros((1, self._widest))
            alpha, power = tables.alpha_ps(freq_mhz), tables.power_w(freq_mhz)
            alpha_ps[0, : len(power)], power_w[0, : len(power)] = alpha[: len(power)], power
            self._speeds = Speeds(
                np.concatenate([self._speeds.alpha_ps, alpha_ps]), np.concatenate([self._speeds.power_w, power_w])
            )
            self._end_talk()
        return found

    def _add_rows(self) -> None:
        """Twice as many, and a tournament for them."""
        self._end_talk()
        before = len(self._rows)
        count = max(_FIRST_ROWS, 2 * before)
        self._rows = longer(self._rows, count)
        self._batches = Batches(*(longer(column, count) for column in self._batches))
        self._rules.rows(count)
        if self._routes is not None:
            self._routes.rows(count)
        self._free_rows += range(count - 1, before - 1, -1)
        leaves = self._tree[len(self._tree) // 2 :][:before]
        self._tree = np.full(2 * count, NONE, np.int64)
        self._tree[count : count + len(leaves)] = leaves
        for r in range(0, count, 2):
            settle(self._tree, self._records[0], r)

    def _add_transfers(self) -> None:
        self._end_talk()
        flying, sent = self._transfers
        self._transfers = Transfers(longer(flying, 2 * len(flying)), longer(sent, 2 * len(sent)))
        self._sent = self._transfers.sent.reshape(-1).data

    def _add_seats(self) -> None:
        self._end_talk()
        before = len(self._seats)
        count = max(_FIRST_SEATS, 2 * before)
        self._seats = longer(self._seats, count)
        self._seats["following"][before : count - 1] = np.arange(before + 1, count)
        self._seats["following"][count - 1] = NONE
        self._tally["free_seat"] = before


class CompiledReplica:
    """One row of the loop: implements ``ReplicaEngine``."""

    __slots__ = ("_loop", "_row")

    def __init__(self, loop: Compiled, row: int) -> None:
        self._loop, self._row = loop, row

    @property
    def busy(self) -> bool:
        return bool(self._loop.seen(self._row)["wake_ps"] != NEVER)

    @property
    def born_ps(self) -> int:
        return int(self._loop.seen(self._row)["born_ps"])

    @property
    def target_mhz(self) -> int:
        row = self._loop.seen(self._row)
        return int(row["freq_mhz"] if row["pending_ps"] == NEVER else row["pending_mhz"])

    def freq_mhz(self, now_ps: int) -> int:
        row = self._loop.seen(self._row)
        return int(row["pending_mhz"] if row["pending_ps"] <= now_ps else row["freq_mhz"])

    @property
    def waiting(self) -> int:
        return int(self._loop.seen(self._row)["waiting"])

    @property
    def running(self) -> int:
        row = self._loop.seen(self._row)
        return int(row["prefilling"] + row["decoding"])

    @property
    def decoding(self) -> int:
        return int(self._loop.seen(self._row)["decoding"])

    @property
    def outbox(self) -> int:
        return int(self._loop.seen(self._row)["outbox"])

    def kv_left(self) -> None:
        self._loop.kv_left(self._row)

    def oldest_wait_ps(self, now_ps: int) -> int:
        position = self._loop.oldest_unanswered(self._row)
        return 0 if position == NONE else now_ps - self._loop.arrived_ps(position)

    def queued(self) -> list[tuple[int, int]]:
        return self._loop.queued(self._row)

    def context_tokens(self, now_ps: int) -> int:
        row = self._loop.seen(self._row)
        return int(row["context"] + row["decoding"] * self._loop.completed(self._row, now_ps))

    def kv_used_tokens(self, now_ps: int) -> int:
        return self.context_tokens(now_ps) + int(self._loop.seen(self._row)["reserved"])

    def energy_wps(self, now_ps: int) -> float:
        row = self._loop.seen(self._row)
        idle_ps, start_ps = int(row["idle_ps"]), int(row["start_ps"])
        energy_wps, idle_w = float(row["energy_wps"]), float(row["idle_w"])
        if row["wake_ps"] != NEVER:
            return energy_wps + float(row["power_w"]) * (now_ps - start_ps) + idle_w * idle_ps
        return energy_wps + idle_w * (idle_ps + now_ps - start_ps)

    def abandon(self, now_ps: int) -> list[int]:
        return self._loop.abandon(self._row, now_ps)
