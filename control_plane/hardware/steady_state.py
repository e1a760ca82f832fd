"""The steady state of one replica under Poisson arrivals, in closed form.

It describes the machine that ``replica_model`` steps through, seen from far away: mean iterations first, then the
wait behind prefills and its tail, then watts. Stationary arrivals: bursts need headroom on top.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

from control_plane.domain import ClassLoad, InputClass, Slo

_SHORT_SPREAD, _MEDIUM_SPREAD, _LONG_SPREAD = 1.25, 1.15, 1.40
"""E[I²] / E[I]² of inputs inside a class (Azure 2023: 1.13-1.33, 1.13-1.21, 1.39-1.40)."""

OUTPUT_SPREAD = 1.6
"""E[O²] / E[O]² of outputs (Azure 2023 conversations: 1.3-1.7): says how old the contexts being decoded are."""

CONTEXT_SPREAD = 1.6
"""E[C²] / E[C]² of contexts."""

KV_Z = 3.0
"""Deviations kept free in the KV cache: it stays full for long once it is, and then everyone waits."""

PREFILL_MIX_SPREAD = 0.6
"""Standard deviation of the tokens prefilled in an iteration over their mean."""

TAIL = 0.01
"""Limits hold for all but this share."""

TAIL_CROWDS = (1.4, 2.2)
"""How many times the mean prefill a late first token shares its pass with: two, so that a step is not a cliff."""

TAIL_BEND = 0.25
"""How much of a crowded pass's extra cost per token the next pass inherits."""

RARE_WAITS = 0.004
"""Added to the share of arrivals that meet a prefill: near the tail's own size the limit is a cliff."""

TAIL_MARGIN = 1.05
"""On the wait's tail: what the formula was found to be too low by, at most, against ``ReplicaModel``."""

FULLEST = 0.995
"""Above this utilisation there is no steady state to speak of."""

CAUTIOUS_STEPS = 6
"""Of the search for the mean iteration in which a lack of time is not yet taken for saturation."""

_SHORT, _MEDIUM = InputClass.SHORT, InputClass.MEDIUM
_NORMAL = NormalDist()
_TAIL_Z = _NORMAL.inv_cdf(1 - TAIL)


@dataclass(frozen=True, slots=True)
class Machine:
    """One shape of a profile as the formulas read it: seconds and watts (of the whole replica) by tokens in an
    iteration."""

    iteration_s: Sequence[float]
    power_w: Sequence[float]
    context_s: float
    attention_s: float
    idle_power_w: float
    batch_tokens: int
    batch_requests: int
    kv_tokens: int
    straight: bool
    """Whether iterations rise straight with their tokens: then nothing needs to be searched for."""


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """Steady state of one replica: mean TBT and P99 TTFT per input class in seconds, requests in the batch, watts.
    KV use and decoding requests also as their 99th percentile, which is what must fit. That of KV use has the room
    which ``replica_model`` asks for before it admits one more request: its prompt and everybody's next token."""

    saturated: bool
    utilisation: float
    tbt_s: float
    concurrency: float
    ttft_p99_s: Mapping[InputClass, float]
    power_w: float
    kv_tokens: float
    kv_p99_tokens: float
    decoding_p99: float


class _Part(NamedTuple):
    """One class of arrivals (a tuple: made by the thousand)."""

    name: InputClass
    rps: float
    prompt: float
    spread: float
    attention_s: float
    """Of one prompt, in the mean."""


class _Arrivals(NamedTuple):
    """What arrives in a second."""

    parts: Sequence[_Part]
    rps: float
    input_tokens: float
    decode_tokens: float
    mean_context: float
    attention_s: float
    """Seconds of prefill attention."""
    chunks: float
    """Iterations that the prompts need when each is prefilled alone."""


