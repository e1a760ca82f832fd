"""What arrived lately and how long the answers were, as columns: the past that fleets are sized for."""

from array import array
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

OUTPUTS_KEPT = 2_000
"""Completed answers whose lengths are remembered: enough for a 3 % quantile."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What became of some requests."""

    answered: int = 0
    """First tokens that clients have got."""
    late: int = 0
    """Of them, those after their TTFT limit."""
    finished_tokens: Sequence[int] = ()
    """Lengths of the answers that were completed."""


@dataclass(frozen=True, slots=True, eq=False)
class Arrivals:
    """Requests in order of arrival. ``output_tokens`` are predicted; ``finished_tokens`` are the true lengths of the
    last answers that were completed, in no order that matters. ``answered`` and ``late`` count first tokens since the
    log began."""

    at_s: Floats
    input_tokens: Floats
    output_tokens: Floats
    finished_tokens: Floats
    answered: int = 0
    late: int = 0

    def __len__(self) -> int:
        return len(self.at_s)

    @classmethod
    def none(cls) -> Self:
        empty = np.empty(0)
        return cls(empty, empty, empty, empty)

    def between(self, from_s: float, to_s: float) -> "Arrivals":
        """Those that came in [from_s, to_s)."""
        first, last = np.searchsorted(self.at_s, (from_s, to_s))
        part = slice(int(first), int(last))
        return replace(
            self, at_s=self.at_s[part], input_tokens=self.input_tokens[part], output_tokens=self.output_tokens[part]
        )

    def where(self, mask: NDArray[np.bool_]) -> "Arrivals":
        return replace(
            self, at_s=self.at_s[mask], input_tokens=self.input_tokens[mask], output_tokens=self.output_tokens[mask]
        )

    def faster(self, factor: float) -> "Arrivals":
        """The same requests in so many times less time."""
        return replace(self, at_s=self.at_s / factor)


class ArrivalLog:
    """Remembers the arrivals of the last ``keep_s``."""

    def __init__(self, keep_s: float = 3600.0) -> None:
        self._keep_s = keep_s
        self._at_s, self._inputs, self._outputs = array("d"), array("d"), array("d")
        self._answered = self._late = 0
        self._finished: deque[int] = deque(maxlen=OUTPUTS_KEPT)

    def add(self, at_s: float, input_tokens: int, output_tokens: float) -> None:
        """In order of time; ``output_tokens`` is predicted."""
        self._at_s.append(at_s)
        self._inputs.append(input_tokens)
        self._outputs.append(output_tokens)

    def answers(self, answers: Answers) -> None:
        self._answered += answers.answered
        self._late += answers.late
        self._finished.extend(answers.finished_tokens)

    def recent(self, now_s: float) -> Arrivals:
        """A copy of what came in the last ``keep_s``; older arrivals are forgotten."""
        first = int(np.searchsorted(np.frombuffer(self._at_s), now_s - self._keep_s)) if self._at_s else 0
        if first > len(self._at_s) // 2:
            for column in (self._at_s, self._inputs, self._outputs):
                del column[:first]
            first = 0
        at_s, inputs, outputs = (np.array(column[first:]) for column in (self._at_s, self._inputs, self._outputs))
        finished = np.array(self._finished, np.float64)
        return Arrivals(at_s, inputs, outputs, finished, self._answered, self._late)
