"""The fleet of policies as the cluster asks it: told first what happened, and billed for its CPU time."""

from collections.abc import Callable, Sequence
from itertools import pairwise

from control_plane.actions import Step
from control_plane.domain import PoolName, ReplicaId, ReplicaView
from control_plane.hardware.replica_model import PS_PER_S
from control_plane.hardware.request_columns import RequestColumns
from control_plane.serving.routing import Candidate
from control_plane.simulation.fleet import Fleet, RuledFleet
from control_plane.simulation.trace import Trace

_NUMBER, _POSITION = 33, (1 << 32) - 1
MEASURED_ONE_IN = 7
"""Reading the CPU clock is a system call: at every call it took half the time of a month's run. A prime, so that kinds
of calls that take turns are all measured."""
PS_IN_S = float(PS_PER_S)
"""Divided by as a double, the moment rounded first: machine code rounds like this."""


class AskedFleet:
    """First tokens and completions are noted in batches; the fleet hears of them before it is asked anything.

    ``clock_s`` counts CPU seconds; without it ``cpu_s`` stays 0. ``learns_nothing``: the fleet is not told of requests.
    """

    def __init__(
        self,
        fleet: Fleet,
        trace: Trace,
        columns: RequestColumns,
        names: Sequence[tuple[PoolName, ReplicaId]],
        clock_s: Callable[[], float] | None,
        learns_nothing: bool,
        first_token: Callable[[int, int, float], None],
    ) -> None:
        """``first_token`` (replica, request, TTFT in s) is told beside the fleet."""
        self._fleet, self._names, self._clock_s, self._learns_nothing = fleet, names, clock_s, learns_nothing
        self._columns, self._first_token = columns, first_token
        self._inputs, self._outputs = trace.input_tokens.data, trace.output_tokens.data
        self._clock_cost_s = _cost_s(clock_s) if clock_s else 0.0
        self._noted: list[int] = []
        self._admit = fleet.admit if isinstance(fleet, RuledFleet) else _not_ruled
        self.cpu_s = 0.0
        """CPU seconds spent in the fleet's policies, estimated from one call in ``MEASURED_ONE_IN``."""
        self._calls = 0

    def note(self, entries: Sequence[int]) -> None:
        """Replica << 33 | request << 1 | (0 first token, 1 complete), and ~request where it came and was routed by the
        fleet's rule."""
        self._noted += entries

    def tell(self) -> None:
        if self._noted:
            start_s = self._start()
            self._tell()
            self._stop(start_s)

    def admit(self, now_ps: int, input_tokens: int) -> None:
        """A request is routed by the fleet's rule, not by asking it."""
        start_s = self._start()
        self._tell()
        self._admit(now_ps / PS_IN_S, input_tokens)
        self._stop(start_s)

    def route(self, now_ps: int, position: int, input_tokens: int, candidates: Sequence[Candidate]) -> ReplicaId | None:
        start_s = self._start()
        if self._noted:
            self._tell()
        chosen = self._fleet.route(now_ps / PS_IN_S, position, input_tokens, candidates)
        self._stop(start_s)
        return None if chosen is None else chosen[1]

    def route_decode(
        self, now_ps: int, position: int, input_tokens: int, candidates: Sequence[Candidate]
    ) -> ReplicaId | None:
        start_s = self._start()
        if self._noted:
            self._tell()
        chosen = self._fleet.route_decode(now_ps / PS_IN_S, position, input_tokens, candidates)
        self._stop(start_s)
        return chosen

    def dropped(self, position: int, replica_id: ReplicaId) -> None:
        if self._learns_nothing:
            return
        start_s = self._start()
        self._tell()
        self._fleet.dropped(position, replica_id)
        self._stop(start_s)

    def step(self, now_s: float, seen: Sequence[tuple[PoolName, ReplicaView]]) -> Step:
        start_s = self._start()
        self._tell()
        step = self._fleet.step(now_s, seen)
        self._stop(start_s)
        return step

    def _tell(self) -> None:
        first_token, ended, names = self._fleet.first_token, self._fleet.ended, self._names
        first_token_too = self._first_token
        inputs, outputs = self._inputs, self._outputs
        first_ps, arrivals = self._columns.first_token_ps, self._columns.arrival_ps
        noted, self._noted = self._noted, []
        for entry in noted:
            if entry < 0:
                self._admit(arrivals[~entry] / PS_IN_S, inputs[~entry])
                continue
            position = entry >> 1 & _POSITION
            number = entry >> _NUMBER
            replica_id = names[number][1]
            if entry & 1:
                ended(position, replica_id, inputs[position], outputs[position])
            else:
                ttft_s = (first_ps[position] - arrivals[position]) / PS_PER_S
                first_token(position, replica_id, inputs[position], ttft_s)
                first_token_too(number, position, ttft_s)

    def _start(self) -> float | None:
        """None: this call is not measured."""
        self._calls += 1
        return self._clock_s() if self._clock_s is not None and self._calls % MEASURED_ONE_IN == 0 else None

    def _stop(self, start_s: float | None) -> None:
        if start_s is not None and self._clock_s is not None:
            self.cpu_s += MEASURED_ONE_IN * (self._clock_s() - start_s - self._clock_cost_s)


def _not_ruled(now_s: float, input_tokens: int) -> None:
    raise RuntimeError(f"{input_tokens} tokens were routed at {now_s} s by a rule, but the fleet has none")


def _cost_s(clock_s: Callable[[], float]) -> float:
    """What reading the clock adds to what it measures."""
    reads = [clock_s() for _ in range(9)]
    return min(after - before for before, after in pairwise(reads))
