"""Reads a real NVIDIA GPU in every way that wattray does and writes what it saw as JSON; sets nothing, ever.

    python benchmarks/gpud/on_real_gpu.py OUT_FOLDER [--seconds 30]

It needs nvidia-ml-py, numpy and torch, no Ray. gpud runs with --dry-run, and the script fails if the lock or limit of
any GPU would have been asked for. Parts: list, watch, doctor, cost of each read, energy of a torch load against the
integral of the driver's 20 ms power samples, and the profiler at the present clock.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import pynvml  # noqa: E402

from actors.gpu.gpud_client import GpudClient, GpudError  # noqa: E402
from actors.gpu.node_findings import node_findings  # noqa: E402
from control_plane.hardware.steady_measurement import integral_j  # noqa: E402
from wattray.profiler import Meter, Plan, RepeatedCall, measure  # noqa: E402

Report = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="Folder for the JSON files.")
    parser.add_argument("--seconds", type=float, default=30.0, help="Length of the energy comparison (30).")
    parser.add_argument("--repeats", type=int, default=3, help="Energy comparisons (3).")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="gpud-") as folder:
        socket, state = Path(folder) / "gpud.sock", Path(folder) / "state"
        gpud = start_gpud(socket, state)
        client = GpudClient(socket)
        try:
            run_parts(given, client, socket)
            keep(given.out, "gpud_process", process_cost(gpud.pid))
        finally:
            gpud.terminate()
            gpud.wait(15)
            audit = (state / "audit.jsonl").read_text().splitlines()
            keep(given.out, "audit", [json.loads(line) for line in audit])
        touched = [line for line in audit if json.loads(line)["event"] in ("set", "would set", "scheduled")]
        if touched:
            sys.exit(f"something was asked to be set, which must not happen here: {touched[:3]}")


def run_parts(given: argparse.Namespace, client: GpudClient, socket: Path) -> None:
    """Each part is written as soon as it is done: what fails later loses nothing."""
    out = given.out
    keep(out, "list", client.read())
    keep(out, "doctor", [asdict(finding) for finding in node_findings(socket)])
    load = torch_load()
    uuid = client.read()["gpus"][load.index]["uuid"]
    keep(out, "watch", watch(client, uuid, load))
    keep(out, "read_costs", read_costs(load.index))
    keep(out, "idle_gpud", idle_cost(client))
    keep(out, "energy", [energy(client, uuid, load, given.seconds) for _ in range(given.repeats)])
    keep(out, "profiler", profiled(client, uuid, load))


def keep(out: Path, name: str, content: object) -> None:
    (out / f"{name}.json").write_text(json.dumps(content, indent=1, default=str) + "\n")
    print(f"{name}: {json.dumps(content, default=str)[:600]}", flush=True)


def start_gpud(socket: Path, state: Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "gpud", "--dry-run", "--socket", str(socket), "--state", str(state)]
    gpud = subprocess.Popen(command, cwd=ROOT)
    until_s = time.monotonic() + 20
    while True:
        try:
            GpudClient(socket).read()
            return gpud
        except GpudError:
            if gpud.poll() is not None or time.monotonic() > until_s:
                sys.exit("gpud does not start")
            time.sleep(0.05)


class TorchLoad:
    """Matrix products on the first CUDA device; ``tokens`` sets the rows of one of them, as in a model's layer."""

    def __init__(self, width: int = 8192) -> None:
        import torch

        self._torch = torch
        self._weights = torch.randn(width, width, device="cuda", dtype=torch.bfloat16)
        self._width = width
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0]
        self.index = int(visible) if visible.isdigit() else 0

    def iteration(self, tokens: int) -> Callable[[], None]:
        torch = self._torch
        rows = torch.randn(tokens, self._width, device="cuda", dtype=torch.bfloat16)

        def iterate() -> None:
            for _ in range(8):
                rows @ self._weights
            torch.cuda.synchronize()

        return iterate


def torch_load() -> TorchLoad:
    return TorchLoad()


def watch(client: GpudClient, uuid: str, load: TorchLoad) -> list[Report]:
    """Five looks at rest and ten under load, as `wattray gpu watch` takes them."""
    looks = [row_of(client, uuid, 0.5) for _ in range(5)]
    with running(load.iteration(4096)):
        looks += [row_of(client, uuid, 0.5) for _ in range(10)]
    for look in looks:
        look.pop("clocks_mhz")
    return looks


def row_of(client: GpudClient, uuid: str, pause_s: float = 0.0) -> Report:
    time.sleep(pause_s)
    row: Report = client.read([uuid], 0.0)["gpus"][0]
    return row


class running:  # noqa: N801
    """Iterates in a thread for as long as the block lasts."""

    def __init__(self, iterate: Callable[[], None]) -> None:
        self._iterate, self._ending = iterate, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._ending.is_set():
            self._iterate()

    def __enter__(self) -> None:
        self._thread.start()
        time.sleep(1.0)

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join(10)


