"""What became of each request of a run, a column per fact: 27 million requests fit where objects would not."""

from array import array
from dataclasses import dataclass

NOT_YET = -1


@dataclass(frozen=True, slots=True)
class RequestColumns:
    """By position in the trace. Picoseconds of the run's clock, ``NOT_YET`` where it did not happen; energy in
    watt-picoseconds, the request's share of the iterations it was part of."""

    arrival_ps: "array[int]"
    started_ps: "array[int]"
    """When its first prefill chunk began; until then it queued."""
    first_token_ps: "array[int]"
    finished_ps: "array[int]"
    energy_wps: "array[float]"
    replica: "array[int]"
    """Number of the replica that finished it."""

    @classmethod
    def for_arrivals(cls, arrival_ps: bytes) -> "RequestColumns":
        """``arrival_ps``: native 64-bit integers."""
        arrivals = array("q", arrival_ps)
        count = len(arrivals)
        unset = array("q", [NOT_YET])
        energy, replica = array("d", bytes(8 * count)), array("i", [NOT_YET]) * count
        return cls(arrivals, unset * count, unset * count, unset * count, energy, replica)

    def __len__(self) -> int:
        return len(self.arrival_ps)


@dataclass(frozen=True, slots=True)
class TokenGaps:
    """Times between tokens on one replica. A spell is ``iterations`` iterations that lasted ``duration_ps`` together;
    a request decoded in the spells ``[from_spell, to_spell)``. Gaps that a spell does not hold (recomputation after a
    preemption, the way from a prefill replica to a decode replica) are listed one by one."""

    duration_ps: "array[int]"
    iterations: "array[int]"
    request: "array[int]"
    from_spell: "array[int]"
    to_spell: "array[int]"
    late_request: "array[int]"
    late_ps: "array[int]"

    @classmethod
    def none(cls) -> "TokenGaps":
        return cls(array("q"), array("i"), array("i"), array("i"), array("i"), array("i"), array("q"))
