"""Mean times to first token of ``ReplicaModel`` beside NVIDIA Dynamo's offline replay under fixed iteration times, and
beside the formula of the M/D/1 queue.

    python benchmarks/simulator/peer_agreement.py --peer PEER_PYTHON

PEER_PYTHON is an interpreter of an environment of its own with `pip install ai-dynamo-runtime`; without it only our
column and the formula are printed. An iteration lasts the sum of what its parts cost: ``prefill_ms`` where it prefills
anything, ``decode_ms`` where anybody decodes. That is the peer's "fixed" timing model; ``ReplicaModel`` leaves time to
whoever drives it, so its own iteration times take no part here.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from control_plane.hardware.energy_profile import RooflineProfile
from control_plane.hardware.replica_model import ReplicaLimits, ReplicaModel

BLOCK_TOKENS = 2
"""The peer's smallest: it counts KV in blocks where we count tokens."""

PLENTY = 1_000_000


@dataclass(frozen=True, slots=True)
class Case:
    """A workload, the replica's limits, and by how much the peer's mean TTFT may differ from ours."""

    name: str
    arrival_ms: Sequence[float]
    input_tokens: Sequence[int]
    output_tokens: Sequence[int]
    prefill_ms: float
    decode_ms: float
    limits: ReplicaLimits
    may_differ: float
    formula_ms: float | None = None
    """Mean TTFT by queueing theory, where there is a formula."""


@dataclass(frozen=True, slots=True)
class Served:
    """Times to first token in order of arrival (the peer tells only their mean)."""

    mean_ttft_ms: float
    ttft_ms: Sequence[float] = ()
    preemptions: int = 0


def poisson(rps: float, requests: int, seed: int) -> list[float]:
    """Arrival times in milliseconds, in microsecond steps."""
    gaps_ms = np.random.default_rng(seed).exponential(1000.0 / rps, requests)
    return [round(at_ms, 3) for at_ms in np.cumsum(gaps_ms).tolist()]


def lengths(low: int, high: int, requests: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(low, high + 1, requests).tolist()


def one_prompt_a_pass(load: float, requests: int) -> Case:
    """An M/D/1 queue: its mean wait is load x service / 2 (1 - load)."""
    service_ms = 10.0
    return Case(
        f"M/D/1: one prompt a pass, load {load}",
        poisson(1000.0 * load / service_ms, requests, seed=1),
        [512] * requests,
        [1] * requests,
        service_ms,
        1.0,
        ReplicaLimits(PLENTY, 256, 512),
        may_differ=0.001,
        formula_ms=service_ms + load * service_ms / (2 * (1 - load)),
    )


def cases(requests: int) -> list[Case]:
    """``requests`` each, but a tenth of them where requests decode."""
    few = requests // 10
    return [
        one_prompt_a_pass(0.5, requests),
        one_prompt_a_pass(0.8, requests),
        Case(
            "two prompts a pass, load 0.8",
            poisson(160.0, requests, seed=2),
            [512] * requests,
            [1] * requests,
            10.0,
            1.0,
            ReplicaLimits(PLENTY, 256, 1024),
            may_differ=0.001,
        ),
        Case(
            "chunked prefill beside decode",
            poisson(2.0, few, seed=3),
            lengths(200, 6000, few, seed=4),
            lengths(10, 200, few, seed=5),
            40.0,
            10.0,
            ReplicaLimits(PLENTY, 256, 1024),
            may_differ=0.001,
        ),
        Case(
            "tight KV, near saturation",
            poisson(4.0, few, seed=6),
            lengths(20, 1500, few, seed=7),
            lengths(10, 600, few, seed=8),
            20.0,
            10.0,
            ReplicaLimits(14_000, 256, 2048),
            may_differ=0.07,
        ),
    ]


def stepped(case: Case) -> Served:
    """``ReplicaModel`` under the case's iteration times."""
    profile = RooflineProfile()
    replica = ReplicaModel(profile.times(8), case.limits)
    ttft_ms = [0.0] * len(case.arrival_ms)
    preemptions = 0
    now_ms = 0.0
    next_ = 0
    while next_ < len(case.arrival_ms) or replica.busy:
        if not replica.busy:
            now_ms = max(now_ms, case.arrival_ms[next_])
        while next_ < len(case.arrival_ms) and case.arrival_ms[next_] <= now_ms:
            replica.submit(next_, case.input_tokens[next_], case.output_tokens[next_], 0)
            next_ += 1
        iteration = replica.begin(profile.max_freq_mhz)
        if iteration is None:
            raise RuntimeError(f"nothing to do at {now_ms} ms")
        if iteration.prefill_tokens:
            now_ms += case.prefill_ms
        if iteration.tokens > iteration.prefill_tokens:
            now_ms += case.decode_ms
        progress = replica.complete()
        for number in progress.first_token:
            if isinstance(number, int):
                ttft_ms[number] = now_ms - case.arrival_ms[number]
        preemptions += len(progress.preempted)
    return Served(sum(ttft_ms) / len(ttft_ms), ttft_ms, preemptions)


def replayed(case: Case, peer: str) -> Served:
    """The peer's replay of the same."""
    engine = {
        "num_gpu_blocks": case.limits.kv_tokens // BLOCK_TOKENS,
        "max_num_batched_tokens": case.limits.batch_tokens,
        "max_num_seqs": case.limits.batch_requests,
        "timing_model": {"type": "fixed", "prefill_ms": case.prefill_ms, "decode_ms": case.decode_ms},
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.jsonl"
        write_blocks(case, file)
        script = Path(__file__).with_name("dynamo_replay.py")
        command = [peer, str(script), str(file), "1", str(BLOCK_TOKENS), json.dumps(engine)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    summary = json.loads(done.stdout.splitlines()[-1])["summary"]
    if summary["completed_requests"] != len(case.arrival_ms):
        raise RuntimeError(f"{case.name}: the peer completed {summary['completed_requests']} of {len(case.arrival_ms)}")
    return Served(summary["mean_ttft_ms"])


def write_blocks(case: Case, path: Path) -> None:
    """A Mooncake trace in which no two prompts share a block."""
    blocks = 0
    with path.open("w") as lines:
        for at_ms, input_tokens, output_tokens in zip(
            case.arrival_ms, case.input_tokens, case.output_tokens, strict=True
        ):
            count = -(-input_tokens // BLOCK_TOKENS)
            row = {
                "timestamp": at_ms,
                "input_length": input_tokens,
                "output_length": output_tokens,
                "hash_ids": list(range(blocks, blocks + count)),
            }
            blocks += count
            lines.write(json.dumps(row) + "\n")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--peer", help="Python with ai-dynamo-runtime")
    options.add_argument("--requests", type=int, default=20_000)
    wanted = options.parse_args()
    print("| case | requests | formula | wattray | preempted | Dynamo replay | differs by | may differ by |")
    print("|---|---|---|---|---|---|---|---|")
    for case in cases(wanted.requests):
        ours = stepped(case)
        formula = "" if case.formula_ms is None else f"{case.formula_ms:.2f} ms"
        peers = differs = ""
        if wanted.peer:
            theirs = replayed(case, wanted.peer)
            peers, differs = f"{theirs.mean_ttft_ms:.2f} ms", f"{ours.mean_ttft_ms / theirs.mean_ttft_ms - 1:+.3%}"
        print(
            f"| {case.name} | {len(case.arrival_ms):,} | {formula} | {ours.mean_ttft_ms:.2f} ms | {ours.preemptions} "
            f"| {peers} | {differs} | {case.may_differ:.1%} |"
        )


if __name__ == "__main__":
    sys.exit(main())
