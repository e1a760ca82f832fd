"""A closed loop through ``ReplicaModel``: as many requests in flight as a benchmark keeps, lengths as it draws them."""

import statistics
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from control_plane.hardware.replica_model import PS_PER_S, IterationTimes, ReplicaLimits, ReplicaModel


@dataclass(frozen=True)
class Served:
    """Seconds: times to first token and times per output token by request; the share of iterations whose KV cache
    left somebody waiting; output tokens a second."""

    ttft_s: Sequence[float]
    tpot_s: Sequence[float]
    kv_bound: float
    tokens_per_s: float
    duration_s: float
    mean_power_w: float

    @property
    def median_ttft_s(self) -> float:
        return statistics.median(self.ttft_s)

    @property
    def mean_ttft_s(self) -> float:
        return statistics.mean(self.ttft_s)

    @property
    def median_tpot_s(self) -> float:
        return statistics.median(self.tpot_s)

    @property
    def mean_tpot_s(self) -> float:
        return statistics.mean(self.tpot_s)


def served(
    times: IterationTimes,
    limits: ReplicaLimits,
    freq_mhz: int,
    concurrency: int,
    requests: int,
    lengths: tuple[int, int],
    spread: float = 0.8,
    watts: Sequence[float] = (),
    seed: int = 0,
) -> Served:
    """``concurrency`` requests at once from time 0 on, the opening burst; whoever ends is followed at once, until
    ``requests`` were sent. Prompts and answers lie evenly between ``spread`` and 1 times ``lengths``."""
    random = np.random.default_rng(seed)
    prompts, answers = (random.integers(max(1, round(spread * most)), most + 1, requests) for most in lengths)
    model = ReplicaModel(times, limits)
    submitted: dict[Hashable, int] = {}
    first: dict[Hashable, int] = {}
    tpot: list[float] = []
    now_ps = sent = bound = iterations = tokens = 0
    energy = 0.0
    left: dict[Hashable, int] = dict(enumerate(answers.tolist()))
    while sent < min(concurrency, requests):
        model.submit(sent, int(prompts[sent]), int(answers[sent]), 0)
        submitted[sent] = 0
        sent += 1
    while True:
        iteration = model.begin(freq_mhz)
        if iteration is None:
            break
        iterations += 1
        bound += model.waiting > 0
        now_ps += iteration.duration_ps
        if watts:
            energy += watts[iteration.tokens] * iteration.duration_ps
        progress = model.complete()
        for key in progress.first_token:
            first[key] = now_ps
        for key in progress.finished:
            count = left.pop(key)
            tokens += count
            if count > 1:
                tpot.append((now_ps - first[key]) / (count - 1) / PS_PER_S)
            if sent < requests:
                model.submit(sent, int(prompts[sent]), int(answers[sent]), now_ps)
                submitted[sent] = now_ps
                sent += 1
    ttft = [(first[key] - submitted[key]) / PS_PER_S for key in first]
    seconds = now_ps / PS_PER_S
    return Served(ttft, tpot, bound / max(1, iterations), tokens / seconds, seconds, energy / max(1, now_ps))
