"""How many tokens a request will generate: a running table by input class, from completed requests only."""

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


_ORDER = tuple(OutputClass)


class LengthTable:
    """Learns output lengths per input class online. Both calls are made for every request: lists by output class."""

    def __init__(self) -> None:
        self._counts: dict[InputClass, list[float]] = {}
        self._tokens: dict[InputClass, list[float]] = {}
        for name in InputClass:
            shares = [PRIOR_SHARES[f"{name.value}{out.value}"] for out in OutputClass]
            total = sum(shares)
            counts = self._counts[name] = [PRIOR_WEIGHT * share / total for share in shares]
            self._tokens[name] = [count * PRIOR_TOKENS[out] for count, out in zip(counts, _ORDER, strict=True)]

    def expected_tokens(self, input_tokens: int, max_tokens: int) -> float:
        """Expected output tokens: the mean over all output classes, each of them cut at ``max_tokens``, because a
        generation stops there whatever its class."""
        name = InputClass.of(input_tokens)
        short, medium, long = self._counts[name]
        a, b, c = self._tokens[name]
        a, b, c = a / short, b / medium, c / long
        if a > max_tokens:
            a = max_tokens
        if b > max_tokens:
            b = max_tokens
        if c > max_tokens:
            c = max_tokens
        return (short * a + medium * b + long * c) / (short + medium + long)

    def learn(self, input_tokens: int, output_tokens: int) -> None:
        name = InputClass.of(input_tokens)
        at = _ORDER.index(OutputClass.of(output_tokens))
        self._counts[name][at] += 1
        self._tokens[name][at] += output_tokens