class _Iterations(NamedTuple):
    """Mean iterations while there is work."""

    decoding: float
    gain: float
    """By how much a decoder more slows all down: it makes their number swing."""
    mean_s: float
    decode_s: float
    """One without prefill."""
    prefill_ratio: float
    """Share of iterations that prefill."""
    prefill_tokens: float
    """Prefilled in each of those."""
    token_s: float
    """What a prefilled token adds."""


def steady_state(machine: Machine, parts: Sequence[tuple[InputClass, ClassLoad]]) -> OperatingPoint:
    """The steady state under these arrivals, classes without any left out."""
    if not parts:
        idle_s = machine.iteration_s[1]
        return OperatingPoint(False, 0.0, idle_s, 0.0, {}, machine.idle_power_w, 0.0, 0.0, 0.0)
    arrivals = _arrivals(machine, parts)
    iterations = _iterations(machine, arrivals)
    if iterations is None:
        return _saturated(machine, parts)
    busy, prefill_share, prefill_tokens, power_w = _power(machine, arrivals, iterations)
    waits = _first_tokens(machine, arrivals, iterations, busy, prefill_share, prefill_tokens)
    if waits is None:
        return _saturated(machine, parts)
    ttft_p99_s, mean_wait_s = waits
    decoding = iterations.decoding
    held = arrivals.rps * mean_wait_s
    prompt = arrivals.input_tokens / arrivals.rps
    kv_tokens = decoding * arrivals.mean_context + held * prompt
    swing = decoding / (1.0 - iterations.gain)
    kv_deviation = math.sqrt(CONTEXT_SPREAD * (swing * arrivals.mean_context**2 + held * prompt**2))
    return OperatingPoint(
        saturated=False,
        utilisation=busy,
        tbt_s=iterations.mean_s,
        concurrency=decoding + held,
        ttft_p99_s=ttft_p99_s,
        power_w=power_w,
        kv_tokens=kv_tokens,
        kv_p99_tokens=kv_tokens + KV_Z * kv_deviation + prompt + decoding + held + 1.0,
        decoding_p99=decoding + _TAIL_Z * math.sqrt(swing),
    )


def slo_use(machine: Machine, point: OperatingPoint, slo: Slo) -> float:
    """The largest share of any limit that this point uses up; the SLO holds up to 1."""
    if point.saturated:
        return math.inf
    use = max(
        point.tbt_s / slo.tbt_s,
        point.kv_p99_tokens / machine.kv_tokens,
        point.decoding_p99 / machine.batch_requests,
    )
    for name, ttft_s in point.ttft_p99_s.items():
        limit_s = slo.ttft_short_s if name is _SHORT else slo.ttft_medium_s if name is _MEDIUM else slo.ttft_long_s
        use = max(use, ttft_s / limit_s)
    return use


def longest_input(name: InputClass, mean_tokens: float) -> float:
    """The 99th percentile of inputs inside a class of this mean."""
    if name is _SHORT:
        return min(255.0, 2.0 * mean_tokens)
    if name is _MEDIUM:
        return max(mean_tokens, min(1023.0, 1.75 * mean_tokens))
    return max(mean_tokens, min(8192.0, 1024.0 + 4.6 * (mean_tokens - 1024.0)))


def _arrivals(machine: Machine, parts: Sequence[tuple[InputClass, ClassLoad]]) -> _Arrivals:
    rps = inputs = decodes = context = attention = chunks = 0.0
    found = []
    for name, part in parts:
        rate, prompt, outputs = part.rps, part.input_tokens, part.output_tokens
        spread = _SHORT_SPREAD if name is _SHORT else _MEDIUM_SPREAD if name is _MEDIUM else _LONG_SPREAD
        attention_s = prompt * prompt / 2 * spread * machine.attention_s
        found.append(_Part(name, rate, prompt, spread, attention_s))
        rps += rate
        inputs += rate * prompt
        attention += rate * attention_s
        chunks += rate * max(1.0, prompt / machine.batch_tokens)
        if outputs > 1.0:
            decodes += rate * (outputs - 1.0)
            context += rate * (outputs - 1.0) * (prompt + OUTPUT_SPREAD / 2 * outputs)
    mean_context = context / decodes if decodes > 0 else inputs / rps
    return _Arrivals(found, rps, inputs, decodes, mean_context, attention, chunks)


