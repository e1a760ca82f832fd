"""gpud under random requests from many at once: no crash, nothing out of bounds, no two sets at once, all refusals
typed and logged. The long run is part of `make soak`."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_nvml import FakeNvml
from gpud_fuzz import hammer
from gpud_process import GpudProcess, eventually

from actors.gpu.gpud_wire import ErrorKind

LOW, HIGH = 600, 1800


@pytest.fixture
def fake(tmp_path: Path) -> FakeNvml:
    library = FakeNvml(tmp_path, gpus=4)
    for gpu in library.gpus:
        gpu.settle_ns = 2_000_000
        gpu.delays("lock", 2_000)
    return library


@pytest.fixture
def gpud(tmp_path: Path, fake: FakeNvml) -> Iterator[GpudProcess]:
    process = GpudProcess(tmp_path, fake.environ, ("--ttl-max", "30", "--bounds", f"{LOW}:{HIGH}")).start()
    yield process
    process.end()


def survives(gpud: GpudProcess, fake: FakeNvml, threads: int, seconds: float) -> dict[str, int]:
    uuids = [gpu.uuid for gpu in fake.gpus]
    found: list[dict[str, int]] = []
    work = [
        threading.Thread(target=lambda seed=seed: found.append(hammer(gpud.socket, uuids, seconds, seed, 0.02)))
        for seed in range(threads)
    ]
    sets: list[tuple[int, int, int, int]] = []
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    assert len(found) == threads, "a client was not answered"
    assert gpud.process is not None
    assert gpud.process.poll() is None
    assert gpud.client.read()["gpud"]["state"] == "ok"
    for gpu in fake.gpus:
        sets += gpu.history()
        assert gpu.overlaps == 0
    locks = [(low, high) for kind, low, high, _ in sets if kind == 1]
    assert locks
    assert all(low == 345 and LOW <= high <= HIGH for low, high in locks)
    assert all(200_000 <= watts <= 700_000 for kind, watts, _, _ in sets if kind == 3)
    log = (gpud.folder / "gpud.log").read_text()
    assert "Traceback" not in log, log[-3000:]
    counts: dict[str, int] = {}
    for part in found:
        for kind, times in part.items():
            counts[kind] = counts.get(kind, 0) + times
    assert counts.keys() <= {*ErrorKind, "ok", "garbage", "cut off"}
    refused = sum(times for kind, times in counts.items() if kind in set(ErrorKind))
    logged = sum(len(row.get("refused", [0])) for row in gpud.audit() if row["event"] == "refused")
    assert logged >= refused
    return counts


def test_random_requests_from_many_at_once_do_no_harm(gpud: GpudProcess, fake: FakeNvml) -> None:
    counts = survives(gpud, fake, threads=4, seconds=2.0)
    assert {"ok", "out_of_bounds", "bad_request", "leased", "garbage"} <= counts.keys()
    gpud.end()
    assert [gpu.lock_high for gpu in fake.gpus] == [0] * 4
    assert [gpu.limit_mw for gpu in fake.gpus] == [700_000] * 4


@pytest.mark.soak
def test_eight_threads_of_random_requests_for_a_minute_do_no_harm(gpud: GpudProcess, fake: FakeNvml) -> None:
    counts = survives(gpud, fake, threads=8, seconds=60.0)
    print("\n8 threads for 60 s:", dict(sorted(counts.items())))
    gpud.end()
    eventually(lambda: [gpu.lock_high for gpu in fake.gpus] == [0] * 4)
