"""Which nodes need an agent, and how many GPUs serving may count on: a pure look at the cluster's nodes."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class NodeSeen:
    """One node as Ray lists it."""

    node_id: str
    alive: bool
    gpus: int


@dataclass(frozen=True, slots=True)
class AgentPlan:
    """``start``: nodes without an agent; ``gone``: agents whose node is dead; ``gpus``: those of the living nodes."""

    start: tuple[NodeSeen, ...]
    gone: tuple[str, ...]
    gpus: int


def plan_agents(nodes: Sequence[NodeSeen], agents: Collection[str]) -> AgentPlan:
    """``agents`` are the node ids that have one. Repeating it after it was carried out asks for nothing."""
    alive = [node for node in nodes if node.alive and node.gpus > 0]
    ids = {node.node_id for node in alive}
    return AgentPlan(
        tuple(node for node in alive if node.node_id not in agents),
        tuple(sorted(set(agents) - ids)),
        sum(node.gpus for node in alive),
    )
