"""A trace as three columns, so that a week of 27 million requests takes 16 bytes a request."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from control_plane.domain import Request
from control_plane.hardware.replica_model import PS_PER_S

_BLOCK = 1 << 16
COPY_TURN_S = 60.0
"""Short against a load curve, long against a burst."""


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """Requests in order of arrival; times in picoseconds from the trace's start. A request's id is its position."""

    arrival_ps: NDArray[np.int64]
    input_tokens: NDArray[np.int32]
    output_tokens: NDArray[np.int32]

    def __post_init__(self) -> None:
        if not len(self.arrival_ps) == len(self.input_tokens) == len(self.output_tokens):
            raise ValueError(
                f"a trace's columns differ in length: {len(self.arrival_ps)} arrivals, {len(self.input_tokens)} "
                f"inputs, {len(self.output_tokens)} outputs"
            )
        if (self.arrival_ps[1:] < self.arrival_ps[:-1]).any():
            raise ValueError("a trace's arrivals must be in order of time")

    @classmethod
    def of(cls, requests: Sequence[Request]) -> Self:
        return cls(
            np.array([round(r.arrival_s * PS_PER_S) for r in requests], np.int64),
            np.array([r.input_tokens for r in requests], np.int32),
            np.array([r.output_tokens for r in requests], np.int32),
        )

    @classmethod
    def at(cls, arrival_s: NDArray[np.float64], inputs: NDArray[np.int32], outputs: NDArray[np.int32]) -> Self:
        return cls(np.rint(arrival_s * PS_PER_S).astype(np.int64), inputs, outputs)

    def __len__(self) -> int:
        return len(self.arrival_ps)

    @property
    def duration_s(self) -> float:
        """From the trace's start to its last arrival."""
        return float(self.arrival_ps[-1]) / PS_PER_S if len(self) else 0.0

    def blocks(self) -> Iterator[tuple[int, int, int, int]]:
        """(position, arrival in ps, input tokens, output tokens), a block of Python numbers at a time."""
        for start in range(0, len(self), _BLOCK):
            part = slice(start, start + _BLOCK)
            times, inputs = self.arrival_ps[part].tolist(), self.input_tokens[part].tolist()
            outputs = self.output_tokens[part].tolist()
            yield from zip(range(start, start + len(times)), times, inputs, outputs, strict=True)

    def requests(self) -> tuple[Request, ...]:
        return tuple(Request(f"r{i}", at / PS_PER_S, tokens, out) for i, at, tokens, out in self.blocks())

    def between(self, from_s: float, until_s: float) -> Self:
        """The requests that arrive in [from_s, until_s), times from ``from_s`` on."""
        first, last = np.searchsorted(self.arrival_ps, [round(from_s * PS_PER_S), round(until_s * PS_PER_S)])
        part = slice(int(first), int(last))
        return type(self)(
            self.arrival_ps[part] - round(from_s * PS_PER_S), self.input_tokens[part], self.output_tokens[part]
        )

    def types(self, part: slice = slice(None)) -> NDArray[np.int8]:
        """Position of each request's type in ``REQUEST_TYPES``; of some rows only where ``part`` says which."""
        rows = _border(self.input_tokens[part], 256, 1024)
        return rows * np.int8(3) + _border(self.output_tokens[part], 100, 350)


def _border(tokens: NDArray[np.int32], medium: int, long: int) -> NDArray[np.int8]:
    """0, 1 or 2: below ``medium``, below ``long``, or longer."""
    return (tokens >= medium).astype(np.int8) + (tokens >= long)


def excerpt(trace: Trace, window_s: float, one_in: int) -> Trace:
    """Every ``one_in``-th window of ``window_s`` seconds, one put behind the other: as many quiet and busy minutes, in
    proportion, as the whole trace has."""
    width_ps = round(window_s * PS_PER_S)
    window = trace.arrival_ps // width_ps
    chosen = np.flatnonzero(window % one_in == 0)
    gaps_ps = window[chosen] * width_ps - window[chosen] // one_in * width_ps
    return Trace(trace.arrival_ps[chosen] - gaps_ps, trace.input_tokens[chosen], trace.output_tokens[chosen])


def scaled(trace: Trace, factor: float, seed: int = 0) -> Trace:
    """As ``scaled_rows``, the trace alone."""
    return scaled_rows(trace, factor, seed)[0]


def scaled_rows(trace: Trace, factor: float, seed: int = 0) -> tuple[Trace, NDArray[np.int64] | None]:
    """``factor`` times as many requests in the same time: whole copies, and of the rest a seeded random share.

    Every further copy is turned by its own random offset of up to a minute (what falls off the end comes in at the
    start): bursts keep their form, the load keeps its curve, and no two copies of a request come together. The second
    value is the position in ``trace`` of each request; None where it is the trace itself.
    """
    if factor <= 0:
        raise ValueError(f"a trace cannot be scaled by {factor}; need a positive number")
    if factor == 1 or not len(trace):
        return trace, None
    random = np.random.default_rng(seed)
    whole = int(factor)
    positions = [np.arange(len(trace)) for _ in range(whole)]
    positions.append(np.flatnonzero(random.random(len(trace)) < factor - whole))
    end_ps = int(trace.arrival_ps[-1]) + 1
    arrivals = []
    for copy, chosen in enumerate(positions):
        turn_ps = int(random.uniform(0, COPY_TURN_S) * PS_PER_S) if copy else 0
        arrivals.append((trace.arrival_ps[chosen] + turn_ps) % end_ps)
    order = np.argsort(np.concatenate(arrivals), kind="stable")
    picked = np.concatenate(positions)[order]
    return Trace(np.concatenate(arrivals)[order], trace.input_tokens[picked], trace.output_tokens[picked]), picked
