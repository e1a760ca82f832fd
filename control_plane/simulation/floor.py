"""Where replicas run: a floor takes arrivals and fires iterations between the events at which anything else changes.

Two do the same: ``HeapFloor`` drives replica objects, ``CompiledFloor`` is one machine-code loop over arrays.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from control_plane.hardware.request_columns import RequestColumns, TokenGaps
from control_plane.hardware.shape_tables import ShapeTables

NOWHERE = -1
"""The replica of a request that waits for one or is lost."""


class ReplicaEngine(Protocol):
    """A replica as the cluster sees it."""

    @property
    def wake_ps(self) -> int: ...
    @property
    def born_ps(self) -> int: ...
    @property
    def target_mhz(self) -> int: ...
    @property
    def waiting(self) -> int: ...
    @property
    def running(self) -> int: ...
    def oldest_wait_ps(self, now_ps: int) -> int: ...
    def energy_wps(self, now_ps: int) -> float: ...
    def abandon(self, now_ps: int) -> list[int]: ...


class SteppedEngine(ReplicaEngine, Protocol):
    """A replica object that its floor drives: both engines of the replica model."""

    @property
    def first_tokens(self) -> Sequence[int]: ...
    def close_spans(self) -> None: ...
    def submit(
        self, key: int, input_tokens: int, output_tokens: int, now_ps: int, kv_arrived: bool = False
    ) -> None: ...
    def set_clock(self, now_ps: int, freq_mhz: int) -> None: ...
    def fire(self, now_ps: int) -> Sequence[int]: ...


EngineFactory = Callable[[ShapeTables, RequestColumns, TokenGaps, int, int], SteppedEngine]
"""Of tables, columns, gaps, the replica's number and its birth in ps."""


class FloorHost(Protocol):
    """What a floor asks of the cluster around it; replicas go by number."""

    def choose(self, position: int, at_ps: int, input_tokens: int, output_tokens: int) -> int:
        """The replica of an arrival, or ``NOWHERE``."""
        ...

    def progress(self, number: int, now_ps: int, first_tokens: Sequence[int], finished: Sequence[int]) -> None:
        """Requests of a replica got their first token or are complete."""
        ...

    def logged(self, entries: Sequence[int]) -> None:
        """The same for many: replica << 33 | request << 1 | (0 first token, 1 complete)."""
        ...

    def idle(self, number: int, now_ps: int) -> None:
        """A replica has nothing left to do."""
        ...


class Floor(Protocol):
    """All replicas of a run, by number. Whatever changes from outside is said at the moment it happens, in between
    two calls of ``play``."""

    @property
    def arrived(self) -> int:
        """How many requests of the trace have come."""
        ...

    @property
    def ended(self) -> int:
        """How many requests are complete, where the floor itself can tell."""
        ...

    @property
    def lost(self) -> int:
        """How many arrivals fitted no replica, where the floor itself routes."""
        ...

    @property
    def last_ps(self) -> int:
        """When a request was last complete."""
        ...

    def place(self, number: int, tables: ShapeTables, now_ps: int) -> ReplicaEngine: ...
    def remove(self, number: int) -> None: ...
    def drain(self, number: int) -> None:
        """Nothing comes any more: tell the host when it is idle."""
        ...

    def submit(
        self,
        number: int,
        position: int,
        input_tokens: int,
        output_tokens: int,
        now_ps: int,
        kv_arrived: bool = False,
    ) -> None: ...
    def set_clock(self, number: int, now_ps: int, freq_mhz: int) -> None: ...
    def play(self, until_ps: int) -> None:
        """All iterations up to and at this moment, all arrivals before it."""
        ...

    def hasten(self, until_ps: int) -> None:
        """End the call of ``play`` under way at this moment, if it would go on for longer."""
        ...

    def close(self) -> None:
        """The run is over: let go of its arrays."""
        ...

    def fold_gaps(self, at_least: int = 0) -> None:
        """Bring the histogram of token gaps up to date, if so many spells are noted."""
        ...
