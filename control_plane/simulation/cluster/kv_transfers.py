"""KV caches on their way from prefill to decode replicas.

A transfer has the link to itself: its time depends on its size alone (``travel_ps``). A model in which transfers share
links replaces that function; the event loop holds what is on its way and says when it arrived.
"""

from dataclasses import dataclass

from control_plane.domain import Role
from control_plane.hardware.replica_model import PS_PER_S
from control_plane.hardware.request_columns import RequestColumns
from control_plane.simulation.cluster.asked_fleet import AskedFleet
from control_plane.simulation.cluster.replicas import Hosted, Replicas
from control_plane.simulation.cluster.times import ClusterTimes
from control_plane.simulation.event_loop import EventLoop
from control_plane.simulation.trace import Trace


@dataclass(frozen=True, slots=True)
class TooLarge:
    """A request exceeds the KV cache of the replica that it should decode on."""

    target: Hosted


class KvTransfers:
    """Chooses a decode replica for every prefilled request and sends the KV cache there."""

    def __init__(
        self,
        times: ClusterTimes,
        trace: Trace,
        columns: RequestColumns,
        fleet: AskedFleet,
        replicas: Replicas,
        loop: EventLoop,
    ) -> None:
        self._times, self._columns, self._fleet = times, columns, fleet
        self._inputs, self._outputs = trace.input_tokens.data, trace.output_tokens.data
        self._replicas, self._loop = replicas, loop
        self.waiting: list[int] = []
        """Requests that no decode replica could take when they were prefilled; their replicas hold the KV caches."""

    def source(self, position: int) -> Hosted | None:
        """The replica that prefilled a request; None where it is gone and the KV cache with it."""
        return self._replicas.get(self._columns.replica[position])

    def send(self, position: int, now_ps: int) -> TooLarge | None:
        """Send a request on, or note that it waits. ``TooLarge``: it fits nowhere and keeps its place in the outbox."""
        inputs = self._inputs[position]
        chosen = self._fleet.route_decode(now_ps, position, inputs, self._replicas.ready(Role.DECODE))
        if chosen is None:
            self.waiting.append(position)
            return None
        target = self._replicas.by_id[chosen]
        if inputs + self._outputs[position] > target.kv_tokens:
            return TooLarge(target)
        arrives_ps = now_ps + self.travel_ps(inputs)
        self._loop.send_kv(position, self._columns.replica[position], target.number, arrives_ps)
        return None

    def travel_ps(self, input_tokens: int) -> int:
        """How long the KV cache of a prompt takes, at least 1 ps."""
        times = self._times
        kv_bytes = input_tokens * times.kv_bytes_per_token
        return max(1, round((times.kv_latency_s + kv_bytes / times.kv_link_bytes_per_s) * PS_PER_S))