def read_costs(index: int) -> Report:
    """Microseconds of each read, median and worst of a hundred; the energy counter is asked ten times a second."""
    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    calls: dict[str, tuple[Callable[[], object], int, float]] = {
        "clock": (lambda: pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM), 100, 0.0),
        "power_usage": (lambda: pynvml.nvmlDeviceGetPowerUsage(handle), 100, 0.0),
        "power_instant": (lambda: pynvml.nvmlDeviceGetFieldValues(handle, [186]), 100, 0.0),
        "power_average": (lambda: pynvml.nvmlDeviceGetFieldValues(handle, [185]), 100, 0.0),
        "events": (lambda: pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle), 100, 0.0),
        "temperature": (lambda: pynvml.nvmlDeviceGetTemperatureV(handle, pynvml.NVML_TEMPERATURE_GPU), 100, 0.0),
        "utilisation": (lambda: pynvml.nvmlDeviceGetUtilizationRates(handle), 100, 0.0),
        "power_limit": (lambda: pynvml.nvmlDeviceGetPowerManagementLimit(handle), 100, 0.0),
        "mig_mode": (lambda: pynvml.nvmlDeviceGetMigMode(handle), 100, 0.0),
        "processes": (lambda: pynvml.nvmlDeviceGetComputeRunningProcesses(handle), 20, 0.0),
        "energy": (lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle), 40, 0.1),
    }
    costs: Report = {}
    for name, (call, times, pause_s) in calls.items():
        try:
            taken = []
            for _ in range(times):
                began_s = time.perf_counter()
                call()
                taken.append((time.perf_counter() - began_s) * 1e6)
                time.sleep(pause_s)
            costs[name] = {"median_us": statistics.median(taken), "worst_us": max(taken)}
        except pynvml.NVMLError as error:
            costs[name] = {"error": str(error)}
    return costs


class PowerSamples(threading.Thread):
    """The driver's own 20 ms samples of total power, collected before its buffer (2.4 s) is overwritten."""

    def __init__(self, index: int) -> None:
        super().__init__(daemon=True)
        pynvml.nvmlInit()
        self._handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        self.ending = threading.Event()
        self.samples: dict[int, float] = {}
        """Watts by microseconds since the epoch."""

    def run(self) -> None:
        try:
            while not self.ending.wait(0.5):
                self.collect()
        except pynvml.NVMLError as error:
            print(f"the driver keeps no samples ({error}): its instant power is polled", flush=True)
            self._poll()

    def _poll(self) -> None:
        while not self.ending.wait(0.02):
            value = pynvml.nvmlDeviceGetFieldValues(self._handle, [pynvml.NVML_FI_DEV_POWER_INSTANT])[0]
            self.samples[round(time.time() * 1e6)] = value.value.uiVal / 1000

    def collect(self) -> None:
        last = max(self.samples, default=0)
        try:
            _, found = pynvml.nvmlDeviceGetSamples(self._handle, pynvml.NVML_TOTAL_POWER_SAMPLES, last)
        except pynvml.NVMLError_NotFound:
            return  # nothing new
        self.samples.update({int(s.timeStamp): s.sampleValue.uiVal / 1000 for s in found if s.timeStamp > last})


def counted(client: GpudClient, uuid: str) -> tuple[Report, float]:
    """The GPU, and the wall-clock time at which its energy counter was asked."""
    row = row_of(client, uuid)
    return row, time.time() - (time.monotonic() - row["energy"]["read_at_s"])


def energy(client: GpudClient, uuid: str, load: TorchLoad, seconds: float) -> Report:
    """The counter as gpud reads it, against the integral of the 20 ms samples over the same stretch of time."""
    sampler = PowerSamples(load.index)
    with running(load.iteration(4096)):
        sampler.start()
        time.sleep(1.5)
        before, began_s = counted(client, uuid)
        time.sleep(seconds)
        after, ended_s = counted(client, uuid)
        time.sleep(1.5)
        sampler.ending.set()
        sampler.join(10)
    stamps = sorted(stamp for stamp in sampler.samples if began_s <= stamp / 1e6 <= ended_s)
    times_s = [stamp / 1e6 for stamp in stamps]
    watts = [sampler.samples[stamp] for stamp in stamps]
    inside_j = integral_j(times_s, watts)
    # The stretches before the first and after the last sample, at those samples' power.
    sampled_j = inside_j + (times_s[0] - began_s) * watts[0] + (ended_s - times_s[-1]) * watts[-1]
    counted_j = after["energy"]["total_j"] - before["energy"]["total_j"]
    gaps_s = [later - earlier for earlier, later in pairwise(times_s)]
    return {
        "seconds": ended_s - began_s,
        "counter_j": counted_j,
        "sampled_j": sampled_j,
        "ratio": counted_j / sampled_j,
        "samples": len(stamps),
        "median_gap_ms": statistics.median(gaps_s) * 1000,
        "longest_gap_ms": max(gaps_s) * 1000,
        "mean_power_w": counted_j / (ended_s - began_s),
        "source": after["energy"]["source"],
        "meter_against_instant_power": after["energy"]["disagreement_ratio"],
    }


def idle_cost(client: GpudClient, seconds: float = 20.0) -> Report:
    """CPU time of gpud while nobody asks it anything."""
    pid = client.read()["gpud"]["pid"]
    before_s = process_cost(pid)["cpu_s"]
    time.sleep(seconds)
    used = process_cost(pid)
    return {"core_ratio": (used["cpu_s"] - before_s) / seconds, "rss_mib": used["rss_mib"], "seconds": seconds}


def process_cost(pid: int) -> Report:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    status = Path(f"/proc/{pid}/status").read_text()
    rss_kib = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    return {"cpu_s": (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), "rss_mib": rss_kib / 1024}


def profiled(client: GpudClient, uuid: str, load: TorchLoad) -> list[Report]:
    meter, plan = Meter(client, [uuid]), Plan(warmup_s=2.0, settle_s=10.0, window_s=5.0, windows=4)
    return [
        asdict(measure(meter, None, RepeatedCall(tokens, load.iteration(tokens)), plan)) for tokens in (64, 512, 4096)
    ]


if __name__ == "__main__":
    main()
