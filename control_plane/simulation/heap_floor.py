"""Replica objects under one heap of events: runs either engine of the replica model, and all there is to simulate."""

from collections.abc import Iterator
from heapq import heappop, heappush, heapreplace

from control_plane.hardware.request_columns import RequestColumns, TokenGaps
from control_plane.hardware.shape_tables import ShapeTables
from control_plane.simulation.floor import NOWHERE, EngineFactory, FloorHost, ReplicaEngine, SteppedEngine
from control_plane.simulation.token_gaps import GapHistogram
from control_plane.simulation.trace import Trace

_BITS = 43
_NUMBER = (1 << _BITS) - 1
"""An event is one integer, its moment above its replica's number: cheaper to compare than a pair."""
_NEVER = 1 << 80


class HeapFloor:
    """Implements ``Floor``; ``prefill_only`` where arrivals are answered elsewhere, once prefilled."""

    def __init__(
        self,
        trace: Trace,
        columns: RequestColumns,
        histogram: GapHistogram,
        host: FloorHost,
        engine: EngineFactory,
        prefill_only: bool,
    ) -> None:
        self.arrived = self.ended = self.lost = self.last_ps = 0
        self._host, self._engine, self._columns = host, engine, columns
        self._prefill_only = prefill_only
        self._gaps, self._histogram = TokenGaps.none(), histogram
        self._events: list[int] = []
        self._engines: list[SteppedEngine | None] = []
        self._arrivals: Iterator[tuple[int, int, int, int]] = trace.blocks()
        self._next = next(self._arrivals, (0, _NEVER, 0, 0))
        self._until_ps = self._end = 0

    def place(self, number: int, tables: ShapeTables, now_ps: int) -> ReplicaEngine:
        engine = self._engine(tables, self._columns, self._gaps, number, now_ps)
        self._engines.append(engine)
        return engine

    def remove(self, number: int) -> None:
        self._engines[number] = None

    def drain(self, number: int) -> None:
        """The host hears of every idle replica anyway."""

    def submit(
        self,
        number: int,
        position: int,
        input_tokens: int,
        output_tokens: int,
        now_ps: int,
        kv_arrived: bool = False,
    ) -> None:
        engine = self._here(number)
        woke_ps = engine.wake_ps
        engine.submit(position, input_tokens, output_tokens, now_ps, kv_arrived)
        if engine.wake_ps != woke_ps:
            heappush(self._events, engine.wake_ps << _BITS | number)

    def set_clock(self, number: int, now_ps: int, freq_mhz: int) -> None:
        engine = self._here(number)
        woke_ps = engine.wake_ps
        engine.set_clock(now_ps, freq_mhz)
        if engine.wake_ps != woke_ps:
            heappush(self._events, engine.wake_ps << _BITS | number)

    def play(self, until_ps: int) -> None:
        choose, submit, events = self._host.choose, self.submit, self._events
        self._until_ps = until_ps
        while True:
            position, at_ps, input_tokens, output_tokens = self._next
            bound_ps = min(at_ps, self._until_ps)
            if events and events[0] >> _BITS <= bound_ps:
                self._fire_until(bound_ps)
            if at_ps >= self._until_ps:
                return
            self.arrived += 1
            answered = 1 if self._prefill_only else output_tokens
            number = choose(position, at_ps, input_tokens, answered)
            if number != NOWHERE:
                submit(number, position, input_tokens, answered, at_ps)
            self._next = next(self._arrivals, (0, _NEVER, 0, 0))

    def hasten(self, until_ps: int) -> None:
        if until_ps < self._until_ps:
            self._until_ps = until_ps
            self._end = min(self._end, until_ps + 1 << _BITS)

    def close(self) -> None:
        self._engines.clear()

    def fold_gaps(self, at_least: int = 0) -> None:
        if len(self._gaps.spell_ps) + len(self._gaps.late_ps) < at_least:
            return
        for engine in self._engines:
            if engine is not None:
                engine.close_spans()
        self._histogram.fold(self._gaps)
        self._gaps.clear()

    def _fire_until(self, until_ps: int) -> None:
        events, engines, progress = self._events, self._engines, self._host.progress
        self._end = until_ps + 1 << _BITS
        while events and (event := events[0]) < self._end:
            now_ps, number = event >> _BITS, event & _NUMBER
            engine = engines[number]
            if engine is None or engine.wake_ps != now_ps:
                heappop(events)
                continue
            finished = engine.fire(now_ps)
            if finished:
                self.last_ps = now_ps
                progress(number, now_ps, engine.first_tokens, finished)
            elif engine.first_tokens:
                progress(number, now_ps, engine.first_tokens, finished)
            if engine.wake_ps >= 0:
                heapreplace(events, engine.wake_ps << _BITS | number)
            else:
                heappop(events)
                self._host.idle(number, now_ps)

    def _here(self, number: int) -> SteppedEngine:
        engine = self._engines[number]
        if engine is None:
            raise RuntimeError(f"replica {number} is gone")
        return engine
