"""Histogram of the times between tokens, per request type. It is made from runs of iterations, without looking at
single tokens; ``TokenGaps`` calls such a run a spell."""

import numpy as np
from numpy.typing import NDArray

from control_plane.domain import REQUEST_TYPES
from control_plane.hardware.replica_model import PS_PER_S
from control_plane.hardware.request_columns import GAP_BINS, GAP_LEAST_PS, GAP_STEP, TokenGaps

_LOWER = (1 << 32) - 1


class GapHistogram:
    """Counts of token gaps by request type; a percentile is accurate to half a percent. Inside a run of iterations
    every gap counts as the mean of the run (they differ by the growth of the contexts: well under a percent)."""

    def __init__(self, types: NDArray[np.int8]) -> None:
        self.types = types
        """Of the requests, by position."""
        self.bins = np.zeros((len(REQUEST_TYPES), GAP_BINS))
        """Counts of gaps, by type and bin."""

    def fold(self, gaps: TokenGaps) -> None:
        if len(gaps.spell_ps) and len(gaps.span_from_to):
            self._fold_spells(gaps)
        if len(gaps.late_ps):
            kinds = self.types[np.frombuffer(gaps.late_request, np.int32)]
            np.add.at(self.bins, (kinds, _bin(np.frombuffer(gaps.late_ps, np.int64))), 1)

    def _fold_spells(self, gaps: TokenGaps) -> None:
        """How many of a type decoded in each run of iterations, by adding one where a request begins to decode and
        taking it off where it ends; the runs are put in order of replica first."""
        tags = np.frombuffer(gaps.spell_replica_iterations, np.int64)
        replicas, iterations = tags >> 32, tags & _LOWER
        order = np.argsort(replicas, kind="stable")
        iterations = iterations[order]
        bins = _bin(np.frombuffer(gaps.spell_ps, np.int64)[order] / iterations)
        spans = np.frombuffer(gaps.span_replica_request, np.int64)
        offsets = np.searchsorted(replicas[order], np.arange(int(max(replicas.max(), (spans >> 32).max())) + 1))
        first = offsets[spans >> 32]
        between = np.frombuffer(gaps.span_from_to, np.int64)
        starts, ends = first + (between >> 32), first + (between & _LOWER)
        kinds = self.types[spans & _LOWER]
        for kind in np.unique(kinds):
            mine = kinds == kind
            change = np.bincount(starts[mine], minlength=len(bins) + 1)
            change = change - np.bincount(ends[mine], minlength=len(bins) + 1)
            self.bins[kind] += np.bincount(bins, np.cumsum(change)[: len(bins)] * iterations, GAP_BINS)

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


def _bin(gap_ps: NDArray[np.float64] | NDArray[np.int64]) -> NDArray[np.int64]:
    scaled = np.log(np.maximum(gap_ps, GAP_LEAST_PS) / GAP_LEAST_PS) / np.log(GAP_STEP)
    bins: NDArray[np.int64] = np.minimum(scaled.astype(np.int64), GAP_BINS - 1)
    return bins
