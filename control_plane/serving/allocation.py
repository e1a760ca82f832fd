"""What an exact allocation is asked and what it answers: which instances serve which pools at the least power.

The problem is DynamoLLM's (HPCA'25, section IV-B): for every pool, how many instances of each tensor parallelism and
clock, and how the load is split over them, so that the power is least, no instance carries more than it can within
the SLO, and the GPUs suffice. Neighbouring pools may be merged: the smaller ones' load is handed up to the larger pool.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from control_plane.domain import Shape


@dataclass(frozen=True, slots=True)
class PowerCurve:
    """Watts of one instance of a shape by the load that it carries, straight between the knots.

    ``loads`` rise from 0 to the largest load at which the shape holds the SLO, in the unit of ``Group.load``; ``watts``
    never fall. Raises ValueError otherwise.
    """

    shape: Shape
    loads: Sequence[float]
    watts: Sequence[float]

    def __post_init__(self) -> None:
        steps = zip(self.loads, self.loads[1:], self.watts, self.watts[1:], strict=False)
        if len(self.loads) < 2 or len(self.loads) != len(self.watts) or self.loads[0] != 0:
            raise ValueError(f"curve of {self.shape}: as many watts as loads, at least two, the first load 0")
        if any(after <= before or more < less for before, after, less, more in steps) or self.watts[0] <= 0:
            raise ValueError(f"curve of {self.shape}: loads must rise, watts be above 0 and never fall")

    @property
    def most(self) -> float:
        """The largest load of one instance."""
        return self.loads[-1]


@dataclass(frozen=True, slots=True)
class Group:
    """The pools ``first`` … ``last`` (numbers in the order of size, both included) served by the same instances."""

    first: int
    last: int
    load: float
    """All that arrives for them, above 0."""
    curves: Sequence[PowerCurve]
    """Shapes that hold the SLO at some load. A group without any cannot be served together."""


@dataclass(frozen=True, slots=True)
class AllocationProblem:
    """``groups``: every pool alone and whatever neighbours may be merged. ``idle_gpu_w`` is what a GPU that no instance
    holds is billed."""

    pools: Sequence[str]
    groups: Sequence[Group]
    gpus: int
    idle_gpu_w: float = 0.0

    def __post_init__(self) -> None:
        if self.gpus < 0 or self.idle_gpu_w < 0:
            raise ValueError(f"gpus {self.gpus} and idle_gpu_w {self.idle_gpu_w} must not be negative")
        for group in self.groups:
            for curve in group.curves:
                if curve.watts[0] < self.idle_gpu_w * curve.shape.tp:
                    raise ValueError(
                        f"idle_gpu_w {self.idle_gpu_w} is more than an idle GPU of an instance of {curve.shape} draws "
                        f"({curve.watts[0] / curve.shape.tp:.1f} W): instances would be started to save power"
                    )


@dataclass(frozen=True, slots=True)
class Placement:
    """``instances`` equal instances, each with so much load and power."""

    group: Group
    shape: Shape
    instances: int
    load_each: float
    watts_each: float

    @property
    def gpus(self) -> int:
        return self.instances * self.shape.tp


@dataclass(frozen=True, slots=True)
class Shortfall:
    """A pool that is not served in full, and how many GPUs more all pools together need (None: no number helps)."""

    pool: str
    served_ratio: float
    gpus_short: int | None


@dataclass(frozen=True, slots=True)
class Allocation:
    """The answer. ``power_w`` counts the instances and, at ``idle_gpu_w``, the GPUs that none of them holds."""

    placements: Sequence[Placement]
    gpus_used: int
    power_w: float
    lower_bound_w: float
    """No allocation of this problem needs less."""
    method: str
    shortfalls: Sequence[Shortfall] = field(default_factory=tuple)

    @property
    def gap_ratio(self) -> float:
        """How far the power may lie above the optimum at most."""
        return self.power_w / self.lower_bound_w - 1.0 if self.lower_bound_w > 0 else 0.0

    @property
    def feasible(self) -> bool:
        return not self.shortfalls
