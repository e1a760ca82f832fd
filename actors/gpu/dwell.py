"""Which of the clocks that are wanted are worth setting now: real GPUs take tens to hundreds of milliseconds to change.

A clock is raised at once, because latency depends on it. It is lowered no sooner than ``DWELL_S`` after the last
change, and not by a single step, which would save next to nothing and cost a change.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from control_plane.leases import Hold

DWELL_S = 0.4
"""A change takes tens of milliseconds on A100 and H100, hundreds on GH200."""
STEP_MHZ = 15


@dataclass(slots=True)
class Dwell:
    """What each owner asked for last, by GPU, and when that changed."""

    dwell_s: float = DWELL_S
    step_mhz: int = STEP_MHZ
    _last: dict[str, tuple[str, Hold, float]] = field(default_factory=dict)

    def steadied(self, owner: str, wanted: Mapping[str, Hold], now_s: float) -> dict[str, Hold]:
        """The holds to ask for now. What is put off is wanted again at the next renewal: the newest wins."""
        asked = {}
        for uuid, hold in wanted.items():
            holder, before, changed_s = self._last.get(uuid, ("", Hold(), float("-inf")))
            asked[uuid] = self._one(before, hold, now_s - changed_s) if holder == owner else hold
            if holder != owner or asked[uuid] != before:
                self._last[uuid] = owner, asked[uuid], now_s
        return asked

    def forget(self, owner: str) -> None:
        self._last = {uuid: known for uuid, known in self._last.items() if known[0] != owner}

    def _one(self, before: Hold, wanted: Hold, since_s: float) -> Hold:
        if wanted.freq_mhz is None or before.freq_mhz is None or wanted.freq_mhz >= before.freq_mhz:
            return wanted
        too_soon = since_s < self.dwell_s
        too_little = before.freq_mhz - wanted.freq_mhz <= self.step_mhz
        return replace(wanted, freq_mhz=before.freq_mhz) if too_soon or too_little else wanted
