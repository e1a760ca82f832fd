"""What a replica's work costs in time at each clock, as governors and sizing ask it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from control_plane.hardware.machine_profile import MachineProfile
from control_plane.hardware.replica_model import PS_PER_S


@dataclass(frozen=True, slots=True, eq=False)
class ClockCosts:
    """One tensor parallelism at one clock. Times in seconds."""

    freq_mhz: int
    pass_s: Sequence[float]
    """Of an iteration with so many tokens."""
    context_s: float
    """Per token of context that is attended to, of every decoding request."""
    attention_s: float
    """Per pair of a prefilled token and a token that it attends to."""
    most_tokens: int
    """In one iteration."""

    def prefill_s(self, tokens: int) -> float:
        """So many prompt tokens in full passes, attention left out."""
        full, rest = divmod(tokens, self.most_tokens)
        return full * self.pass_s[self.most_tokens] + (self.pass_s[rest] if rest else 0.0)

    def own_attention_s(self, input_tokens: int) -> float:
        return self.attention_s * input_tokens * (input_tokens + 1) / 2

    def decode_s(self, requests: int, context_tokens: float) -> float:
        """One iteration of so many requests."""
        return self.pass_s[min(requests, len(self.pass_s) - 1)] + self.context_s * context_tokens

    @property
    def prefill_rate(self) -> float:
        """Prompt tokens a second in full passes."""
        return self.most_tokens / self.pass_s[self.most_tokens]


def clock_costs(profile: MachineProfile, tp: int) -> tuple[ClockCosts, ...]:
    """By clock, ascending, of those that policies choose from."""
    times, limits = profile.times(tp), profile.limits(tp)
    return tuple(
        ClockCosts(
            freq_mhz,
            tuple((np.array(times.alpha_ps(freq_mhz)) / PS_PER_S).tolist()),
            times.context_ps / PS_PER_S,
            times.attention_ps(freq_mhz) / PS_PER_S,
            limits.batch_tokens,
        )
        for freq_mhz in profile.freqs_mhz
    )


def efficient_mhz(profile: MachineProfile, tp: int, tokens: int) -> int:
    """The clock at which an iteration of so many tokens takes the least energy, of those that policies choose from.
    Lower ones waste: they take longer at a voltage that no longer falls."""
    return _cheapest_mhz(profile, tp, tokens, 0.0)


def efficient_held_mhz(profile: MachineProfile, tp: int, tokens: int) -> int:
    """The same of what an iteration draws above what the replica's GPUs draw while they hold the model and wait: they
    are held whether or not work is done sooner."""
    return _cheapest_mhz(profile, tp, tokens, profile.gpu.context_w)


def _cheapest_mhz(profile: MachineProfile, tp: int, tokens: int, less_w: float) -> int:
    times, gpu = profile.times(tp), profile.gpu
    activity = times.activity(tokens)
    return min(
        profile.freqs_mhz, key=lambda mhz: (gpu.power_w(mhz, 1, activity) - less_w) * times.alpha_ps(mhz)[tokens]
    )
