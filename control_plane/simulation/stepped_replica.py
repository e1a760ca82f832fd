"""The oracle's replica: ``ReplicaModel`` stepped one iteration at a time, with a meter.

Slow and plain on purpose: every iteration is an event and every token is billed where it falls.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from control_plane.hardware.replica_model import Iteration, ReplicaModel
from control_plane.hardware.request_columns import NOT_YET, RequestColumns
from control_plane.hardware.shape_tables import ShapeTables
from control_plane.simulation.token_gaps import GapHistogram

IDLE_PS = -1
"""``wake_ps`` of a replica that has nothing to do."""


@dataclass(frozen=True, slots=True)
class IterationEnd:
    """Positions of those who got their first token in an iteration, and of those who are complete."""

    first_token: Sequence[int]
    finished: Sequence[int]


class SteppedReplica:
    """One replica's batch and meter, a ``ReplicaEngine``; keys are positions in the columns. ``end_iteration`` is due
    at ``wake_ps``; requests and clocks may come at any moment in between."""

    def __init__(
        self,
        tables: ShapeTables,
        columns: RequestColumns,
        gaps: GapHistogram,
        now_ps: int,
        prefills_only: bool,
        governed: bool,
    ) -> None:
        self.wake_ps = IDLE_PS
        self.born_ps = now_ps
        self.prefills_only, self.governed = prefills_only, governed
        self.draining = False
        self.outbox = 0
        self._tables, self._columns = tables, columns
        self._model = ReplicaModel(tables.times, tables.limits)
        self._freq_mhz = self._target_mhz = tables.gpu.max_freq_mhz
        self._settled_ps = now_ps
        self._start_ps = now_ps
        self._iteration: Iteration | None = None
        self._power_w = 0.0
        self._energy_wps = 0.0
        self._busy_ps = 0
        self._order: dict[int, None] = {}
        self._arrived: set[int] = set()
        """Whose KV cache came from another replica and who is not in the batch yet."""
        self._last_token_ps: dict[int, int] = {}
        self._generated: dict[int, int] = {}
        self._gaps = gaps
        self.answered: list[int] = []
        """Who began to decode here after a prefill elsewhere, and so gave its client a token, until that is told."""

    @property
    def busy(self) -> bool:
        return self._iteration is not None

    @property
    def target_mhz(self) -> int:
        return self._target_mhz

    def freq_mhz(self, now_ps: int) -> int:
        return self._target_mhz if self._settled_ps <= now_ps else self._freq_mhz

    @property
    def waiting(self) -> int:
        return self._model.waiting

    @property
    def running(self) -> int:
        return self._model.running

    @property
    def decoding(self) -> int:
        return self._model.decoding

    def context_tokens(self, now_ps: int) -> int:
        del now_ps
        return self._model.context_tokens

    def kv_used_tokens(self, now_ps: int) -> int:
        del now_ps
        return self._model.kv_used_tokens

    def queued(self) -> Sequence[tuple[int, int]]:
        return cast("Sequence[tuple[int, int]]", list(self._model.without_first_token()))

    def oldest_wait_ps(self, now_ps: int) -> int:
        return self._model.oldest_wait_ps(now_ps)

    def energy_wps(self, now_ps: int) -> float:
        under_way_ps = 0 if self._iteration is None else now_ps - self._start_ps
        idle_ps = now_ps - self.born_ps - self._busy_ps - under_way_ps
        return self._energy_wps + self._power_w * under_way_ps + self._tables.idle_w * idle_ps

    def abandon(self, now_ps: int) -> list[int]:
        if self._iteration is not None:
            self._share_out(self._power_w * (now_ps - self._start_ps), self._shares())
        return list(self._order)

    def submit(self, key: int, input_tokens: int, output_tokens: int, now_ps: int, kv_arrived: bool = False) -> None:
        arrived_ps = self._columns.arrival_ps[key]
        self._model.submit(key, input_tokens, output_tokens, arrived_ps, kv_arrived)
        self._order[key] = None
        self._generated[key] = self._model.generated(key)
        if kv_arrived:
            self._arrived.add(key)
        if self._iteration is None:
            self._begin(now_ps)

    def set_clock(self, now_ps: int, freq_mhz: int) -> None:
        target_mhz = self._tables.gpu.supported_at_most(freq_mhz)
        if target_mhz == self._target_mhz:
            return
        self._settle(now_ps)
        self._target_mhz = target_mhz
        self._settled_ps = now_ps + max(1, self._tables.gpu.settle_ns * 1000)

    def hand_over(self, keys: Sequence[int]) -> None:
        """The KV caches of these wait here; their client has no token yet."""
        self.outbox += len(keys)
        for key in keys:
            self._columns.first_token_ps[key] = self._columns.finished_ps[key] = NOT_YET

    def kv_left(self) -> None:
        self.outbox -= 1

    def end_iteration(self, now_ps: int) -> IterationEnd:
        """End the iteration under way and begin the next."""
        columns = self._columns
        shares = self._shares()
        self._bill(now_ps, shares)
        progress = self._model.complete()
        finished = cast("tuple[int, ...]", progress.finished)
        first_tokens = cast("tuple[int, ...]", progress.first_token)
        for key, _ in shares:
            if key in self._last_token_ps:
                still_here = key not in finished
                if not still_here or self._model.generated(key) > self._generated[key]:
                    self._note_gap(key, now_ps)
        for key in first_tokens:
            columns.first_token_ps[key] = self._last_token_ps[key] = now_ps
        for key in finished:
            columns.finished_ps[key] = now_ps
            self._last_token_ps.pop(key, None)
            del self._order[key]
        self._generated = {key: self._model.generated(key) for key in self._order}
        self._begin(now_ps)
        return IterationEnd(first_tokens, finished)

    def _shares(self) -> tuple[tuple[int, int], ...]:
        return cast("tuple[tuple[int, int], ...]", self._model.shares())

    def _note_gap(self, key: int, now_ps: int) -> None:
        self._gaps.note(key, now_ps - self._last_token_ps[key])
        self._last_token_ps[key] = now_ps

    def _bill(self, now_ps: int, shares: Sequence[tuple[int, int]]) -> None:
        energy_wps = self._power_w * (now_ps - self._start_ps)
        self._energy_wps += energy_wps
        self._busy_ps += now_ps - self._start_ps
        self._share_out(energy_wps, shares)

    def _share_out(self, energy_wps: float, shares: Sequence[tuple[int, int]]) -> None:
        tokens = sum(part for _, part in shares)
        for key, part in shares:
            self._columns.energy_wps[key] += energy_wps * part / tokens

    def _begin(self, now_ps: int) -> None:
        self._settle(now_ps)
        self._start_ps = now_ps
        self._iteration = iteration = self._model.begin(self._freq_mhz)
        if iteration is None:
            self.wake_ps = IDLE_PS
            return
        self._power_w = self._tables.power_w(self._freq_mhz)[iteration.tokens]
        self.wake_ps = now_ps + iteration.duration_ps
        for key, _ in self._shares():
            if self._columns.started_ps[key] == NOT_YET:
                self._columns.started_ps[key] = now_ps
            if key in self._arrived:
                self._arrived.remove(key)
                self._columns.first_token_ps[key] = self._last_token_ps[key] = now_ps
                self.answered.append(key)

    def _settle(self, now_ps: int) -> None:
        if self._settled_ps <= now_ps:
            self._freq_mhz = self._target_mhz
