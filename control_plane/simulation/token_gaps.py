"""Histogram of the times between tokens, per request type."""

from array import array

import numpy as np
from numpy.typing import NDArray

from control_plane.domain import REQUEST_TYPES
from control_plane.hardware.replica_model import PS_PER_S
from control_plane.hardware.request_columns import GAP_BINS, GAP_LEAST_PS, GAP_STEP

_FOLD_AT = 1 << 16


class GapHistogram:
    """Counts of token gaps by request type; a percentile is accurate to half a percent. The compiled event loop counts
    every gap of a run of iterations as the mean of the run (they differ by the growth of the contexts: well under a
    percent)."""

    def __init__(self, types: NDArray[np.int8]) -> None:
        self.types = types
        """Of the requests, by position."""
        self.bins = np.zeros((len(REQUEST_TYPES), GAP_BINS))
        """Counts of gaps, by type and bin."""
        self._positions, self._gaps_ps = array("i"), array("q")

    def note(self, position: int, gap_ps: int) -> None:
        """One gap between two tokens of a request; ``fold`` counts it."""
        self._positions.append(position)
        self._gaps_ps.append(gap_ps)
        if len(self._positions) >= _FOLD_AT:
            self.fold()

    def fold(self) -> None:
        """Count what was noted."""
        if self._positions:
            kinds = self.types[np.array(self._positions, np.int32)]
            np.add.at(self.bins, (kinds, _bin(np.array(self._gaps_ps, np.int64))), 1)
            self._positions, self._gaps_ps = array("i"), array("q")

    def counts(self) -> NDArray[np.float64]:
        total: NDArray[np.float64] = self.bins.sum(axis=1)
        return total

    def percentile_s(self, share: float, kind: int | None = None) -> float:
        """The gap that ``share`` of all gaps (of one type, or of all) do not exceed; 0 where there are none."""
        counts = self.bins.sum(axis=0) if kind is None else self.bins[kind]
        total = counts.sum()
        if total <= 0:
            return 0.0
        found = int(np.searchsorted(np.cumsum(counts), share * total))
        return float(GAP_LEAST_PS * GAP_STEP ** (min(found, GAP_BINS - 1) + 0.5)) / PS_PER_S


def _bin(gap_ps: NDArray[np.int64]) -> NDArray[np.int64]:
    scaled = np.log(np.maximum(gap_ps, GAP_LEAST_PS) / GAP_LEAST_PS) / np.log(GAP_STEP)
    bins: NDArray[np.int64] = np.minimum(scaled.astype(np.int64), GAP_BINS - 1)
    return bins
