"""A replica's latencies over the last minute, as its pool's controller may ask for them."""

from collections import deque
from collections.abc import Callable, Sequence

WINDOW_S = 60.0
KEPT = 4096
"""Of more requests in a minute the latest count."""


class Latencies:
    """Time to first token and mean time between tokens of the requests that ended here."""

    def __init__(self, clock_s: Callable[[], float]) -> None:
        self._clock_s = clock_s
        self._ended: deque[tuple[float, float, float | None]] = deque(maxlen=KEPT)

    def ended(self, ttft_s: float, mean_tbt_s: float | None) -> None:
        """``mean_tbt_s`` None: the answer had one token."""
        self._ended.append((self._clock_s(), ttft_s, mean_tbt_s))

    def mean_tbt_s(self) -> float | None:
        """Mean over the last minute's requests; None where there were none."""
        self._forget_old()
        tbts = [tbt_s for _, _, tbt_s in self._ended if tbt_s is not None]
        return sum(tbts) / len(tbts) if tbts else None

    def p99(self) -> tuple[float | None, float | None]:
        """(TTFT, TBT) that 99 % of the last minute's requests stayed within; None where there were none."""
        self._forget_old()
        ttfts = [ttft_s for _, ttft_s, _ in self._ended]
        tbts = [tbt_s for _, _, tbt_s in self._ended if tbt_s is not None]
        return _p99(ttfts), _p99(tbts)

    def _forget_old(self) -> None:
        oldest_s = self._clock_s() - WINDOW_S
        while self._ended and self._ended[0][0] < oldest_s:
            self._ended.popleft()


def _p99(values: Sequence[float]) -> float | None:
    return sorted(values)[(99 * len(values) - 1) // 100] if values else None
