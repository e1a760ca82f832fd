"""How quick gpud is, on eight GPUs of the fake driver library: what it adds to the driver's own time.

    python benchmarks/gpud/latency.py [--out FILE.json] [--driver-ms 10] [--settle-ms 20]

The driver's own share is known exactly, because the library is ours: each set takes ``--driver-ms``, a clock settles
after ``--settle-ms``. Figures are gpud's, the socket's and this client's share on top of that. Needs a C compiler.
"""

import argparse
import json
import os
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from fake_nvml import FakeNvml  # noqa: E402
from gpud_process import GpudProcess  # noqa: E402

from actors.gpu.gpud_client import GpudClient  # noqa: E402
from control_plane.leases import Hold  # noqa: E402

GPUS = 8
Report = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--driver-ms", type=float, default=10.0)
    parser.add_argument("--settle-ms", type=float, default=20.0)
    parser.add_argument("--realtime", action="store_true", help="Real-time priority: not the host's other processes.")
    given = parser.parse_args()
    if given.realtime:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))
    with tempfile.TemporaryDirectory() as folder:
        fake = FakeNvml(Path(folder), gpus=GPUS)
        for gpu in fake.gpus:
            gpu.settle_ns = round(given.settle_ms * 1e6)
            gpu.delays("lock", round(given.driver_ms * 1000))
        gpud = GpudProcess(Path(folder), fake.environ, ("--ttl-max", "60")).start()
        try:
            report = {
                "realtime": given.realtime,
                "load_average": os.getloadavg(),
                "echo_of_two_processes": echo(),
                "driver_ms": given.driver_ms,
                "settle_ms": given.settle_ms,
                "idle": idle(gpud),
                "lock_to_verified_read_back": lock(gpud, fake, given.driver_ms + given.settle_ms),
                "hang": hang(gpud, fake, given.driver_ms + given.settle_ms),
                "scheduled_set": scheduled(gpud, fake, given.driver_ms),
                "eight_gpus_at_five_sets_a_second": steady(gpud, fake),
                "overlapping_sets": sum(gpu.overlaps for gpu in fake.gpus),
            }
        finally:
            gpud.end()
    text = json.dumps(report, indent=1)
    print(text)
    if given.out:
        given.out.write_text(text + "\n")


def spread(milliseconds: list[float]) -> Report:
    ordered = sorted(milliseconds)
    p99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    return {"count": len(ordered), "median_ms": statistics.median(ordered), "p99_ms": p99, "worst_ms": ordered[-1]}


def taken_ms(call: Callable[[], object]) -> float:
    began_s = time.perf_counter()
    call()
    return (time.perf_counter() - began_s) * 1000


def lock(gpud: GpudProcess, fake: FakeNvml, own_ms: float, times: int = 300) -> Report:
    """A new target every time, read back; less the driver's call and the clock's settling. The first lock of a lease
    also writes and syncs its record."""
    uuid, client, over = fake.gpu(0).uuid, gpud.client, []
    first_ms = taken_ms(lambda: client.lock("bench", {uuid: Hold(990)}, 30)) - own_ms
    for number in range(times):
        mhz = (1200, 1500)[number % 2]
        over.append(taken_ms(lambda mhz=mhz: client.lock("bench", {uuid: Hold(mhz)}, 30)) - own_ms)  # type: ignore[misc]
    client.reset("bench")
    return {"beyond_the_driver": spread(over), "first_of_a_lease_ms": first_ms}


def hang(gpud: GpudProcess, fake: FakeNvml, own_ms: float) -> Report:
    """Locks on one GPU while the driver hangs for 5 s on another."""
    fake.gpu(1).delays("lock", 5_000_000)
    hung = GpudClient(gpud.socket)
    waiting = threading.Thread(target=lambda: hung.lock("hung", {fake.gpu(1).uuid: Hold(990)}, 30))
    waiting.start()
    time.sleep(0.05)
    began_s, over, number = time.monotonic(), [], 0
    while time.monotonic() - began_s < 4.8:
        number += 1
        hold = {fake.gpu(2).uuid: Hold((1200, 1500)[number % 2])}
        over.append(taken_ms(lambda hold=hold: gpud.client.lock("bench", hold, 30)) - own_ms)  # type: ignore[misc]
    waiting.join()
    fake.gpu(1).delays("lock", round(own_ms))
    time.sleep(1.0)
    gpud.client.reset(None)
    return {"beyond_the_driver": spread(over)}


