"""What arrived lately, as columns, and how many first tokens came late: the past that fleets are sized for."""

from array import array
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from control_plane.domain import Load

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Answers:
    """What became of some requests."""

    answered: int = 0
    """First tokens that clients have got."""
    late: int = 0
    """Of them, those after their TTFT limit."""

    def __add__(self, other: "Answers") -> "Answers":
        return Answers(self.answered + other.answered, self.late + other.late)


@dataclass(frozen=True, slots=True, eq=False)
class Arrivals:
    """Requests in order of arrival. ``output_tokens`` are predicted; ``answers`` counts since the log began."""

    at_s: Floats
    input_tokens: Floats
    output_tokens: Floats
    answers: Answers = Answers()

    def __len__(self) -> int:
        return len(self.at_s)

    @classmethod
    def none(cls) -> Self:
        empty = np.empty(0)
        return cls(empty, empty, empty)

    @classmethod
    def steady(cls, load: Load, for_s: float) -> "Arrivals":
        """As many requests as a load brings, those of each class evenly apart."""
        at_s, inputs, outputs = [], [], []
        for part in load.by_class.values():
            count = round(part.rps * for_s)
            at_s.append((np.arange(count) + 0.5) / max(part.rps, 1e-9))
            inputs.append(np.full(count, part.input_tokens))
            outputs.append(np.full(count, part.output_tokens))
        if not at_s:
            return cls.none()
        times_s = np.concatenate(at_s)
        order = np.argsort(times_s, kind="stable")
        return cls(times_s[order], np.concatenate(inputs)[order], np.concatenate(outputs)[order])

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

    def later(self, by_s: float) -> "Arrivals":
        """The same requests on another clock."""
        return replace(self, at_s=self.at_s + by_s)

    def faster(self, factor: float) -> "Arrivals":
        """The same requests in so many times less time."""
        return replace(self, at_s=self.at_s / factor)


class ArrivalLog:
    """Remembers the arrivals of the last ``keep_s``."""

    def __init__(self, keep_s: float = 3600.0) -> None:
        self._keep_s = keep_s
        self._at_s, self._inputs, self._outputs = array("d"), array("d"), array("d")
        self._answers = Answers()

    def add(self, at_s: float, input_tokens: int, output_tokens: float) -> None:
        """In order of time; ``output_tokens`` is predicted."""
        self._at_s.append(at_s)
        self._inputs.append(input_tokens)
        self._outputs.append(output_tokens)

    def answers(self, answers: Answers) -> None:
        self._answers += answers

    def recent(self, now_s: float) -> Arrivals:
        """A copy of what came in the last ``keep_s``; older arrivals are forgotten."""
        first = int(np.searchsorted(np.frombuffer(self._at_s), now_s - self._keep_s)) if self._at_s else 0
        if first > len(self._at_s) // 2:
            for column in (self._at_s, self._inputs, self._outputs):
                del column[:first]
            first = 0
        at_s, inputs, outputs = (np.array(column[first:]) for column in (self._at_s, self._inputs, self._outputs))
        return Arrivals(at_s, inputs, outputs, self._answers)
