"""Requests per CPU second: the fast engine, the stepped oracle and, in the same run, NVIDIA Dynamo's offline replay.

    python benchmarks/simulator/run.py --trace azure2023_conv.csv --peer PEER_PYTHON

Rounds take turns, so that a busy machine slows everyone alike; the median round counts. Routing choices are recorded
once and played back: policy, parsing and sizing are not in these figures, nor is compiling the fast engine, which takes
seconds where it never ran. "Routing included" is the single pool itself; "phases apart" hands
every request over from one of a third of the replicas, at least one, to one of the others; short runs are stepped.
PEER_PYTHON is an interpreter of an environment of its own with `pip install ai-dynamo-runtime`.
"""

import argparse
import gc
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path

import numpy as np

from control_plane.actions import SetReplicas, Step
from control_plane.baselines.single_pool import POOL, SinglePool
from control_plane.domain import PoolName, ReplicaId, ReplicaView, Role
from control_plane.hardware.machine_profile import MachineProfile
from control_plane.hardware.profiles import load_profile
from control_plane.hardware.replica_model import PS_PER_S
from control_plane.hardware.shape_tables import ShapeTables
from control_plane.serving.policy import Governor, Needs
from control_plane.serving.routing import Candidate
from control_plane.simulation.fleet import Fleet
from control_plane.simulation.outcome import Simulated
from control_plane.simulation.serving_cluster import Engine, SimulatedCluster
from control_plane.simulation.trace import Trace, scaled
from wattray.trace_files import TraceRequest, load_trace

BLOCK_TOKENS = 512


class RoundRobin:
    """Replica i mod n: the peer's way, at next to no cost."""

    needs = Needs()
    splits_phases = False

    def __init__(self, replicas: int) -> None:
        self._replicas, self._next = replicas, 0

    def first_replicas(self) -> Sequence[SetReplicas]:
        return (SetReplicas(POOL, 8, self._replicas, "static"),)

    def route(
        self, now_s: float, request_id: Hashable, input_tokens: int, candidates: Sequence[Candidate]
    ) -> tuple[PoolName, ReplicaId] | None:
        self._next = (self._next + 1) % len(candidates)
        chosen = candidates[self._next]
        return chosen.pool, chosen.replica_id

    def governor(self, pool: PoolName, tp: int, role: Role) -> Governor | None:
        return None

    def route_decode(
        self, now_s: float, request_id: Hashable, input_tokens: int, candidates: Sequence[Candidate]
    ) -> ReplicaId | None:
        raise NotImplementedError("phases are together")

    def first_token(self, request_id: Hashable, replica_id: ReplicaId, input_tokens: int, ttft_s: float) -> None:
        pass

    def ended(self, request_id: Hashable, replica_id: ReplicaId, input_tokens: int, output_tokens: int) -> None:
        pass

    def dropped(self, request_id: Hashable, replica_id: ReplicaId) -> None:
        pass

    def step(self, now_s: float, replicas: Sequence[tuple[PoolName, ReplicaView]]) -> Step:
        return Step((), now_s + 3600.0)