def _iterations(machine: Machine, arrivals: _Arrivals) -> _Iterations | None:
    """The fixed point of decoders and iteration time: a decoder meets its own token, the others' and the prefills.

    None where arrivals bring more work than a second holds, or more requests than a batch.
    """
    table = machine.iteration_s
    batch_tokens = float(machine.batch_tokens)
    _, rps, input_tokens, decode_tokens, mean_context, attention_s, chunks = arrivals
    context_s = machine.context_s * mean_context
    alone = tokens = min(input_tokens / rps, batch_tokens)
    left = decoder_s = decoding = token_s = ratio = mean_s = decode_s = 0.0
    empty_s = table[0]
    straight_s = (table[machine.batch_tokens] - empty_s) / batch_tokens if machine.straight else None
    for step in range(24):
        room = max(1.0, batch_tokens - decoding)
        tokens = min(tokens, room)
        if straight_s is not None:
            token_s, decoder_s = straight_s, straight_s + context_s
        else:
            apart = min(tokens / 2, room - tokens)
            spread_s = interpolate(table, decoding + tokens - apart) + interpolate(table, decoding + tokens + apart)
            token_s = (spread_s / 2 - interpolate(table, decoding)) / tokens
            # The chord from an empty iteration: safe where iterations bend.
            decoder_s = (interpolate(table, decoding + 1.0) - empty_s) / (decoding + 1.0) + context_s
        left = 1.0 - input_tokens * token_s - attention_s - decode_tokens * decoder_s
        if left < 1.0 - FULLEST:
            if step > CAUTIOUS_STEPS or straight_s is not None:
                return None
            left = 0.1  # Batching more may yet make it cheaper.
        was = decoding
        mean_s = (empty_s + decoder_s) / left
        decoding = min(decode_tokens * mean_s, 2.0 * machine.batch_requests)
        decode_s = empty_s + decoder_s * (decoding + 1.0)
        ratio = _prefill_ratio(chunks, mean_s, decode_s)
        ratio = min(1.0, max(ratio, input_tokens * mean_s / max(1.0, batch_tokens - decoding)))
        tokens = max(alone, input_tokens * mean_s / ratio)
        if straight_s is not None or abs(decoding - was) <= 1e-3 * (1.0 + decoding):
            break
    if decoding > machine.batch_requests:
        return None
    local_s = decoder_s
    if straight_s is None:
        local_s = interpolate(table, decoding + 2.0) - interpolate(table, decoding + 1.0) + context_s
    gain = decode_tokens * local_s / max(1.0 - FULLEST, left + decode_tokens * decoder_s)
    return _Iterations(decoding, min(0.9, gain), mean_s, decode_s, ratio, tokens, token_s)


def _prefill_ratio(chunks: float, mean_s: float, decode_s: float) -> float:
    """Share of iterations that prefill: those during whose predecessor a prompt arrived, and long ones catch more."""
    ratio = 1.0 - math.exp(-chunks * mean_s)
    after_decode = 1.0 - math.exp(-chunks * decode_s)
    for _ in range(2):
        prefill_s = decode_s + (mean_s - decode_s) / ratio
        ratio = after_decode / (math.exp(-chunks * prefill_s) + after_decode)
    return ratio


