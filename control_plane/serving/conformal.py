"""Online conformal correction: a quantile of how far past forecasts were off, at a level that follows its own misses.

Gibbs and Candès, "Adaptive conformal inference under distribution shift" (NeurIPS 2021): where scores are exchangeable
the share covered converges to the nominal one; under a shift the level moves until the long-run share is right again.
"""

from bisect import bisect_left, insort
from collections import deque


class OnlineConformal:
    """The quantile of the last ``window`` scores that keeps a share ``nominal`` of future scores at or below it."""

    def __init__(self, nominal: float, window: int = 300, rate: float = 0.01, fewest: int = 10) -> None:
        """``rate``: how far one miss moves the level; ``fewest``: below so many scores nothing is known."""
        if not 0 < nominal < 1:
            raise ValueError(f"nominal coverage must lie between 0 and 1, got {nominal}")
        self.nominal = nominal
        self._rate, self._fewest = rate, fewest
        self._level = nominal
        self._recent: deque[float] = deque(maxlen=window)
        self._ordered: list[float] = []

    def quantile(self, default: float) -> float:
        """The bound on the next score; ``default`` while too few scores are known."""
        if len(self._ordered) < self._fewest:
            return default
        return self._at(self._level)

    def median(self, default: float) -> float:
        return default if len(self._ordered) < self._fewest else self._at(0.5)

    def observe(self, score: float, bound: float) -> None:
        """``score`` came; ``bound`` is what ``quantile`` had promised for it."""
        if len(self._ordered) >= self._fewest:
            missed = score > bound
            # A level far outside [0, 1] would take as long to come back from.
            self._level = min(1.1, max(-0.1, self._level + self._rate * (missed - (1 - self.nominal))))
        if len(self._recent) == self._recent.maxlen:
            del self._ordered[bisect_left(self._ordered, self._recent[0])]
        self._recent.append(score)
        insort(self._ordered, score)

    def _at(self, level: float) -> float:
        """The ceil(level · (n + 1))-th smallest score; beyond the largest one the largest."""
        count = len(self._ordered)
        rank = -(-level * (count + 1) // 1)
        return self._ordered[min(count, max(1, int(rank))) - 1]
