"""Histogram of the times between tokens, per request type, folded from spells without looking at single tokens."""

import numpy as np
from numpy.typing import NDArray

from control_plane.domain import REQUEST_TYPES
from control_plane.hardware.replica_model import PS_PER_S
from control_plane.hardware.request_columns import TokenGaps

_LEAST_PS, _STEP, _BINS = 10**8, 1.005, 3300
"""0.1 ms to about 1,400 s in bins half a percent wide."""


class GapHistogram:
    """Counts of token gaps by request type; a percentile is good to half a percent. Inside a spell every gap counts
    as the spell's mean (they differ by the growth of the contexts: well under a percent)."""

    def __init__(self, types: NDArray[np.int8]) -> None:
        self._types = types
        self._counts = np.zeros((len(REQUEST_TYPES), _BINS))

    def fold(self, gaps: TokenGaps) -> None:
        spells = len(gaps.iterations)
        if spells and len(gaps.request):
            kinds = self._types[np.frombuffer(gaps.request, np.int32)]
            iterations = np.frombuffer(gaps.iterations, np.int32)
            bins = _bin(np.frombuffer(gaps.duration_ps, np.int64) / iterations)
            starts, ends = np.frombuffer(gaps.from_spell, np.int32), np.frombuffer(gaps.to_spell, np.int32)
            for kind in np.unique(kinds):
                mine = kinds == kind
                change = np.bincount(starts[mine], minlength=spells + 1)
                change = change - np.bincount(ends[mine], minlength=spells + 1)
                self._counts[kind] += np.bincount(bins, np.cumsum(change)[:spells] * iterations, _BINS)
        if len(gaps.late_ps):
            late = np.frombuffer(gaps.late_ps, np.int64)
            kinds = self._types[np.frombuffer(gaps.late_request, np.int32)]
            np.add.at(self._counts, (kinds, _bin(late)), 1)

    def counts(self) -> NDArray[np.float64]:
        total: NDArray[np.float64] = self._counts.sum(axis=1)
        return total

    def percentile_s(self, share: float, kind: int | None = None) -> float:
        """The gap that ``share`` of all gaps (of one type, or of all) do not exceed; 0 where there are none."""
        counts = self._counts.sum(axis=0) if kind is None else self._counts[kind]
        total = counts.sum()
        if total <= 0:
            return 0.0
        found = int(np.searchsorted(np.cumsum(counts), share * total))
        return float(_LEAST_PS * _STEP ** (min(found, _BINS - 1) + 0.5)) / PS_PER_S


def _bin(gap_ps: NDArray[np.float64] | NDArray[np.int64]) -> NDArray[np.int64]:
    scaled = np.log(np.maximum(gap_ps, _LEAST_PS) / _LEAST_PS) / np.log(_STEP)
    bins: NDArray[np.int64] = np.minimum(scaled.astype(np.int64), _BINS - 1)
    return bins
