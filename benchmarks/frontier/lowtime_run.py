"""Run lowtime's solver on a DAG given as JSON on stdin; for the interpreter of a venv that has lowtime installed.

Writes JSON: CPU seconds spent, steps done of steps needed, and the choices planned along the way.
"""

import json
import logging
import sys
import time

import networkx as nx
from lowtime.cost_model import ExponentialModel
from lowtime.operation import CandidateExecutionOptions, DummyOperation, ExecutionOption, Operation, OperationSpec
from lowtime.solver import PhillipsDessouky

UNIT_TIME_S = 0.001


def main() -> None:
    logging.disable(logging.CRITICAL)
    given = json.load(sys.stdin)
    specs = []
    for points in given["kinds"]:
        options = [ExecutionOption(real_time=t, unit_time=UNIT_TIME_S, cost=c, knob=i) for i, t, c in points]
        candidates = CandidateExecutionOptions(options=options)
        specs.append(OperationSpec(options=candidates, cost_model=ExponentialModel(candidates)))
    operations = [Operation(spec=specs[kind]) for kind in given["kind"]]
    graph = nx.DiGraph()
    for op, operation in enumerate(operations):
        graph.add_node(op, op=operation)
    graph.add_edges_from(given["edges"])
    source, sink = len(operations), len(operations) + 1
    starts = [op for op in range(source) if graph.in_degree(op) == 0]
    ends = [op for op in range(source) if graph.out_degree(op) == 0]
    graph.add_node(source, op=DummyOperation())
    graph.add_node(sink, op=DummyOperation())
    graph.add_edges_from((source, op) for op in starts)
    graph.add_edges_from((op, sink) for op in ends)
    graph.graph["source_node"], graph.graph["sink_node"] = source, sink

    def longest(durations: list[int]) -> int:
        end = dict.fromkeys(graph.nodes, 0)
        for node in nx.topological_sort(graph):
            own = durations[node] if node < source else 0
            end[node] = own + max((end[before] for before in graph.predecessors(node)), default=0)
        return end[sink]

    steps_needed = longest([o.max_duration for o in operations]) - longest([o.min_duration for o in operations])
    started_s = time.process_time()
    steps = 0
    plans = []
    for result in PhillipsDessouky(graph, attr_name="op").run():
        steps += 1
        claimed_s = result.real_time
        if steps % given["keep_every"] == 0:
            plans.append([claimed_s, [operation.assigned_knob for operation in operations]])
        if time.process_time() - started_s > given["limit_s"]:
            break
    json.dump(
        {
            "cpu_s": time.process_time() - started_s,
            "steps": steps,
            "steps_needed": steps_needed,
            "plans": plans,
        },
        sys.stdout,
    )


if __name__ == "__main__":
    main()
