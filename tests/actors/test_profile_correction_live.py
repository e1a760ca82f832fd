"""A pool's manager holds the profile against what its replicas measure."""

import asyncio
from collections.abc import Mapping

import pytest

from actors.messages import Held, ReplicaReport
from actors.pool_manager import PoolManager, PoolRules
from control_plane.domain import ClassLoad, InputClass, Load, PoolName, ReplicaId, ReplicaState, Role, Shape
from control_plane.hardware.live_correction import LiveCorrection
from control_plane.hardware.profile_correction import CorrectionRules
from control_plane.hardware.profiles import load_profile
from control_plane.leases import Hold
from control_plane.serving.hosting import PoolHost
from control_plane.serving.load_forecast import Forecast
from control_plane.serving.policies.registry import make_policy
from control_plane.serving.policy import Site
from control_plane.settings import Settings

LOAD = Load({InputClass.LONG: ClassLoad(1.0, 2000, 200)})
TOP = Shape(8, 1980)


def replica(mean_tbt_s: float) -> ReplicaReport:
    uuids = tuple(f"gpu{index}" for index in range(8))
    return ReplicaReport(
        ReplicaId("r0"), PoolName("long"), 8, "n0", uuids, ReplicaState.READY, 0, 0, 0.0, freq_mhz=1980,
        mean_tbt_s=mean_tbt_s,
    )  # fmt: skip


def managed(slower: float, correct: bool = True) -> tuple[float, list[str]]:
    """(highest load after five minutes over that of the profile, what was decided about the profile)."""
    settings, profile, truth = Settings(), load_profile("llama2-70b-h100"), load_profile("llama2-70b-h100")
    tbt_s = truth.operating_point(TOP, LOAD).tbt_s * slower
    site = Site(settings, profile, 32, profile.gpu.idle_w, Load())
    now_s = 0.0

    async def forecast() -> Forecast:
        return Forecast(LOAD, LOAD)

    async def hold(node: str, owner: str, wishes: Mapping[str, Hold], ttl_s: float, epoch: int) -> Held:
        return Held({uuid: wish.freq_mhz or 1980 for uuid, wish in wishes.items()}, {})

    async def set_count(pool: PoolName, tp: int, role: Role, replicas: int) -> None:
        return None

    correction = LiveCorrection(profile, CorrectionRules(warm_after_s=60.0, least_samples=5)) if correct else None
    manager = PoolManager(
        PoolName("long"), PoolHost(make_policy("wattray", site), PoolName("long")),
        PoolRules(1980, 15.0, 5.0, "recommend", 32), forecast, hold, set_count,
        lambda: now_s, lambda: 1000 + now_s, correction,
    )  # fmt: skip

    async def minutes() -> None:
        nonlocal now_s
        for _ in range(60):
            manager.report(replica(tbt_s))
            await manager.tick()
            now_s += 5.0

    asyncio.run(minutes())
    told = [decision.why for decision in manager.decisions() if "disagree" in decision.why]
    return profile.max_load(TOP, LOAD) / truth.max_load(TOP, LOAD), told


def test_a_slower_machine_is_planned_with_less_and_a_disagreement_is_told_once() -> None:
    carried, told = managed(1.4)
    assert carried < 0.8
    assert len(told) == 1
    assert "decode by 40%" in told[0]


def test_a_profile_that_is_right_stays_as_it_is() -> None:
    assert managed(1.0) == (1.0, [])


@pytest.mark.parametrize("slower", [0.5, 2.0])
def test_without_the_setting_nothing_follows(slower: float) -> None:
    assert managed(slower, correct=False) == (1.0, [])
