"""How many tokens a request will generate: a running table by input class, from completed requests only."""

from dataclasses import dataclass

from control_plane.domain import InputClass, OutputClass, RequestType

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
        self._cells: dict[RequestType, _Cell] = {}
        for name in InputClass:
            shares = {out: PRIOR_SHARES[f"{name.value}{out.value}"] for out in OutputClass}
            total = sum(shares.values())
            for out, share in shares.items():
                count = PRIOR_WEIGHT * share / total
                self._cells[RequestType(name, out)] = _Cell(count, count * PRIOR_TOKENS[out])

    def predict(self, input_tokens: int, max_tokens: int) -> LengthPrediction:
        """Never more than ``max_tokens``: a generation stops there whatever its class."""
        name = InputClass.of(input_tokens)
        cells = {out: self._cells[RequestType(name, out)] for out in OutputClass}
        total = sum(cell.count for cell in cells.values())
        expected = sum(cell.count * min(max_tokens, cell.tokens / cell.count) for cell in cells.values()) / total
        likeliest = max(cells, key=lambda out: cells[out].count)
        ceiling = OutputClass.of(max_tokens)
        order = list(OutputClass)
        return LengthPrediction(order[min(order.index(likeliest), order.index(ceiling))], expected)

    def learn(self, input_tokens: int, output_tokens: int) -> None:
        cell = self._cells[RequestType.of(input_tokens, output_tokens)]
        cell.count += 1
        cell.tokens += output_tokens
