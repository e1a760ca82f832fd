"""Where replicas run: an event loop takes arrivals, ends iterations and delivers KV caches between the events at which
anything else changes.

Two do the same: ``Stepped`` steps the replica model one iteration at a time and is the oracle, ``Compiled`` is one loop
of machine code over arrays. At one moment iterations end first, by the replica's number; then KV caches arrive, in the
order in which they were sent; then requests do.
"""

from collections.abc import Sequence
from typing import Protocol

from control_plane.hardware.shape_tables import ShapeTables

NOWHERE = -1
"""The replica of a request that waits for one or is lost."""
NO_DECODER, TOO_LARGE, SENT_ON = range(3)
"""What became of a prefilled request: no decode replica there, more than the KV cache of the one chosen, on its way."""


class ReplicaEngine(Protocol):
    """A replica as the cluster sees it. Energies are in watt-picoseconds, of all its GPUs."""

    @property
    def busy(self) -> bool:
        """An iteration is under way."""
        ...

    @property
    def born_ps(self) -> int: ...
    @property
    def target_mhz(self) -> int:
        """The clock that was set last."""
        ...

    @property
    def waiting(self) -> int: ...
    @property
    def running(self) -> int: ...
    @property
    def decoding(self) -> int: ...
    @property
    def outbox(self) -> int:
        """Requests whose KV cache waits here or is on its way to another replica."""
        ...

    def kv_left(self) -> None:
        """One of them is no longer held for."""
        ...

    def freq_mhz(self, now_ps: int) -> int:
        """The clock that runs now."""
        ...

    def oldest_wait_ps(self, now_ps: int) -> int: ...
    def queued(self) -> Sequence[tuple[int, int]]:
        """(position, prompt tokens that are not prefilled yet) of those who wait for a first token, in the order of
        the queue."""
        ...

    def context_tokens(self, now_ps: int) -> int: ...
    def kv_used_tokens(self, now_ps: int) -> int: ...
    def energy_wps(self, now_ps: int) -> float: ...
    def abandon(self, now_ps: int) -> list[int]:
        """The replica is lost: everyone who was here, in order of submission, billed up to now."""
        ...


class LoopHost(Protocol):
    """What an event loop asks of the cluster around it; replicas go by number, requests by position in the trace."""

    def choose(self, position: int, at_ps: int, input_tokens: int, output_tokens: int) -> int:
        """The replica of an arrival, or ``NOWHERE``."""
        ...

    def logged(self, entries: Sequence[int]) -> None:
        """First tokens, when the client has them, and completions: replica << 33 | request << 1 | (0 first token, 1
        complete). Where the loop routes by a rule also arrivals: ~request."""
        ...

    def hand_over(self, number: int, now_ps: int, positions: Sequence[int]) -> None:
        """A prefill replica is done with these requests, which have tokens left to decode; its outbox holds them."""
        ...

    def stranded(self, position: int, too_large: bool, now_ps: int) -> None:
        """Where the loop hands over by a rule: a prefilled request found no decode replica, or one whose KV cache it
        exceeds. It keeps its place in the outbox."""
        ...

    def undelivered(self, position: int, target: int, now_ps: int) -> None:
        """A KV cache arrived, but the replica that sent it or the one it was meant for is gone or drains."""
        ...

    def look(self, number: int, now_ps: int) -> None:
        """A request came to a replica with a governor."""
        ...

    def drained(self, number: int, now_ps: int) -> None:
        """A draining replica has nothing left to do and nothing left to send."""
        ...


class EventLoop(Protocol):
    """All replicas of a run, by number. Whatever changes from outside is said at the moment it happens, in between
    two calls of ``play`` or in an answer to the host."""

    @property
    def arrived(self) -> int:
        """How many requests of the trace have come."""
        ...

    @property
    def ended(self) -> int:
        """How many requests are complete."""
        ...

    @property
    def lost(self) -> int:
        """How many arrivals fitted no replica, where the loop itself routes."""
        ...

    @property
    def last_ps(self) -> int:
        """When a request last ended."""
        ...

    def place(
        self,
        number: int,
        tables: ShapeTables,
        now_ps: int,
        prefills_only: bool = False,
        governed: bool = False,
        node: int = NOWHERE,
    ) -> ReplicaEngine:
        """A new replica; numbers count up from 0. ``prefills_only``: its requests are handed over after their first
        token. ``governed``: the host is told of every arrival. ``node``: where all its GPUs are, ``NOWHERE`` where they
        are on several."""
        ...

    def remove(self, number: int) -> None: ...
    def drain(self, number: int) -> None:
        """Nothing comes any more: tell the host when it is idle."""
        ...

    def submit(self, number: int, position: int, now_ps: int) -> None:
        """Queue a request of the trace; whoever calls has checked that the KV cache could hold it."""
        ...

    def send_kv(self, position: int, source: int, target: int, arrives_ps: int) -> None:
        """A prefilled request leaves its replica's outbox for another replica, where it is queued on arrival."""
        ...

    def set_clock(self, number: int, now_ps: int, freq_mhz: int) -> None:
        """The highest supported clock not above ``freq_mhz``, for iterations that begin once it has settled."""
        ...

    def play(self, until_ps: int, kv_too: bool) -> None:
        """All iterations up to and at this moment, all arrivals before it, and KV caches before it or (``kv_too``) up
        to and at it."""
        ...

    def close(self) -> None:
        """The run is over: let go of its host and its arrays."""
        ...
