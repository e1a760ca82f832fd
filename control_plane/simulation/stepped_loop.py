"""The oracle's event loop: plain and slow, every iteration of every replica is an event."""

from collections.abc import Iterator
from heapq import heappop, heappush

from control_plane.hardware.request_columns import RequestColumns
from control_plane.hardware.shape_tables import ShapeTables
from control_plane.simulation.event_loop import NOWHERE, LoopHost
from control_plane.simulation.stepped_replica import IDLE_PS, SteppedReplica
from control_plane.simulation.token_gaps import GapHistogram
from control_plane.simulation.trace import Trace

_NEVER = 1 << 80
_NO_ARRIVAL = (0, _NEVER, 0, 0)


class Stepped:
    """Implements ``EventLoop``."""

    def __init__(self, trace: Trace, columns: RequestColumns, gaps: GapHistogram, host: LoopHost) -> None:
        self.arrived = self.ended = self.lost = self.last_ps = 0
        self._host, self._columns, self._gaps = host, columns, gaps
        self._inputs, self._outputs = trace.input_tokens.data, trace.output_tokens.data
        self._replicas: dict[int, SteppedReplica] = {}
        self._transfers: list[tuple[int, int, int, int, int]] = []
        self._sent = 0
        self._arrivals: Iterator[tuple[int, int, int, int]] = trace.blocks()
        self._next = next(self._arrivals, _NO_ARRIVAL)

    def place(
        self,
        number: int,
        tables: ShapeTables,
        now_ps: int,
        prefills_only: bool = False,
        governed: bool = False,
        node: int = NOWHERE,
    ) -> SteppedReplica:
        del node
        replica = SteppedReplica(tables, self._columns, self._gaps, now_ps, prefills_only, governed)
        self._replicas[number] = replica
        return replica

    def remove(self, number: int) -> None:
        del self._replicas[number]

    def drain(self, number: int) -> None:
        self._replicas[number].draining = True

    def submit(self, number: int, position: int, now_ps: int) -> None:
        self._enter(number, position, now_ps, kv_arrived=False)

    def send_kv(self, position: int, source: int, target: int, arrives_ps: int) -> None:
        self._sent += 1
        heappush(self._transfers, (arrives_ps, self._sent, position, source, target))

    def set_clock(self, number: int, now_ps: int, freq_mhz: int) -> None:
        self._replicas[number].set_clock(now_ps, freq_mhz)

    def play(self, until_ps: int, kv_too: bool) -> None:
        while True:
            busy = [(r.wake_ps, number) for number, r in self._replicas.items() if r.wake_ps != IDLE_PS]
            wake_ps, number = min(busy, default=(_NEVER, NOWHERE))
            due_ps = self._transfers[0][0] if self._transfers else _NEVER
            at_ps = self._next[1]
            if wake_ps <= min(at_ps, due_ps, until_ps):
                self._end_iteration(number, wake_ps)
            elif due_ps <= at_ps and due_ps < until_ps + kv_too:
                self._deliver()
            elif at_ps < until_ps:
                self._arrive()
            else:
                return

    def close(self) -> None:
        self._gaps.fold()
        self._replicas.clear()
        del self._host

    def _end_iteration(self, number: int, now_ps: int) -> None:
        replica, tag = self._replicas[number], number << 33
        progress = replica.end_iteration(now_ps)
        leaving = [p for p in progress.finished if replica.prefills_only and self._outputs[p] > 1]
        self._host.logged([tag | position << 1 for position in progress.first_token if position not in leaving])
        for position in progress.finished:
            self._columns.replica[position] = number
        ended = [position for position in progress.finished if position not in leaving]
        if ended:
            self._host.logged([tag | position << 1 | 1 for position in ended])
            self.ended += len(ended)
            self.last_ps = now_ps
        self._tell_answered(number)
        if leaving:
            replica.hand_over(leaving)
            self._host.hand_over(number, now_ps, leaving)
        self._tell_drained(number, now_ps)

    def _deliver(self) -> None:
        now_ps, _, position, source, target = heappop(self._transfers)
        sender, receiver = self._replicas.get(source), self._replicas.get(target)
        if sender is None or receiver is None or receiver.draining:
            self._host.undelivered(position, target, now_ps)
            return
        sender.kv_left()
        self._enter(target, position, now_ps, kv_arrived=True)
        if receiver.governed:
            self._host.look(target, now_ps)
        self._tell_drained(source, now_ps)

    def _arrive(self) -> None:
        position, at_ps, input_tokens, output_tokens = self._next
        self._next = next(self._arrivals, _NO_ARRIVAL)
        self.arrived += 1
        number = self._host.choose(position, at_ps, input_tokens, output_tokens)
        if number == NOWHERE:
            return
        self._enter(number, position, at_ps, kv_arrived=False)
        if self._replicas[number].governed:
            self._host.look(number, at_ps)

    def _enter(self, number: int, position: int, now_ps: int, kv_arrived: bool) -> None:
        replica = self._replicas[number]
        output_tokens = 1 if replica.prefills_only else self._outputs[position]
        replica.submit(position, self._inputs[position], output_tokens, now_ps, kv_arrived)
        self._tell_answered(number)

    def _tell_answered(self, number: int) -> None:
        replica = self._replicas[number]
        self._host.logged([number << 33 | position << 1 for position in replica.answered])
        replica.answered.clear()

    def _tell_drained(self, number: int, now_ps: int) -> None:
        replica = self._replicas.get(number)
        if replica is not None and replica.draining and not replica.busy and not replica.outbox:
            self._host.drained(number, now_ps)
