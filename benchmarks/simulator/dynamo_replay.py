"""NVIDIA Dynamo's offline replay of a Mooncake file on so many workers; runs in the peer's own environment and prints
JSON: CPU seconds of the replay alone, and the summary of its report.

    PEER_PYTHON dynamo_replay.py TRACE.jsonl WORKERS BLOCK_SIZE [ENGINE_ARGUMENTS_AS_JSON]
"""

import json
import sys
import time
from typing import Any

from dynamo._core import run_mocker_trace_replay


def main(trace_file: str, workers: int, block_size: int, engine_arguments: dict[str, Any]) -> None:
    engine = {
        "block_size": block_size,
        "max_num_batched_tokens": 2048,
        "max_num_seqs": 256,
        "enable_prefix_caching": False,
        "enable_chunked_prefill": True,
        **engine_arguments,
    }
    start_s = time.process_time()
    result = run_mocker_trace_replay(
        [trace_file],
        extra_engine_args={"engine": engine},
        num_workers=workers,
        router_mode="round_robin",
        trace_block_size=block_size,
        capture_planner_details=False,
    )
    cpu_s = time.process_time() - start_s
    print(json.dumps({"cpu_s": cpu_s, "summary": dict(result.summary)}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4]) if len(sys.argv) > 4 else {})
