"""How many tokens a request will generate: a running table by input class, from completed requests only."""

from dataclasses import dataclass

from control_plane.domain import InputClass, OutputClass

PRIOR_SHARES = {
    "SS": 3.6, "SM": 9.8, "SL": 0.05,
    "MS": 19.0, "MM": 10.4, "ML": 7.7,
    "LS": 15.1, "LM": 8.8, "LL": 25.6,
}  # fmt: skip
"""Percent of requests by type, Azure 2023 conversation trace."""

PRIOR_TOKENS = {OutputClass.SHORT: 40.0, OutputClass.MEDIUM: 200.0, OutputClass.LONG: 430.0}
PRIOR_WEIGHT = 20.0
"""The prior counts as this many requests per input class."""


@dataclass(frozen=True, slots=True)
class LengthPrediction:
    """The likeliest output class, and the expected tokens over all classes."""

    output_class: OutputClass
    expected_tokens: float


@dataclass(slots=True)
class _Cell:
    count: float
    tokens: float


class LengthTable:
    """Learns output lengths per input class online."""

    def __init__(self) -> None:
        self._cells: dict[InputClass, dict[OutputClass, _Cell]] = {}
        self._last: dict[InputClass, tuple[int, LengthPrediction]] = {}
        """The last prediction and the ``max_tokens`` it was for, until something new is learnt."""
        for name in InputClass:
            shares = {out: PRIOR_SHARES[f"{name.value}{out.value}"] for out in OutputClass}
            total = sum(shares.values())
            counts = {out: PRIOR_WEIGHT * share / total for out, share in shares.items()}
            self._cells[name] = {out: _Cell(count, count * PRIOR_TOKENS[out]) for out, count in counts.items()}

    def predict(self, input_tokens: int, max_tokens: int) -> LengthPrediction:
        """Never more than ``max_tokens``: a generation stops there whatever its class."""
        name = InputClass.of(input_tokens)
        last = self._last.get(name)
        if last is not None and last[0] == max_tokens:
            return last[1]
        total = expected = most = 0.0
        likeliest = OutputClass.SHORT
        for out, cell in self._cells[name].items():
            total += cell.count
            expected += cell.count * min(max_tokens, cell.tokens / cell.count)
            if cell.count > most:
                likeliest, most = out, cell.count
        prediction = LengthPrediction(_shorter(likeliest, OutputClass.of(max_tokens)), expected / total)
        self._last[name] = max_tokens, prediction
        return prediction

    def learn(self, input_tokens: int, output_tokens: int) -> None:
        name = InputClass.of(input_tokens)
        cell = self._cells[name][OutputClass.of(output_tokens)]
        cell.count += 1
        cell.tokens += output_tokens
        self._last.pop(name, None)


_ORDER = {out: place for place, out in enumerate(OutputClass)}


def _shorter(one: OutputClass, other: OutputClass) -> OutputClass:
    return one if _ORDER[one] <= _ORDER[other] else other
