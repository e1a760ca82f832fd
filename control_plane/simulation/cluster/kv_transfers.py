"""KV caches on their way from prefill to decode replicas.

A replica's link is a queue at each end: it sends one cache after the other and receives one after the other, in the
order in which prefills end, each at the full rate. A cache is received while it is sent; one that waits for its
receiver does not keep the sender's next one from leaving, as networks that share a link among flows behave. Replicas on
the same node use NVLink, others the network adapter; the two do not wait for each other. The event loop holds what
is on its way and says when it arrived.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from control_plane.domain import Role
from control_plane.hardware.replica_model import PS_PER_S
from control_plane.hardware.request_columns import RequestColumns
from control_plane.simulation.cluster.asked_fleet import AskedFleet
from control_plane.simulation.cluster.replicas import Hosted, Replicas
from control_plane.simulation.cluster.times import ClusterTimes
from control_plane.simulation.event_loop import NO_DECODER, TOO_LARGE, EventLoop
from control_plane.simulation.trace import Trace

if TYPE_CHECKING:
    from control_plane.simulation.compiled_loop import Compiled

_SENDS, _RECEIVES = 0, 1


@dataclass(frozen=True, slots=True)
class TooLarge:
    """A request exceeds the KV cache of the replica that it should decode on."""

    target: Hosted | None
    """None where that replica's accounts are right already."""


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
        ruled: "Compiled | None" = None,
    ) -> None:
        """``ruled``: the loop where it hands over by itself; only who had to wait is sent from here then."""
        self._ruled = ruled
        self._times, self._columns, self._fleet = times, columns, fleet
        self._inputs, self._outputs = trace.input_tokens.data, trace.output_tokens.data
        self._replicas, self._loop = replicas, loop
        self._free_ps: dict[tuple[int, int, bool], int] = {}
        """By replica, end and whether inside a node: until when the link is booked."""
        self.waiting: list[int] = []
        """Requests that no decode replica could take when they were prefilled; their replicas hold the KV caches."""

    def source(self, position: int) -> Hosted | None:
        """The replica that prefilled a request; None where it is gone and the KV cache with it."""
        return self._replicas.get(self._columns.replica[position])

    def send(self, position: int, now_ps: int) -> TooLarge | None:
        """Send a request on, or note that it waits. ``TooLarge``: it fits nowhere and keeps its place in the outbox."""
        inputs = self._inputs[position]
        if self._ruled is not None:
            outcome = self._ruled.send_on(position, self._columns.replica[position], now_ps)
            if outcome == NO_DECODER:
                self.waiting.append(position)
            return TooLarge(None) if outcome == TOO_LARGE else None
        chosen = self._fleet.route_decode(now_ps, position, inputs, self._replicas.ready(Role.DECODE))
        if chosen is None:
            self.waiting.append(position)
            return None
        target = self._replicas.by_id[chosen]
        if inputs + self._outputs[position] > target.kv_tokens:
            return TooLarge(target)
        source = self._columns.replica[position]
        self._loop.send_kv(position, source, target.number, self._arrival_ps(position, source, target, now_ps))
        return None

    def _arrival_ps(self, position: int, source: int, target: Hosted, now_ps: int) -> int:
        """When the KV cache of a prompt arrives that was prefilled just now, at least 1 ps later; books both ends of
        the link for it."""
        times = self._times
        inside = self._inside_a_node(source, target)
        bytes_per_s = times.kv_node_bytes_per_s if inside else times.kv_link_bytes_per_s
        whole_ps = round(self._inputs[position] * times.kv_bytes_per_token / bytes_per_s * PS_PER_S)
        sender, receiver = (source, _SENDS, inside), (target.number, _RECEIVES, inside)
        ready_ps = self._columns.started_ps[position] if times.kv_streamed else now_ps
        sent_ps = max(ready_ps, self._free_ps.get(sender, 0)) + whole_ps
        received_ps = max(sent_ps, self._free_ps.get(receiver, 0) + whole_ps)
        self._free_ps[sender], self._free_ps[receiver] = sent_ps, received_ps
        ends_ps = max(received_ps, now_ps + whole_ps // times.kv_layers)
        return max(now_ps + 1, ends_ps + round(times.kv_latency_s * PS_PER_S))

    def _inside_a_node(self, source: int, target: Hosted) -> bool:
        sender = self._replicas.get(source)
        return sender is not None and len({*sender.nodes, *target.nodes}) == 1
