"""Random DAGs for laws."""

from hypothesis import strategies as st

from control_plane.training.computation import Choice
from control_plane.training.dag import Dag, dag_of_nodes

choices = st.lists(
    st.builds(
        Choice,
        freq_mhz=st.integers(1, 3000),
        time_s=st.integers(1, 10_000).map(lambda n: n / 997),
        energy_j=st.integers(0, 1_000_000).map(lambda n: n / 991),
    ),
    min_size=1,
    max_size=6,
)


@st.composite
def random_dags(draw: st.DrawFn) -> Dag:
    count = draw(st.integers(1, 14))
    nodes = {i: draw(choices) for i in range(count)}
    pairs = [(i, j) for j in range(count) for i in range(j)]
    edges = draw(st.lists(st.sampled_from(pairs), max_size=30)) if pairs else []
    return dag_of_nodes(nodes, edges, draw(st.sampled_from([0.0, 5.0, 70.0])))
