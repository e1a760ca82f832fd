"""What became of each request of a run, a column per fact: 27 million requests fit where objects would not."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

NOT_YET = -1

GAP_LEAST_PS, GAP_STEP, GAP_BINS = 10**8, 1.005, 3300
"""Token gaps are counted from 0.1 ms to about 1,400 s in bins half a percent wide."""


@dataclass(frozen=True, slots=True)
class RequestColumns:
    """By position in the trace. Picoseconds of the run's clock, ``NOT_YET`` where it did not happen; energy in
    watt-picoseconds, the request's share of the iterations it was part of."""

    arrival_ps: Sequence[int]
    started_ps: "array[int]"
    """When its first prefill chunk began; until then it queued."""
    first_token_ps: "array[int]"
    """When the client got it: at the end of the prefill or, with phases apart, when a decode replica took the request
    into its batch."""
    finished_ps: "array[int]"
    energy_wps: "array[float]"
    replica: "array[int]"
    """Number of the replica that finished it."""

    @classmethod
    def for_arrivals(cls, arrival_ps: Sequence[int]) -> "RequestColumns":
        count = len(arrival_ps)
        unset = array("q", [NOT_YET])
        energy, replica = array("d", bytes(8 * count)), array("i", [NOT_YET]) * count
        return cls(arrival_ps, unset * count, unset * count, unset * count, energy, replica)

    def __len__(self) -> int:
        return len(self.arrival_ps)


@dataclass(frozen=True, slots=True)
class TokenGaps:
    """Times between tokens, of all replicas together. A spell is some iterations in a row of one replica; spells are
    numbered per replica from 0, and a request decoded in those of a range. Gaps that a spell does not hold
    (recomputation after a preemption) are listed one by one.

    Two numbers share 64 bits, the first in the upper half: it is written millions of times.
    """

    spell_ps: "array[int]"
    spell_replica_iterations: "array[int]"
    span_replica_request: "array[int]"
    span_from_to: "array[int]"
    late_request: "array[int]"
    late_ps: "array[int]"

    @classmethod
    def none(cls) -> "TokenGaps":
        return cls(array("q"), array("q"), array("q"), array("q"), array("i"), array("q"))

    def clear(self) -> None:
        for column in (self.spell_ps, self.spell_replica_iterations, self.span_replica_request, self.span_from_to):
            del column[:]
        del self.late_request[:], self.late_ps[:]