def _power(machine: Machine, arrivals: _Arrivals, iterations: _Iterations) -> tuple[float, float, float, float]:
    """(busy share, share of time prefilling, tokens in each prefill, mean watts)."""
    decoding, decode_s = iterations.decoding, iterations.decode_s
    prefill_s = decode_s + (iterations.mean_s - decode_s) / iterations.prefill_ratio
    busy = -math.expm1(-(decoding + arrivals.rps * prefill_s))
    prefills = (1.0 - busy) * arrivals.chunks + busy * iterations.prefill_ratio / iterations.mean_s
    tokens = arrivals.input_tokens / prefills
    share = prefills * (decode_s + tokens * iterations.token_s) + arrivals.attention_s
    busy = min(1.0, max(busy, share))
    share = min(busy, share)
    beside = max(1.0, decoding / busy)
    most = float(machine.batch_tokens)
    fewer_w = interpolate(machine.power_w, min(most, beside + tokens * (1.0 - PREFILL_MIX_SPREAD)))
    more_w = interpolate(machine.power_w, min(most, beside + tokens * (1.0 + PREFILL_MIX_SPREAD)))
    decode_w = interpolate(machine.power_w, beside)
    idle_w = machine.idle_power_w
    power_w = idle_w + share * ((fewer_w + more_w) / 2 - idle_w) + (busy - share) * (decode_w - idle_w)
    return busy, share, tokens, power_w


class _Wait(NamedTuple):
    """Mean and variance of a wait among those who wait, in seconds, and the deviations up at which their tail lies
    (None where too few wait to matter)."""

    mean_s: float
    variance: float
    z: float | None


def _first_tokens(
    machine: Machine,
    arrivals: _Arrivals,
    iterations: _Iterations,
    busy: float,
    prefill_share: float,
    prefill_tokens: float,
) -> tuple[dict[InputClass, float], float] | None:
    """P99 TTFT per class and the mean time before and in a prefill; None where prefills alone are too much.

    A long prompt, the queue of prompts and the gate of the iteration under way each make a tail: the longest counts,
    and more where two are alike (a norm), for then either may be the cause.
    """
    table, decode_s, decoding = machine.iteration_s, iterations.decode_s, iterations.decoding
    room = max(1.0, machine.batch_tokens - decoding)
    empty_s = interpolate(table, decoding)
    full_token_s = (decode_s + interpolate(table, machine.batch_tokens) - empty_s) / room
    token_s = next_s = iterations.token_s
    if not machine.straight:
        token_s, next_s = _crowded_token_s(table, iterations, room, empty_s)
    queued = _queue(arrivals, full_token_s, prefill_share)
    gated = _gate(arrivals, iterations, next_s, room, busy)
    if queued is None or gated is None:
        return None
    wait_s, queue = queued
    caught_s, gate = gated
    ttft_p99_s = {}
    for name, _, prompt, spread, attention_s in arrivals.parts:
        longest = longest_input(name, prompt)
        tail_s = longest * longest / 2 * machine.attention_s
        if longest <= room:
            tail_s += interpolate(table, decoding + longest) - empty_s
        else:
            tail_s += longest * full_token_s - decode_s
        own_s = prompt * token_s + attention_s
        if prompt > room:
            own_s += (prompt / room - 1.0) * decode_s
        own_variance = own_s * own_s * (spread - 1.0)
        tails = tail_s**8
        for mean_s, variance, z in (queue, gate):
            if z is not None:
                tails += (TAIL_MARGIN * _quantile(own_s + mean_s, own_variance + variance, z)) ** 8
        ttft_p99_s[name] = decode_s + tails**0.125
    return ttft_p99_s, max(wait_s, busy * caught_s / 2) + decode_s + prefill_tokens * token_s


def _crowded_token_s(
    table: Sequence[float], iterations: _Iterations, room: float, empty_s: float
) -> tuple[float, float]:
    """What a token adds to a crowded pass, and to the pass after it: where iterations bend upwards, late first
    tokens come from passes in which a token costs more than in the mean."""
    mean_tokens = min(room, iterations.prefill_tokens)
    fewer, more = (min(room, crowd * mean_tokens) for crowd in TAIL_CROWDS)
    crowded_s = interpolate(table, iterations.decoding + fewer) + interpolate(table, iterations.decoding + more)
    token_s = max(iterations.token_s, (crowded_s - 2 * empty_s) / (fewer + more))
    mean_s = interpolate(table, iterations.decoding + mean_tokens)
    # Where a pass is all but full the crowd finds no room: its bend fades out with the room.
    bend_s = crowded_s - 2 * mean_s - (fewer + more - 2 * mean_tokens) * token_s
    return token_s, token_s + TAIL_BEND * max(0.0, bend_s / ((sum(TAIL_CROWDS) - 2.0) * mean_tokens))


