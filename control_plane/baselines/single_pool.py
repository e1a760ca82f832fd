"""The strong static baseline: one pool of TP8 replicas at the highest clock, sized by search (DynamoLLM's
SinglePool, sized as well as an expert who knew the trace would)."""

from control_plane.serving.hosted_policy import HostedPolicy
from control_plane.serving.policies.single_pool import POOL, SinglePoolPolicy
from control_plane.settings import ForecastSettings

__all__ = ["POOL", "SinglePool"]


class SinglePool(HostedPolicy):
    """``replicas`` equal replicas at one clock (the highest where none is given), never changed, in virtual time."""

    def __init__(self, replicas: int, tp: int = 8, freq_mhz: int | None = None) -> None:
        super().__init__(SinglePoolPolicy(replicas, tp, freq_mhz), ForecastSettings(), replicas * tp)
