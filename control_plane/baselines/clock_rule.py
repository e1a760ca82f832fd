"""The simplest thing that moves clocks: a static pool, and a rule of a few lines for each replica.

Full clock while more than one request waits or one has waited for 50 ms, else a floor near 1 GHz, where a GPU's voltage
no longer falls; looked at every two seconds. Whatever saves less than this is not worth its complexity.
"""

from control_plane.actions import SetFrequency, SetReplicas, Step
from control_plane.domain import PoolName, ReplicaState
from control_plane.hardware.machine_profile import MachineProfile
from control_plane.serving.hosted_policy import HostedPolicy
from control_plane.serving.policies.single_pool import SinglePoolPolicy
from control_plane.serving.policy import Needs, PoolController
from control_plane.serving.snapshots import PoolSnapshot
from control_plane.settings import ForecastSettings

EVERY_S = 2.0
FLOOR_MHZ = 1000
MOST_WAITING, LONGEST_WAIT_S = 1, 0.05


class ClockRule(HostedPolicy):
    """``replicas`` equal replicas under the rule, in virtual time."""

    def __init__(self, replicas: int, tp: int, profile: MachineProfile) -> None:
        super().__init__(_ClockRulePolicy(replicas, tp, profile), ForecastSettings(), replicas * tp)


class _ClockRulePolicy(SinglePoolPolicy):
    needs = Needs(forecast=False)

    def __init__(self, replicas: int, tp: int, profile: MachineProfile) -> None:
        super().__init__(replicas, tp)
        self._top_mhz = profile.max_freq_mhz
        self._floor_mhz = min(profile.freqs_mhz, key=lambda mhz: abs(mhz - FLOOR_MHZ))

    def pool(self, pool: PoolName) -> PoolController:
        return _RulePool(SetReplicas(pool, self._tp, self._replicas, "static"), self._floor_mhz, self._top_mhz)


class _RulePool:
    def __init__(self, wanted: SetReplicas, floor_mhz: int, top_mhz: int) -> None:
        self._wanted, self._floor_mhz, self._top_mhz = wanted, floor_mhz, top_mhz

    def plan(self) -> str:
        return f"{self._wanted.replicas} x TP{self._wanted.tp} at {self._floor_mhz} or {self._top_mhz} MHz"

    def step(self, seen: PoolSnapshot) -> Step:
        if sum(view.counts for view in seen.replicas) != self._wanted.replicas:
            return Step((self._wanted,), seen.now_s + EVERY_S)
        clocks = []
        for view in seen.replicas:
            late = view.waiting > MOST_WAITING or view.oldest_wait_s > LONGEST_WAIT_S
            mhz = self._top_mhz if late else self._floor_mhz
            if view.state is ReplicaState.READY and view.freq_mhz != mhz:
                clocks.append(SetFrequency(view.replica_id, mhz, "somebody waits" if late else "nobody waits"))
        return Step(tuple(clocks), seen.now_s + EVERY_S)
