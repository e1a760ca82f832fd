"""An allocation problem from an energy profile: the power curves of every pool alone and of neighbours merged.

The curves are the profile's closed forms (``hardware.steady_state``) at ``KNOTS`` shares of the largest load that holds
the SLO, straight in between; on the default profile the tests hold what is allocated to within 3 % of the closed form.
Where the closed form falls with the load by a little, the curve stays at its highest value so far.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from control_plane.domain import REQUEST_TYPES, ClassLoad, Load, RequestType, Shape, Slo
from control_plane.hardware.machine_profile import MachineProfile
from control_plane.serving.allocation import AllocationProblem, Group, PowerCurve

KNOTS = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)
"""Shares of the largest load; steep below a tenth, where a replica begins to be busy."""


@dataclass(frozen=True, slots=True)
class PoolDemand:
    """What arrives for one pool: requests a second, mean lengths in tokens, and limits of its own."""

    type: RequestType
    rps: float
    input_tokens: float
    output_tokens: float
    slo: Slo | None = None
    """None: the profile's."""

    @property
    def load(self) -> Load:
        return Load({self.type.input: ClassLoad(self.rps, self.input_tokens, self.output_tokens)})


def problem_of(
    demands: Sequence[PoolDemand], profile: MachineProfile, gpus: int, idle_gpu_w: float = 0.0, merge: bool = True
) -> AllocationProblem:
    """The problem of these pools, smallest type first; pools without load are left out. ``merge``: neighbours may be
    served together, all of them within the limits of each."""
    busy = sorted((d for d in demands if d.rps > 0), key=lambda d: REQUEST_TYPES.index(d.type))
    groups = [
        _group(busy[first : last + 1], first, last, profile)
        for first in range(len(busy))
        for last in range(first, len(busy) if merge else first + 1)
        if _may_merge(busy, first, last)
    ]
    return AllocationProblem([str(demand.type) for demand in busy], groups, gpus, idle_gpu_w)


def _may_merge(demands: Sequence[PoolDemand], first: int, last: int) -> bool:
    """Within an input class any neighbours; across classes whole classes: other mixtures cost time and win nothing that
    was measured."""
    if demands[first].type.input is demands[last].type.input:
        return True
    before, after = demands[:first], demands[last + 1 :]
    starts = all(demand.type.input is not demands[first].type.input for demand in before)
    ends = all(demand.type.input is not demands[last].type.input for demand in after)
    return starts and ends


def _group(demands: Sequence[PoolDemand], first: int, last: int, profile: MachineProfile) -> Group:
    held, load = held_together(demands, profile)
    shapes = [Shape(tp, freq) for tp in profile.tps for freq in profile.freqs_mhz]
    curves = [curve for shape in shapes if (curve := power_curve(held, shape, load)) is not None]
    return Group(first, last, load.rps, curves)


def held_together(demands: Sequence[PoolDemand], profile: MachineProfile) -> tuple[MachineProfile, Load]:
    """The profile with the tightest limits of all these pools, and their load together."""
    load = Load()
    for demand in demands:
        load = load + demand.load
    return profile.with_slo(_tightest([demand.slo or profile.slo for demand in demands])), load


def power_curve(profile: MachineProfile, shape: Shape, mix: Load) -> PowerCurve | None:
    """Watts by requests a second of this mix; None where no load holds the SLO."""
    most = profile.max_load(shape, mix) * mix.rps
    if most <= 0:
        return None
    watts = [profile.idle_power_w(shape.tp)]
    watts += [profile.power_w(shape, mix.scaled(share * most / mix.rps)) for share in KNOTS]
    return PowerCurve(shape, (0.0, *(share * most for share in KNOTS)), tuple(accumulate(watts, max)))


def _tightest(limits: Sequence[Slo]) -> Slo:
    return Slo(
        min(limit.ttft_short_s for limit in limits),
        min(limit.ttft_medium_s for limit in limits),
        min(limit.ttft_long_s for limit in limits),
        min(limit.tbt_s for limit in limits),
    )
