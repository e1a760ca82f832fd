"""A request log as an operator has one: the length mix of Azure's 2023 conversation hour, nights and weekends
quieter than days, three teams, and column names of its own (ts, team, prompt_tokens, completion_tokens).

    python benchmarks/simulator/month_log.py --requests 4000000 --days 30 -o month.csv
"""

import argparse
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

from control_plane.hardware.replica_model import PS_PER_S
from control_plane.simulation.synthetic import CONVERSATION_RPS, synthetic_trace

TEAMS = ("search", "support", "research")
STARTS = np.datetime64("2024-05-01T00:00:00", "ms")


def write_log(path: Path, requests: int, days: float, seed: int = 0) -> None:
    """About ``requests`` requests over ``days`` days from Wednesday, 1 May 2024, 0 h UTC, in order of arrival."""
    hours = days * 24
    trace = synthetic_trace("conv", hours, requests / (CONVERSATION_RPS * 3600 * hours), seed)
    # The same arrivals on a clock that runs with the load: at 14 h three times that of 2 h, on weekends half.
    at_h = np.linspace(0, hours, int(hours * 60) + 1)
    weekend = (at_h // 24 + 2) % 7 >= 5
    load = (1 - 0.5 * np.cos((at_h - 2) / 12 * np.pi)) * np.where(weekend, 0.5, 1.0)
    done = np.concatenate(([0.0], np.cumsum((load[1:] + load[:-1]) / 2)))
    arrival_h = np.interp(trace.arrival_ps / (hours * 3600 * PS_PER_S) * done[-1], done, at_h)
    random = np.random.default_rng(seed)
    team = random.choice(len(TEAMS), len(trace), p=(0.5, 0.3, 0.2)).astype(np.int8)
    table = pa.table(
        {
            "ts": pa.array(STARTS + (arrival_h * 3.6e6).astype("timedelta64[ms]")),
            "team": pa.DictionaryArray.from_arrays(pa.array(team), list(TEAMS)).cast(pa.string()),
            "prompt_tokens": trace.input_tokens,
            "completion_tokens": trace.output_tokens,
        }
    )
    pyarrow.csv.write_csv(table, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=4_000_000)
    parser.add_argument("--days", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--out", type=Path, required=True)
    asked = parser.parse_args()
    write_log(asked.out, asked.requests, asked.days, asked.seed)


if __name__ == "__main__":
    main()
