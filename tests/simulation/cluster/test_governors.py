"""A governor in the simulated cluster: when it is asked, what it sees, and what becomes of its answer."""

import pytest

from control_plane.actions import Action, SetFrequency, SetGovernor, SetPowerLimit, SetReplicas, Step
from control_plane.baselines.single_pool import SinglePool
from control_plane.domain import PoolName, QueuedPrompt, QueueView, ReplicaId, Request, Role, Slo
from control_plane.hardware.energy_profile import RooflineProfile
from control_plane.serving.policy import Governor
from control_plane.simulation.cluster.governors import ClockBounds
from control_plane.simulation.outcome import Simulated
from control_plane.simulation.serving_cluster import Engine, SimulatedCluster

PROFILE = RooflineProfile()
GPU = PROFILE.gpu
R1 = ReplicaId("single-pool-tp8-1")
BOTH = pytest.mark.parametrize("engine", ["compiled", "stepped"])


class Wants:
    """A governor that always wants one clock and remembers when it was asked and what it saw."""

    def __init__(self, freq_mhz: int) -> None:
        self.freq_mhz = freq_mhz
        self.asked: list[tuple[float, QueueView]] = []

    def look(self, queue: QueueView, now_s: float) -> int:
        self.asked.append((now_s, queue))
        return self.freq_mhz


class GovernedPool(SinglePool):
    """One replica under a governor; the controller sends the same actions every five seconds."""

    takes_quickest = False

    def __init__(self, governor: Governor | None, *actions: Action) -> None:
        super().__init__(1)
        self._governor, self._actions = governor, actions

    def governor(self, pool: PoolName, tp: int, role: Role) -> Governor | None:
        return self._governor

    def step(self, now_s, replicas):  # type: ignore[no-untyped-def]
        return Step(self._actions, now_s + 5.0)


def run(engine: Engine, fleet: SinglePool, *requests: Request, until_s: float = 3.5) -> Simulated:
    return SimulatedCluster(PROFILE, 8, fleet, engine=engine, slo=Slo(ttft_short_s=0.3)).run(requests, until_s)


@BOTH
def test_a_governor_is_asked_every_second_and_at_every_arrival(engine: Engine) -> None:
    governor = Wants(1980)
    run(engine, GovernedPool(governor), Request("a", 0.25, 100, 3), Request("b", 1.5, 200, 3))
    assert [now_s for now_s, _ in governor.asked] == [0.25, 1.0, 1.5, 2.0, 3.0]


@BOTH
def test_it_sees_its_own_queue_as_it_is(engine: Engine) -> None:
    governor = Wants(1980)
    run(engine, GovernedPool(governor), Request("a", 0.25, 100, 500), Request("b", 1.5, 300, 3))
    first, between, second = (governor.asked[i][1] for i in (0, 1, 2))
    prompt = QueuedPrompt(0.25, 100, 100, 0.3)
    assert first == QueueView(8, Role.COMBINED, 1980, (prompt,), 0, 0, 100, PROFILE.limits(8).kv_tokens)
    assert (between.queued, between.decoding) == ((), 1)
    assert between.context_tokens == between.kv_used_tokens > 100
    assert second.queued == (QueuedPrompt(1.5, 300, 300, Slo().ttft_medium_s),)
    assert second.context_tokens > between.context_tokens


@BOTH
def test_what_it_wants_is_in_force_once_the_clock_has_settled(engine: Engine) -> None:
    governor = Wants(1000)
    run(engine, GovernedPool(governor), Request("a", 0.25, 100, 3), Request("b", 0.26, 100, 3))
    seen = {now_s: queue.freq_mhz for now_s, queue in governor.asked}
    settles_s = GPU.settle_ns * 1e-9
    assert 0.01 < settles_s < 0.75
    assert seen == {0.25: 1980, 0.26: 1980, 1.0: 990, 2.0: 990, 3.0: 990}


@BOTH
def test_bounds_hold_for_its_last_answer_at_once(engine: Engine) -> None:
    governor = Wants(400)
    bounded = GovernedPool(governor, SetGovernor(R1, 1200, 1500, "slack is tight"))
    run(engine, bounded, Request("a", 0.25, 100, 3))
    assert [queue.freq_mhz for now_s, queue in governor.asked if now_s >= 1.0] == [1200] * 3


@pytest.mark.parametrize(
    ("bounds", "wished_mhz", "clock_mhz"),
    [
        ((345, 1980), 1000, 990),
        ((345, 1980), 5000, 1980),
        ((345, 1980), 0, 345),
        ((1000, 1500), 400, 1005),
        ((1000, 1500), 1700, 1500),
        ((991, 1004), 1200, 990),
        ((2000, 3000), 400, 1980),
    ],
)
def test_a_wish_is_kept_within_bounds_and_to_supported_clocks(
    bounds: tuple[int, int], wished_mhz: int, clock_mhz: int
) -> None:
    assert ClockBounds(*bounds).clamped(GPU, wished_mhz) == clock_mhz


@pytest.mark.parametrize(
    ("governor", "action", "message"),
    [
        (None, SetGovernor(R1, 500, 900, ""), "has no governor: use SetFrequency"),
        (Wants(900), SetGovernor(R1, 900, 500, ""), "floor_mhz 900 is above ceiling_mhz 500"),
        (None, SetPowerLimit(R1, 300.0, ""), r"power_w 300.0 is below the GPU's 700.0"),
        (None, SetReplicas(PoolName("single-pool"), 8, 1, "", Role.DECODE), "role decode, but phases are together"),
    ],
)
def test_actions_that_the_cluster_cannot_follow_are_refused(
    governor: Governor | None, action: Action, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run("stepped", GovernedPool(governor, action))


def test_a_default_power_limit_and_replicas_that_are_gone_change_nothing() -> None:
    gone = ReplicaId("single-pool-tp8-9")
    actions = (SetPowerLimit(R1, None, ""), SetGovernor(gone, 500, 900, ""), SetFrequency(gone, 500, ""))
    request = Request("a", 0.25, 100, 3)
    plain = run("stepped", GovernedPool(None), request)
    assert run("stepped", GovernedPool(None, *actions), request).energy_j == plain.energy_j