def scheduled(gpud: GpudProcess, fake: FakeNvml, driver_ms: float, times: int = 1000) -> Report:
    """Sets under a schedule lease on one GPU, 40 a second; less the driver's own call, as gpud measured each."""
    uuid, client, taken, until_set = fake.gpu(3).uuid, gpud.client, [], []
    client.schedule("bench", [uuid], 60)
    audited = len(gpud.audit())
    for number in range(times):
        mhz = (1200, 1500)[number % 2]
        asked_ns = time.monotonic_ns()
        taken.append(taken_ms(lambda mhz=mhz: client.set("bench", {uuid: mhz})))  # type: ignore[misc]
        until_set.append((fake.gpu(3).history()[-1][3] - asked_ns) / 1e6)
        time.sleep(max(0.0, 0.025 - driver_ms / 1000))
        if number % 400 == 0:
            client.schedule("bench", [uuid], 60)
    sets = [row for row in gpud.audit()[audited:] if row["event"] == "set"]
    client.reset("bench")
    # A call of the driver lasts as long as it was told to and as the operating system's sleep takes longer.
    driver = [row["driver_ms"] for row in sets]
    over = [all_ms - own_ms for all_ms, own_ms in zip(taken, driver, strict=True)]
    before = [set_ms - own_ms for set_ms, own_ms in zip(until_set, driver, strict=True)]
    return {"until_it_is_set": spread(before), "until_the_answer": spread(over), "driver": spread(driver)}


def steady(gpud: GpudProcess, fake: FakeNvml, seconds: float = 10.0) -> Report:
    """One client per GPU, five sets a second each; what was refused or late, and what gpud used."""
    late_ms: list[float] = []
    refused: list[str] = []

    def drive(uuid: str, number: int) -> None:
        client, owner = GpudClient(gpud.socket), f"rank{number}"
        client.schedule(owner, [uuid], 60)
        began_s = time.monotonic() + 0.2
        for beat in range(round(5 * seconds)):
            due_s = began_s + beat / 5
            time.sleep(max(0.0, due_s - time.monotonic()))
            answer = client.set(owner, {uuid: (1200, 1500)[beat % 2]})
            late_ms.append((time.monotonic() - due_s) * 1000)
            refused.extend(refusal.message for refusal in answer.refused.values())
        client.reset(owner)

    before = cpu_s(gpud)
    workers = [threading.Thread(target=drive, args=(gpu.uuid, number)) for number, gpu in enumerate(fake.gpus)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    core_ratio = (cpu_s(gpud) - before) / seconds
    return {"sets": len(late_ms), "refused": len(refused), "from_due_to_set": spread(late_ms), "core_ratio": core_ratio}


def echo(times: int = 500) -> Report:
    """What a question and an answer between two processes cost on this host now, without gpud."""
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        ours.close()
        while piece := theirs.recv(100):
            theirs.sendall(piece)
        os._exit(0)
    theirs.close()

    def ask() -> None:
        ours.sendall(b"x" * 80)
        ours.recv(100)

    taken = []
    for _ in range(times):
        taken.append(taken_ms(ask))
        time.sleep(0.01)
    ours.close()
    os.waitpid(child, 0)
    return spread(taken)


def idle(gpud: GpudProcess, seconds: float = 30.0) -> Report:
    """Nobody asks anything."""
    time.sleep(1.0)
    before = cpu_s(gpud)
    time.sleep(seconds)
    assert gpud.process is not None
    status = Path(f"/proc/{gpud.process.pid}/status").read_text()
    rss_kib = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    return {"core_ratio": (cpu_s(gpud) - before) / seconds, "rss_mib": rss_kib / 1024}


def cpu_s(gpud: GpudProcess) -> float:
    assert gpud.process is not None
    fields = Path(f"/proc/{gpud.process.pid}/schedstat").read_text().split()
    tasks = Path(f"/proc/{gpud.process.pid}/task")
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks.iterdir()) / 1e9 if fields else 0.0


if __name__ == "__main__":
    main()
