"""Which request used how much of a replica's energy, so that what requests are told adds up to what the GPUs metered.

Between two looks at the meter, energy is split by the work that was done: a generated token counts 1, a token of a
prompt as much as its time in a full pass is of a token's in a usual decoding iteration. Energy of a time in which
requests were there but none had made progress (they waited, or a long prompt ran) is split at the next progress;
energy of a time without requests is nobody's.
"""

from collections.abc import Sequence

PASS_TOKENS = 2048
"""Prompt tokens of a full pass."""
USUAL_BATCH = 32
"""Requests of a usual decoding iteration."""


def prompt_token_work(iteration_ps: Sequence[int]) -> float:
    """Work of one prompt token, from iteration times by tokens (contexts left out)."""
    tokens = min(PASS_TOKENS, len(iteration_ps) - 1)
    batch = min(USUAL_BATCH, len(iteration_ps) - 1)
    return (iteration_ps[tokens] / tokens) / (iteration_ps[batch] / batch)


class EnergyShares:
    """The requests of one replica. ``energy_j`` is always the meter's counter, which never falls."""

    def __init__(self, energy_j: float) -> None:
        self._metered_j = energy_j
        self._to_split_j = 0.0
        """Metered and not split yet; below zero where an ended request was told more than was metered since."""
        self._watts = 0.0
        self._looked_s: float | None = None
        self._used_j: dict[str, float] = {}
        self._work: dict[str, float] = {}
        self.idle_j = 0.0
        """Used while no request was there."""

    def began(self, request_id: str) -> None:
        self._used_j[request_id] = 0.0

    def worked(self, request_id: str, work: float) -> None:
        """Unknown requests are passed over: their last word may come after they ended."""
        if request_id in self._used_j:
            self._work[request_id] = self._work.get(request_id, 0.0) + work

    def looked(self, now_s: float, energy_j: float) -> None:
        """A look at the meter; call it before the first request of an idle time begins, too."""
        moved_j = energy_j - self._metered_j
        if self._looked_s is not None and now_s > self._looked_s:
            self._watts = max(0.0, moved_j / (now_s - self._looked_s))
        self._metered_j, self._looked_s = energy_j, now_s
        self._to_split_j += moved_j
        work = sum(self._work.values())
        if work > 0 and self._to_split_j > 0:
            for request_id, done in self._work.items():
                self._used_j[request_id] += self._to_split_j * done / work
            self._to_split_j = 0.0
        elif not self._used_j:
            self.idle_j += self._to_split_j
            self._to_split_j = 0.0
        self._work.clear()

    def ended(self, request_id: str, now_s: float) -> float:
        """The joules of a request that is over. Since the last look its share is taken at the power of before, and is
        made up for at the next look."""
        used_j = self._used_j.pop(request_id, 0.0)
        done, work = self._work.pop(request_id, 0.0), sum(self._work.values())
        if done > 0 and self._looked_s is not None:
            # Less what requests that ended since the look were told already.
            since_j = self._watts * max(0.0, now_s - self._looked_s) + self._to_split_j
            share_j = max(0.0, since_j) * done / (work + done)
            self._to_split_j -= share_j
            used_j += share_j
        return used_j
