"""The fast twin of ``replica_model``: the same batch, but a run of decode iterations is one step.

While nothing arrives, finishes, is preempted or changes clock, k iterations of n decoders over C tokens of context
last k·(alpha[n] + beta·C) + beta·n·k(k-1)/2. All in integers, so cutting such a spell short anywhere loses nothing:
every completion time equals the one that stepping gives.
"""

from collections import deque
from collections.abc import Sequence
from heapq import heapify, heappop, heappush

from control_plane.hardware.request_columns import RequestColumns, TokenGaps
from control_plane.hardware.shape_tables import ShapeTables

IDLE_PS = -1
"""``wake_ps`` of a replica that has nothing to do."""

_NOBODY: Sequence[int] = ()


class CoalescedReplica:
    """One replica's batch and meter. Keys are positions in the columns. Whoever drives it calls ``fire`` at
    ``wake_ps``, and submits or sets clocks at any moment in between."""

    __slots__ = (
        "_alpha",
        "_attention",
        "_columns",
        "_context",
        "_context_ps",
        "_decoding",
        "_duration",
        "_energy",
        "_energy_wps",
        "_finished_ps",
        "_finishing",
        "_freq_mhz",
        "_gaps",
        "_growth",
        "_head_done",
        "_head_energy",
        "_idle_ps",
        "_iterations",
        "_lost_at",
        "_most_requests",
        "_most_tokens",
        "_note_iterations",
        "_note_spell",
        "_order",
        "_pending_mhz",
        "_pending_ps",
        "_power",
        "_power_w",
        "_prefill_tokens",
        "_prefilling",
        "_repeats",
        "_reserved",
        "_room",
        "_seat_energy",
        "_settle_ps",
        "_spells",
        "_start",
        "_tables",
        "_tag",
        "_tokens",
        "_waiting",
        "born_ps",
        "first_tokens",
        "wake_ps",
    )

    def __init__(self, tables: ShapeTables, columns: RequestColumns, gaps: TokenGaps, number: int, now_ps: int) -> None:
        limits = tables.limits
        self.wake_ps = IDLE_PS
        self.first_tokens: Sequence[int] = _NOBODY
        """Who got a first token in the last ``fire``."""
        self.born_ps = self._start = now_ps
        self._tables = tables
        self._columns = columns
        self._finished_ps, self._energy_wps = columns.finished_ps, columns.energy_wps
        self._gaps = gaps
        self._note_spell, self._note_iterations = gaps.spell_ps.append, gaps.spell_replica_iterations.append
        self._spells, self._tag = 0, number << 32
        self._room = limits.kv_tokens
        self._most_requests, self._most_tokens = limits.batch_requests, limits.batch_tokens
        self._context_ps = tables.context_ps
        self._settle_ps = max(1, tables.gpu.settle_ns * 1000)
        # (order, key, input, output, generated, KV has arrived)
        self._waiting: deque[tuple[int, int, int, int, int, bool]] = deque()
        # (order, key, prompt, input, output); only the head can be partly done
        self._prefilling: deque[tuple[int, int, int, int, int]] = deque()
        self._head_done = 0
        self._head_energy = 0.0
        # (last iteration, order, key, input + output, output, seat energy at entry less prefill energy, first spell)
        self._finishing: list[tuple[int, int, int, int, int, float, int]] = []
        self._lost_at: dict[int, int] = {}
        self._order = self._iterations = self._decoding = self._context = self._reserved = 0
        self._repeats = self._duration = self._growth = self._tokens = self._prefill_tokens = 0
        self._energy = self._seat_energy = self._power = 0.0
        self._idle_ps = 0
        self._pending_ps: int | None = None
        self._pending_mhz = tables.gpu.max_freq_mhz
        self._take_clock(tables.gpu.max_freq_mhz)

    # what can be seen

    @property
    def target_mhz(self) -> int:
        return self._freq_mhz if self._pending_ps is None else self._pending_mhz

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return len(self._prefilling) + self._decoding

    def oldest_wait_ps(self, now_ps: int) -> int:
        """How long the request that has waited longest for its first token has waited."""
        arrival_ps = self._columns.arrival_ps
        for _, key, prompt, input_tokens, _ in self._prefilling:
            if prompt == input_tokens:
                return now_ps - arrival_ps[key]
        for _, key, _, _, generated, _ in self._waiting:
            if not generated:
                return now_ps - arrival_ps[key]
        return 0

    def energy_wps(self, now_ps: int) -> float:
        """The meter of all its GPUs since birth, in watt-picoseconds: what iterations drew, and a context held
        between them."""
        if self.wake_ps >= 0:
            return self._energy + self._power * (now_ps - self._start) + self._tables.idle_w * self._idle_ps
        return self._energy + self._tables.idle_w * (self._idle_ps + now_ps - self._start)

    # what can be done

    def close_spans(self) -> None:
        """Note the token gaps of those who still decode, and number the spells from 0 again."""
        for _, _, key, _, _, _, since in self._finishing:
            self._note_span(key, since)
        self._finishing = [(*entry[:6], 0) for entry in self._finishing]
        self._spells = 0

    def submit(self, key: int, input_tokens: int, output_tokens: int, now_ps: int, kv_arrived: bool = False) -> None:
        """As ``ReplicaModel.submit``; whoever calls has checked that the KV cache could hold it."""
        waiting = self._waiting
        self._order += 1
        waiting.append((self._order, key, input_tokens, output_tokens, 0, kv_arrived))
        if self.wake_ps < 0:
            self._idle_ps += now_ps - self._start
            self._begin(now_ps)
        elif self._repeats > 1 and len(waiting) == 1:
            # Somebody who waited before is either next in line already or blocks the line until a finish.
            self._cut(now_ps)

    def set_clock(self, now_ps: int, freq_mhz: int) -> None:
        """The highest supported clock not above ``freq_mhz``, for iterations that begin once it has settled."""
        target_mhz = self._tables.gpu.supported_at_most(freq_mhz)
        if target_mhz == self.target_mhz:
            return
        if self._pending_ps is not None and self._pending_ps <= now_ps:
            self._take_clock(self._pending_mhz)
        self._pending_ps, self._pending_mhz = now_ps + self._settle_ps, target_mhz
        if self.wake_ps >= 0 and self._repeats > 1:
            self._cut(self._pending_ps - 1)

    def fire(self, now_ps: int) -> Sequence[int]:
        """End the spell, at ``wake_ps``, and begin the next. Returns who is complete."""
        repeats = self._repeats
        lasted_ps = now_ps - self._start
        energy = self._power * lasted_ps
        self._energy += energy
        each = energy / self._tokens
        seat = self._seat_energy = self._seat_energy + each
        iteration = self._iterations = self._iterations + repeats
        decoding = self._decoding
        context = self._context + decoding * repeats
        self._note_spell(lasted_ps)
        self._note_iterations(self._tag | repeats)
        spells = self._spells = self._spells + 1
        finishing = self._finishing
        finished: Sequence[int] = _NOBODY
        if finishing and finishing[0][0] == iteration:
            done: list[int] = []
            finished = done
            note_request, note_range = self._gaps.span_replica_request.append, self._gaps.span_from_to.append
            while finishing and finishing[0][0] == iteration:
                _, _, key, total, _, paid, since = heappop(finishing)
                context -= total
                decoding -= 1
                done.append(key)
                self._finished_ps[key] = now_ps
                self._energy_wps[key] += seat - paid
                note_request(self._tag | key)
                note_range(since << 32 | spells)
        self._decoding, self._context = decoding, context
        if self._prefill_tokens:
            finished = self._end_prefill(now_ps, each, finished)
            decoding, context = self._decoding, self._context
        elif self.first_tokens:
            self.first_tokens = _NOBODY
        if context + self._reserved > self._room:
            self._preempt_until_it_fits(now_ps)
        self._begin(now_ps)
        return finished

    def abandon(self, now_ps: int) -> list[int]:
        """Everyone who is here, in the order of submission, billed up to now: the replica is lost."""
        energy_wps = self._columns.energy_wps
        each = self._power * (now_ps - self._start) / self._tokens if self.wake_ps >= 0 else 0.0
        for _, _, key, _, _, paid, _ in self._finishing:
            energy_wps[key] += self._seat_energy + each - paid
        if self._prefilling:
            energy_wps[self._prefilling[0][1]] += self._head_energy
            left, done = self._prefill_tokens, self._head_done
            for _, key, prompt, _, _ in self._prefilling:
                energy_wps[key] += each * min(left, prompt - done)
                left, done = max(0, left - prompt + done), 0
        here = [(order, key) for order, key, *_ in self._waiting]
        here += [(order, key) for order, key, *_ in self._prefilling]
        here += [(order, key) for _, order, key, *_ in self._finishing]
        return [key for _, key in sorted(here)]

    # inside

    def _end_prefill(self, now_ps: int, each: float, finished: Sequence[int]) -> Sequence[int]:
        """Hand out the iteration's prefill tokens in line; whoever has all its prompt decodes from now on."""
        columns, queue = self._columns, self._prefilling
        left, done, paid = self._prefill_tokens, self._head_done, self._head_energy
        first: list[int] = []
        while left:
            order, key, prompt, input_tokens, output_tokens = queue[0]
            need = prompt - done
            if need > left:
                done += left
                paid += left * each
                break
            left -= need
            paid += need * each
            queue.popleft()
            self._reserved -= prompt
            generated = prompt - input_tokens
            if generated == 0:
                first.append(key)
                columns.first_token_ps[key] = now_ps
            else:
                self._gaps.late_request.append(key)
                self._gaps.late_ps.append(now_ps - self._lost_at.pop(key))
            remaining = output_tokens - generated - 1
            if remaining == 0:
                finished = [*finished, key]
                self._finished_ps[key] = now_ps
                self._energy_wps[key] += paid
            else:
                self._decoding += 1
                self._context += prompt + 1
                end = self._iterations + remaining
                paid = self._seat_energy - paid
                total = input_tokens + output_tokens
                heappush(self._finishing, (end, order, key, total, output_tokens, paid, self._spells))
            done, paid = 0, 0.0
        self._head_done, self._head_energy = done, paid
        self.first_tokens = first
        return finished

    def _begin(self, now_ps: int) -> None:
        """Admit whom the limits allow and plan the next spell."""
        if self._pending_ps is not None and self._pending_ps <= now_ps:
            self._take_clock(self._pending_mhz)
        if self._waiting:
            self._admit(now_ps)
        decoding, context = self._decoding, self._context
        self._start = now_ps
        if self._prefilling:
            tokens, attention_units = self._compose(now_ps)
            self._tokens = tokens
            self._repeats = 1
            self._power = self._power_w[tokens]
            duration = self._alpha[tokens] + self._context_ps * context + self._attention * attention_units
            self.wake_ps = now_ps + duration
            return
        if not decoding:
            self.wake_ps = IDLE_PS
            return
        self._prefill_tokens = 0
        self._tokens = decoding
        self._power = self._power_w[decoding]
        repeats = self._finishing[0][0] - self._iterations
        if decoding > 1:
            overflows = (self._room - context) // decoding + 1
            if overflows < repeats:
                repeats = overflows
        duration = self._duration = self._alpha[decoding] + self._context_ps * context
        growth = self._growth = self._context_ps * decoding
        self._repeats = repeats
        self.wake_ps = now_ps + repeats * duration + growth * (repeats * (repeats - 1) // 2)
        if self._pending_ps is not None and repeats > 1:
            self._cut(self._pending_ps - 1)

    def _admit(self, now_ps: int) -> None:
        waiting, prefilling = self._waiting, self._prefilling
        while waiting:
            order, key, input_tokens, output_tokens, generated, kv_arrived = waiting[0]
            prompt = input_tokens + generated
            batch = self._decoding + len(prefilling)
            needed = prompt + kv_arrived + batch + 1
            if batch >= self._most_requests or self._context + self._reserved + needed > self._room:
                return
            waiting.popleft()
            if kv_arrived:
                self._decoding += 1
                self._context += prompt + 1
                end, total = self._iterations + output_tokens - 1, input_tokens + output_tokens
                entry = (end, order, key, total, output_tokens, self._seat_energy, self._spells)
                heappush(self._finishing, entry)
                self._columns.first_token_ps[key] = now_ps
                continue
            self._reserved += prompt
            prefilling.append((order, key, prompt, input_tokens, output_tokens))

    def _compose(self, now_ps: int) -> tuple[int, int]:
        """(tokens, attention units) of an iteration that prefills; decoders go first."""
        left = budget = max(0, self._most_tokens - self._decoding)
        done = self._head_done
        units = 0
        started_ps = self._columns.started_ps
        for _, key, prompt, input_tokens, _ in self._prefilling:
            if left == 0:
                break
            chunk = prompt - done
            if chunk > left:
                chunk = left
            if done == 0 and prompt == input_tokens:
                started_ps[key] = now_ps
            units += chunk * done + chunk * (chunk + 1) // 2
            left -= chunk
            done = 0
        self._prefill_tokens = budget - left
        return self._decoding + budget - left, units

    def _cut(self, after_ps: int) -> None:
        """End the spell at its first iteration boundary later than ``after_ps``."""
        past_ps = after_ps - self._start
        duration, growth = self._duration, self._growth
        repeats = past_ps // duration + 1  # exact where iterations do not grow, else at most too many
        if repeats > self._repeats:
            repeats = self._repeats
        before = repeats - 1
        if before * duration + growth * (before * (before - 1) // 2) > past_ps:
            low, high = 1, before
            while low < high:
                middle = (low + high) // 2
                if middle * duration + growth * (middle * (middle - 1) // 2) > past_ps:
                    high = middle
                else:
                    low = middle + 1
            repeats = low
        if repeats < self._repeats:
            self._repeats = repeats
            self.wake_ps = self._start + repeats * duration + growth * (repeats * (repeats - 1) // 2)

    def _preempt_until_it_fits(self, now_ps: int) -> None:
        """While the next iteration would occupy more than the KV cache, the newest decoder loses its entries."""
        finishing = self._finishing
        while self._context + self._reserved > self._room:
            newest = max(finishing, key=lambda item: item[1])
            finishing.remove(newest)
            heapify(finishing)
            end, order, key, total, output_tokens, paid, since = newest
            to_come = end - self._iterations
            self._decoding -= 1
            self._context -= total - to_come
            self._energy_wps[key] += self._seat_energy - paid
            self._note_span(key, since)
            self._lost_at[key] = now_ps
            self._waiting.appendleft((order, key, total - output_tokens, output_tokens, output_tokens - to_come, False))

    def _note_span(self, key: int, since: int) -> None:
        self._gaps.span_replica_request.append(self._tag | key)
        self._gaps.span_from_to.append(since << 32 | self._spells)

    def _take_clock(self, freq_mhz: int) -> None:
        tables = self._tables
        self._freq_mhz = freq_mhz
        self._pending_ps = None
        self._alpha = tables.alpha_ps(freq_mhz)
        self._attention = tables.attention_ps(freq_mhz)
        self._power_w = tables.power_w(freq_mhz)
