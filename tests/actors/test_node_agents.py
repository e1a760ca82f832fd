from hypothesis import given
from hypothesis import strategies as st

from actors.node_agents import AgentPlan, NodeSeen, plan_agents


def test_a_node_that_joins_gets_an_agent_and_a_dead_one_loses_its_own() -> None:
    nodes = [NodeSeen("a", True, 8), NodeSeen("b", True, 4), NodeSeen("c", False, 8), NodeSeen("cpu", True, 0)]
    assert plan_agents(nodes, {"a", "c"}) == AgentPlan((NodeSeen("b", True, 4),), ("c",), 12)


seen = st.lists(
    st.builds(NodeSeen, st.sampled_from("abcdef"), st.booleans(), st.integers(0, 8)), unique_by=lambda n: n.node_id
)


@given(seen, st.sets(st.sampled_from("abcdef")))
def test_carrying_a_plan_out_leaves_nothing_to_do(nodes: list[NodeSeen], agents: set[str]) -> None:
    plan = plan_agents(nodes, agents)
    after = (agents - set(plan.gone)) | {node.node_id for node in plan.start}
    again = plan_agents(nodes, after)
    assert (again.start, again.gone, again.gpus) == ((), (), plan.gpus)
    assert plan.gpus == sum(node.gpus for node in nodes if node.alive)
