"""Iteration times of one tensor parallelism as integer tables, compiled clock by clock at first use."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from control_plane.hardware.gpu_model import Activity
from control_plane.hardware.replica_model import PS_PER_S

Floats = NDArray[np.float64]


class IterationTables:
    """Implements ``replica_model.IterationTimes`` from a formula or from points.

    ``seconds`` gives the duration of an iteration by clock and tokens (an array), contexts and prefill
    attention left out.
    """

    def __init__(
        self,
        seconds: Callable[[int, Floats], Floats],
        freqs_mhz: Sequence[int],
        attention_s: Mapping[int, float],
        context_s: float,
        activity: Sequence[Activity],
    ) -> None:
        """``attention_s`` is by clock and per pair of tokens; ``activity`` is by tokens, and its length says how far
        the tables go."""
        self._seconds = seconds
        self._freqs_mhz = frozenset(freqs_mhz)
        self._attention_ps = {freq: picoseconds(value) for freq, value in attention_s.items()}
        self._context_ps = picoseconds(context_s)
        self._activity = tuple(activity)
        self._alpha_ps: dict[int, tuple[int, ...]] = {}
        top = len(self._activity) - 1
        ends_s = {freq: seconds(freq, np.array([0.0, float(top)])) for freq in freqs_mhz}
        self.base_ps = {freq: picoseconds(empty_s) for freq, (empty_s, _) in ends_s.items()}
        """An iteration's fixed part."""
        self.token_ps = {freq: picoseconds((full_s - empty_s) / top) for freq, (empty_s, full_s) in ends_s.items()}
        """What a token adds in a full iteration: the speed that routers rank replicas by."""

    @property
    def context_ps(self) -> int:
        return self._context_ps

    def alpha_ps(self, freq_mhz: int) -> Sequence[int]:
        table = self._alpha_ps.get(freq_mhz)
        if table is None:
            if freq_mhz not in self._freqs_mhz:
                raise ValueError(f"no iteration times at {freq_mhz} MHz, only at {sorted(self._freqs_mhz)}")
            row_s = self._seconds(freq_mhz, np.arange(len(self._activity), dtype=np.float64))
            table = tuple(np.rint(row_s * PS_PER_S).astype(np.int64).tolist())
            self._alpha_ps[freq_mhz] = table
        return table

    def attention_ps(self, freq_mhz: int) -> int:
        return self._attention_ps[freq_mhz]

    def activity(self, tokens: int) -> Activity:
        return self._activity[tokens]


def picoseconds(seconds: float) -> int:
    return round(float(seconds) * PS_PER_S)