def _queue(arrivals: _Arrivals, full_token_s: float, prefill_share: float) -> tuple[float, _Wait] | None:
    """Prompts as jobs at the speed of full iterations: an M/G/1 queue, met with the probability that something
    prefills. The mean wait of all, and the wait of those who meet it."""
    work1 = work2 = work3 = 0.0
    for _, rps, prompt, spread, attention_s in arrivals.parts:
        job_s = prompt * full_token_s + attention_s
        spread_s = job_s * spread
        work1 += rps * job_s
        work2 += rps * job_s * spread_s
        work3 += rps * spread_s * spread_s * spread_s
    if work1 >= FULLEST:
        return None
    wait_s = work2 / (2 * (1 - work1))
    second = 2 * wait_s**2 + work3 / (3 * (1 - work1))
    waits = min(1.0, max(prefill_share, work1))
    mean_s = wait_s / waits
    return wait_s, _Wait(mean_s, max(0.0, second / waits - mean_s**2), _conditional_z(1.1 * waits + RARE_WAITS))


def _gate(
    arrivals: _Arrivals, iterations: _Iterations, token_s: float, room: float, busy: float
) -> tuple[float, _Wait] | None:
    """Whoever comes during an iteration waits for its end and shares the next with all who came during it. The
    mean iteration that an arrival falls into (longer ones catch more), and the wait."""
    work1 = work2 = 0.0
    for _, rps, prompt, spread, attention_s in arrivals.parts:
        job_s = prompt * token_s + attention_s
        work1 += rps * job_s
        work2 += rps * job_s * job_s * (spread if prompt <= room else room / prompt)
    if work1 >= FULLEST:
        return None
    mean_s = iterations.mean_s
    variance = work2 * mean_s / (1 - work1**2)
    random_s = max(mean_s - iterations.decode_s, 1e-9)
    caught_s = (mean_s**2 + variance) / mean_s
    caught2 = (mean_s**3 + 3 * mean_s * variance + 2 * variance**2 / random_s) / mean_s
    wait_s = (0.5 + work1) * caught_s
    second = caught2 * (1 / 3 + work1 + work1**2) + work2 * caught_s
    return caught_s, _Wait(wait_s, max(0.0, second - wait_s**2), _conditional_z(busy))


def _conditional_z(share: float) -> float | None:
    """How many deviations up the 99th percentile lies among the ``share`` of arrivals that wait at all."""
    if share <= TAIL * 1.01:
        return None
    return _TAIL_Z if share >= 1.0 else _NORMAL.inv_cdf(1.0 - TAIL / share)


def _quantile(mean: float, variance: float, z: float) -> float:
    """Of a gamma distribution (Wilson and Hilferty's cube)."""
    ninth = variance / (9.0 * mean * mean)
    root = 1.0 - ninth + z * math.sqrt(ninth)
    return mean * root * root * root if root > 0.0 else 0.0


def _saturated(machine: Machine, parts: Sequence[tuple[InputClass, ClassLoad]]) -> OperatingPoint:
    never = {name: math.inf for name, _ in parts}
    full_w = machine.power_w[machine.batch_tokens]
    return OperatingPoint(True, 1.0, math.inf, math.inf, never, full_w, math.inf, math.inf, math.inf)


def interpolate(table: Sequence[float], at: float) -> float:
    """The table's value at a fractional index, its last value beyond its end."""
    index = int(at)
    if index >= len(table) - 1:
        return table[-1]
    low = table[index]
    return low + (table[index + 1] - low) * (at - index)
