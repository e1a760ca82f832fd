"""One replica under Poisson arrivals: drives ``ReplicaModel`` and measures what the closed forms predict."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from control_plane.domain import ClassLoad, InputClass, Load, Shape, Slo
from control_plane.hardware.machine_profile import MachineProfile
from control_plane.hardware.replica_model import PS_PER_S, ReplicaModel

BOUNDS = {InputClass.SHORT: (1, 255), InputClass.MEDIUM: (256, 1023), InputClass.LONG: (1024, 8192)}
WARM_UP = 0.15

SHORT, MEDIUM, LONG = InputClass.SHORT, InputClass.MEDIUM, InputClass.LONG
PROMPTS = {"S": 150.0, "M": 600.0, "L": 2200.0}
ANSWERS = {"S": 40.0, "M": 200.0, "L": 450.0}
MIXES = {
    "conversation": Load(
        {SHORT: ClassLoad(0.13, 172, 142), MEDIUM: ClassLoad(0.37, 561, 162), LONG: ClassLoad(0.5, 1868, 267)}
    ),
    "short-medium": Load({SHORT: ClassLoad(0.26, 172, 142), MEDIUM: ClassLoad(0.74, 561, 162)}),
}


def mix(name: str) -> Load:
    """``conversation``, ``short-medium`` or a request type such as ``SM``, one request a second."""
    if name in MIXES:
        return MIXES[name]
    return Load({InputClass(name[0]): ClassLoad(1.0, PROMPTS[name[0]], ANSWERS[name[1]])})


@dataclass(frozen=True)
class Measured:
    """Means over time, and P99 TTFT by class (infinite where requests were never served)."""

    power_w: float
    tbt_s: float
    ttft_p99_s: dict[InputClass, float]
    decoding: float

    def use(self, slo: Slo) -> float:
        """The largest share of a limit that was used up."""
        return max(self.tbt_s / slo.tbt_s, *(ttft_s / slo.ttft_s(name) for name, ttft_s in self.ttft_p99_s.items()))


def draw_inputs(random: np.random.Generator, name: InputClass, mean: float, count: int) -> NDArray[np.int64]:
    """Inputs spread over their class around this mean, long ones with a tail."""
    low, high = BOUNDS[name]
    if name is LONG:
        drawn = low + random.exponential(mean - low, count)
    else:
        apart = min(mean - low, high - mean)
        drawn = random.uniform(mean - apart, mean + apart, count)
    return np.clip(np.rint(drawn), low, high).astype(np.int64)


def drive(profile: MachineProfile, shape: Shape, load: Load, requests: int, seed: int = 0) -> Measured:
    """Serve so many requests; measured from the end of a warm-up to the last arrival."""
    random = np.random.default_rng(seed)
    names = list(load.by_class)
    shares = np.array([load.by_class[name].rps for name in names]) / load.rps
    arrivals = [round(at * PS_PER_S) for at in np.cumsum(random.exponential(1 / load.rps, requests))]
    kinds = random.choice(len(names), size=requests, p=shares)
    inputs, outputs = np.zeros(requests, dtype=np.int64), np.zeros(requests, dtype=np.int64)
    for number, name in enumerate(names):
        mine, part = kinds == number, load.by_class[name]
        inputs[mine] = draw_inputs(random, name, part.input_tokens, int(mine.sum()))
        answers = random.gamma(1 / 0.6, 0.6 * part.output_tokens, int(mine.sum()))
        outputs[mine] = np.maximum(1, np.rint(answers))
    machine, model = profile.machine(shape), ReplicaModel(profile.times(shape.tp), profile.limits(shape.tp))
    first = int(WARM_UP * requests)
    begins_ps, ends_ps = arrivals[first], arrivals[-1]
    now_ps = following = 0
    energy_j = decode_s = tokens_s = 0.0
    ttft_s = [math.inf] * requests
    while now_ps <= ends_ps:
        iteration = model.begin(shape.freq_mhz)
        if iteration is None:
            if following == requests:
                break
            now_ps = max(now_ps, arrivals[following])
        else:
            if now_ps >= begins_ps:
                lasts_s = iteration.duration_ps / PS_PER_S
                decoding = iteration.tokens - iteration.prefill_tokens
                energy_j += (machine.power_w[iteration.tokens] - machine.idle_power_w) * lasts_s
                decode_s += decoding * lasts_s
                tokens_s += decoding
            now_ps += iteration.duration_ps
        while following < requests and arrivals[following] <= now_ps:
            model.submit(following, int(inputs[following]), int(outputs[following]), arrivals[following])
            following += 1
        if iteration is not None:
            for key in model.complete().first_token:
                ttft_s[int(str(key))] = (now_ps - arrivals[int(str(key))]) / PS_PER_S
    span_s = (ends_ps - begins_ps) / PS_PER_S
    tails = {}
    for number, name in enumerate(names):
        mine_s = sorted(ttft_s[at] for at in range(first, requests) if kinds[at] == number)
        tails[name] = mine_s[int(0.99 * len(mine_s))]
    return Measured(machine.idle_power_w + energy_j / span_s, decode_s / max(tokens_s, 1.0), tails, decode_s / span_s)