class PhasesApart(RoundRobin):
    """Prefill on a third of the replicas, decode on the others, both in turn."""

    needs = Needs()
    splits_phases = True

    def first_replicas(self) -> Sequence[SetReplicas]:
        prefill = max(1, self._replicas // 3)
        return (
            SetReplicas(PoolName("prefill"), 8, prefill, "static", Role.PREFILL),
            SetReplicas(PoolName("decode"), 8, self._replicas - prefill, "static", Role.DECODE),
        )

    def route_decode(
        self, now_s: float, request_id: Hashable, input_tokens: int, candidates: Sequence[Candidate]
    ) -> ReplicaId | None:
        return candidates[self._next % len(candidates)].replica_id


class Recorded(RoundRobin):
    """Plays back the choices of another fleet."""

    def __init__(self, replicas: int, choices: Sequence[tuple[PoolName, ReplicaId] | None]) -> None:
        super().__init__(replicas)
        self._choices = choices

    def route(
        self, now_s: float, request_id: Hashable, input_tokens: int, candidates: Sequence[Candidate]
    ) -> tuple[PoolName, ReplicaId] | None:
        return self._choices[request_id]  # type: ignore[index]


class Recording(SinglePool):
    """The baseline's router, its choices kept."""

    takes_quickest = False

    def __init__(self, replicas: int) -> None:
        super().__init__(replicas)
        self.choices: list[tuple[PoolName, ReplicaId] | None] = []

    def route(
        self, now_s: float, request_id: Hashable, input_tokens: int, candidates: Sequence[Candidate]
    ) -> tuple[PoolName, ReplicaId] | None:
        chosen = super().route(now_s, request_id, input_tokens, candidates)
        self.choices.append(chosen)
        return chosen


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--trace", default="synthetic:conv")
    options.add_argument("--scale", type=float, default=8.0)
    options.add_argument("--replicas", type=int, default=8)
    options.add_argument("--many", type=int, default=1000, help="replicas of the large case; 0 leaves it out")
    options.add_argument("--week", type=int, default=0, help="requests of a week at an even rate, on 15 replicas")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--peer", help="Python with ai-dynamo-runtime")
    options.add_argument("--json", type=Path)
    wanted = options.parse_args()
    profile = load_profile("llama2-70b-h100-current")
    hour = load_trace(TraceRequest(wanted.trace))
    trace = scaled(hour, wanted.scale)
    results = [small_case(profile, trace, wanted.replicas, wanted.rounds, wanted.peer)]
    if wanted.many:
        part = scaled(hour.between(600, 660), 0.8 * wanted.many)
        results.append(large_case(profile, part, wanted.many, wanted.rounds))
    if wanted.week:
        results.append(week_case(profile, hour, wanted.week))
    for result in results:
        print(json.dumps(result, indent=2))
    if wanted.json:
        wanted.json.write_text(json.dumps(results, indent=2) + "\n")


def small_case(
    profile: MachineProfile, trace: Trace, replicas: int, rounds: int, peer: str | None
) -> dict[str, object]:
    router = Recording(replicas)
    run(profile, trace, router, "compiled")
    part = trace.between(0, trace.duration_s / 20)
    contenders: dict[str, Callable[[], float]] = {
        "fast engine": lambda: speed(profile, trace, Recorded(replicas, router.choices), "compiled"),
        "fast engine, routing included": lambda: speed(profile, trace, SinglePool(replicas), "compiled"),
        "fast engine, phases apart": lambda: speed(profile, trace, PhasesApart(replicas), "compiled"),
        "stepped oracle (a 20th of the trace)": lambda: speed(profile, part, RoundRobin(replicas), "stepped"),
    }
    with tempfile.TemporaryDirectory() as folder:
        if peer:
            file = Path(folder) / "trace.jsonl"
            tenth = trace.between(0, trace.duration_s / 10)
            write_mooncake(tenth, file)
            contenders["dynamo offline replay (a tenth of the trace)"] = lambda: (
                len(tenth) / peer_cpu_s(peer, file, replicas)
            )
        speeds = in_turns(contenders, rounds)
    return {"requests": len(trace), "replicas": replicas, "requests_per_cpu_s": speeds}


def large_case(profile: MachineProfile, trace: Trace, replicas: int, rounds: int) -> dict[str, object]:
    contenders: dict[str, Callable[[], float]] = {
        "fast engine": lambda: speed(profile, trace, RoundRobin(replicas), "compiled"),
        "fast engine, routing included": lambda: speed(profile, trace, SinglePool(replicas), "compiled"),
    }
    run(profile, trace.between(0, 1), SinglePool(1), "compiled")
    return {"requests": len(trace), "replicas": replicas, "requests_per_cpu_s": in_turns(contenders, rounds)}


def week_case(profile: MachineProfile, hour: Trace, requests: int) -> dict[str, object]:
    """So many requests of the hour at random moments of a week; the single pool routes by itself."""
    random = np.random.default_rng(0)
    arrival_ps = np.sort(random.integers(0, 7 * 86400 * PS_PER_S, requests))
    picked = random.integers(0, len(hour), requests)
    trace = Trace(arrival_ps, hour.input_tokens[picked], hour.output_tokens[picked])
    start_s = time.process_time()
    outcome = run(profile, trace, SinglePool(15), "compiled", sample_s=200.0)
    cpu_s = time.process_time() - start_s
    return {
        "requests": requests,
        "replicas": 15,
        "done": int(outcome.done.sum()),
        "cpu_s": cpu_s,
        "requests_per_cpu_s": requests / cpu_s,
        "peak_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def in_turns(contenders: dict[str, Callable[[], float]], rounds: int) -> dict[str, dict[str, float]]:
    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, measure in contenders.items():
            speeds[name].append(measure())
    return {
        name: {"median": statistics.median(all_), "best": max(all_), "worst": min(all_)}
        for name, all_ in speeds.items()
    }


def speed(profile: MachineProfile, trace: Trace, fleet: Fleet, engine: Engine) -> float:
    start_s = time.process_time()
    run(profile, trace, fleet, engine)
    return len(trace) / (time.process_time() - start_s)


def run(
    profile: MachineProfile,
    trace: Trace,
    fleet: Fleet,
    engine: Engine,
    sample_s: float = 10.0,
) -> Simulated:
    gc.collect()
    gc.disable()
    tables = {8: ShapeTables.of(profile, 8)}
    outcome = SimulatedCluster(profile, None, fleet, sample_s=sample_s, engine=engine, tables=tables).run(trace)
    gc.enable()
    return outcome


def write_mooncake(trace: Trace, path: Path) -> None:
    blocks = 0
    with path.open("w") as lines:
        for _, at_ps, input_tokens, output_tokens in trace.blocks():
            count = -(-input_tokens // BLOCK_TOKENS)
            row = {
                "timestamp": at_ps // 10**9,
                "input_length": input_tokens,
                "output_length": output_tokens,
                "hash_ids": list(range(blocks, blocks + count)),
            }
            blocks += count
            lines.write(json.dumps(row) + "\n")


def peer_cpu_s(peer: str, file: Path, workers: int) -> float:
    script = Path(__file__).with_name("dynamo_replay.py")
    command = [peer, str(script), str(file), str(workers), str(BLOCK_TOKENS)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout.splitlines()[-1])["cpu_s"])


if __name__ == "__main__":
    sys.exit(main())
