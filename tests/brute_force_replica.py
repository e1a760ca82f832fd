"""The replica of ``control_plane.hardware.replica_model``'s docstring, written from its words: one loop that touches
every request of the batch in every iteration. It shares no code with the engines that it checks."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from control_plane.hardware.replica_model import IterationTimes, ReplicaLimits


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request that comes, and perhaps is cancelled, at these picoseconds. ``kv_arrived``: another replica has
    prefilled it and sampled its first token."""

    at_ps: int
    input_tokens: int
    output_tokens: int
    kv_arrived: bool = False
    cancelled_ps: int | None = None


@dataclass(slots=True)
class Played:
    """By number of the arrival: when its prefill first began here and when each of its tokens came; and who was
    preempted when."""

    started_ps: dict[int, int] = field(default_factory=dict)
    token_ps: dict[int, list[int]] = field(default_factory=dict)
    preempted: list[tuple[int, int]] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Request:
    number: int
    arrival: Arrival
    generated: int = 0
    prefilled: int = 0
    decodes: bool = False
    brings_kv: bool = False

    @property
    def tokens(self) -> int:
        return self.arrival.input_tokens + self.generated


def play(arrivals: Sequence[Arrival], times: IterationTimes, limits: ReplicaLimits, freq_mhz: int) -> Played:
    """One replica from the first arrival until nobody is left. ``arrivals`` are in order of time; an idle replica
    begins an iteration as soon as one comes, and whatever happens at the moment when an iteration ends happens after
    the next one has begun."""
    played = Played(token_ps={number: [] for number in range(len(arrivals))})
    to_come = [_Request(number, arrival, brings_kv=arrival.kv_arrived) for number, arrival in enumerate(arrivals)]
    waiting: list[_Request] = []
    batch: list[_Request] = []
    now_ps = 0
    while to_come or waiting or batch:
        if not waiting and not batch:
            first = to_come.pop(0)
            now_ps = max(now_ps, first.arrival.at_ps)
            waiting.append(first)

        # Admission, first come, first served.
        while waiting:
            head = waiting[0]
            used = sum(request.tokens for request in batch)
            next_tokens = len(batch) + 1
            if len(batch) == limits.batch_requests:
                break
            if used + head.tokens + (1 if head.brings_kv else 0) + next_tokens > limits.kv_tokens:
                break
            batch.append(waiting.pop(0))
            if head.brings_kv:
                head.brings_kv = False
                head.generated = 1
                head.decodes = True

        # One token of every decoder, then prefill chunks in order of admission.
        decoders = [request for request in batch if request.decodes]
        room = limits.batch_tokens - len(decoders)
        tokens = len(decoders)
        attended = 0
        chunks: list[tuple[_Request, int]] = []
        for request in batch:
            if not request.decodes and room > 0:
                chunk = min(room, request.tokens - request.prefilled)
                for token in range(request.prefilled, request.prefilled + chunk):
                    attended += token + 1
                chunks.append((request, chunk))
                if not request.arrival.kv_arrived:
                    played.started_ps.setdefault(request.number, now_ps)
                room -= chunk
                tokens += chunk
        end_ps = now_ps + times.alpha_ps(freq_mhz)[tokens]
        end_ps += times.context_ps * sum(request.tokens for request in decoders)
        end_ps += times.attention_ps(freq_mhz) * attended

        # Meanwhile requests come and are cancelled.
        while to_come and to_come[0].arrival.at_ps < end_ps:
            waiting.append(to_come.pop(0))
        for here in (waiting, batch):
            for request in list(here):
                cancelled_ps = request.arrival.cancelled_ps
                if cancelled_ps is not None and cancelled_ps < end_ps:
                    here.remove(request)

        # The iteration ends.
        now_ps = end_ps
        for request, chunk in chunks:
            request.prefilled += chunk
        for request in list(batch):
            if request.decodes or request.prefilled == request.tokens:
                request.decodes = True
                request.generated += 1
                played.token_ps[request.number].append(now_ps)
                if request.generated == request.arrival.output_tokens:
                    batch.remove(request)
        while sum(request.tokens for request in batch) > limits.kv_tokens:
            newest = max((request for request in batch if request.decodes), key=lambda request: request.number)
            batch.remove(newest)
            newest.decodes = False
            newest.prefilled = 0
            waiting.insert(0, newest)
            played.preempted.append((now_ps, newest.number))
    return played
