"""gpud as its clients see it: leases, bounds, read-back, refusals, on GPUs of the fake driver library."""

import math
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pynvml
import pytest
from fake_nvml import FOREVER_US, FakeNvml
from gpud_process import GpudProcess, eventually

from actors.gpu.gpud_client import GpudClient, GpudError
from control_plane.leases import Hold

BOUNDS = ("--bounds", "600:1980", "--ttl-max", "30")


class Node:
    """A gpud over five GPUs, shared by this module's tests; each finds it with nothing leased and nothing wrong."""

    def __init__(self, folder: Path) -> None:
        self.fake = FakeNvml(folder, gpus=5)
        self.gpud = GpudProcess(folder, self.fake.environ, BOUNDS).start()
        self.client = self.gpud.client
        self.a, self.b, self.c, self.d, self.e = (gpu.uuid for gpu in self.fake.gpus)

    def fresh(self) -> None:
        for gpu in self.fake.gpus:
            gpu.works()
            gpu.idle = gpu.mig = gpu.extra_reasons = 0
        eventually(lambda: all(row["state"] in ("ok", "watched only") for row in self.gpud.rows().values()))
        self.client.reset(None)
        eventually(lambda: not any(row["owes_a_reset"] for row in self.gpud.rows().values()))
        time.sleep(0.025)  # the clocks settle


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    node = Node(tmp_path_factory.mktemp("gpud"))
    yield node
    assert node.gpud.end() == 0


@pytest.fixture
def node(running: Node) -> Node:
    running.fresh()
    return running


def test_a_lock_is_set_read_back_and_lapses(node: Node) -> None:
    answer = node.client.lock("pool", {node.a: Hold(1203)}, 0.6)
    assert answer.granted[node.a] == {"max_mhz": 1200, "power_w": None, "verdict": "held", "runs_mhz": 1200}
    began_s = time.monotonic()
    eventually(lambda: node.fake.gpu(0).lock_high == 0, 3)
    assert 0.3 < time.monotonic() - began_s < 1.6
    assert [row["event"] for row in node.gpud.audit()[-3:]] == ["read back", "lapsed", "set"]


def test_a_hundred_equal_locks_are_one_driver_call(node: Node) -> None:
    before = node.fake.gpu(0).lock_calls
    for _ in range(100):
        node.client.lock("pool", {node.a: Hold(1200)}, 5)
    assert node.fake.gpu(0).lock_calls == before + 1


def test_one_owner_per_gpu_and_what_an_owner_no_longer_names_is_let_go(node: Node) -> None:
    node.client.lock("pool", {node.a: Hold(1200), node.b: Hold(990)}, 5)
    refused = node.client.lock("job", {node.a: Hold(800)}, 5).refused[node.a]
    assert (refused.kind, refused.message) == ("leased", f"GPU {node.a}: leased to pool")
    node.client.lock("pool", {node.b: Hold(990)}, 5, only=True)
    eventually(lambda: node.fake.gpu(0).lock_high == 0)
    assert node.fake.gpu(1).lock_high == 990


def test_power_is_limited_beside_the_clock_and_goes_back_to_what_it_was(node: Node) -> None:
    node.fake.gpu(0).limit_mw = 650_000
    node.client.lock("pool", {node.a: Hold(1200)}, 5)
    node.client.ask({"op": "limit_power", "owner": "pool", "ttl_s": 5, "gpus": {node.a: {"power_w": 400}}})
    assert (node.fake.gpu(0).limit_mw, node.fake.gpu(0).lock_high) == (400_000, 1200)
    node.client.reset("pool")
    assert (node.fake.gpu(0).limit_mw, node.fake.gpu(0).lock_high) == (650_000, 0)
    node.fake.gpu(0).limit_mw = 700_000


def test_a_lower_epoch_is_refused(node: Node) -> None:
    node.client.lock("manager", {node.a: Hold(1200)}, 5, epoch=7)
    with pytest.raises(GpudError, match="epoch 7 has replaced it") as refused:
        node.client.lock("manager", {node.a: Hold(990)}, 5, epoch=6)
    assert refused.value.kind == "stale_epoch"
    with pytest.raises(GpudError, match="epoch 7"):
        node.client.set("manager", {node.a: 990}, epoch=1)
    assert node.fake.gpu(0).lock_high == 1200


BAD = [
    ({"max_mhz": 344}, "out_of_bounds"),
    ({"max_mhz": 1981}, "out_of_bounds"),
    ({"max_mhz": 599}, "out_of_bounds"),
    ({"max_mhz": -1}, "out_of_bounds"),
    ({"max_mhz": 1200.5}, "out_of_bounds"),
    ({"max_mhz": 1e300}, "out_of_bounds"),
    ({"max_mhz": "1200"}, "bad_request"),
    ({"max_mhz": True}, "bad_request"),
    ({"power_w": 100}, "out_of_bounds"),
    ({"power_w": 9000}, "out_of_bounds"),
    ({"nonsense": 1}, "bad_request"),
]


@pytest.mark.parametrize(("hold", "kind"), BAD)
def test_what_is_no_clock_or_no_power_never_reaches_the_driver(node: Node, hold: dict[str, object], kind: str) -> None:
    before = node.fake.gpu(0).sets
    request = {"op": "lock", "owner": "pool", "ttl_s": 5, "gpus": {node.a: hold}}
    try:
        found = node.client.ask(request)["refused"][node.a]["kind"]
    except GpudError as error:
        found = error.kind
    assert (found, node.fake.gpu(0).sets) == (kind, before)
    assert node.gpud.audit()[-1]["event"] == "refused"


@pytest.mark.parametrize("ttl_s", [0, -1, 30.1, 1e9])
def test_a_lease_is_no_longer_than_the_operator_allows(node: Node, ttl_s: float) -> None:
    with pytest.raises(GpudError) as refused:
        node.client.lock("pool", {node.a: Hold(1200)}, ttl_s)
    assert refused.value.kind == "out_of_bounds"


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity"])
def test_not_a_number_is_refused(node: Node, text: str) -> None:
    line = f'{{"op": "lock", "owner": "pool", "ttl_s": {text}, "gpus": {{"{node.a}": {{"max_mhz": 1200}}}}}}\n'
    assert b'"bad_request"' in said(node.client.path, line.encode())


def said(path: Path, line: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as raw:
        raw.connect(str(path))
        raw.sendall(line)
        return raw.recv(65536)


def test_an_inverted_range_and_a_clock_outside_the_leased_range_are_refused(node: Node) -> None:
    with pytest.raises(GpudError, match="1500 MHz is above 990 MHz"):
        node.client.schedule("job", [node.a], 5, clocks_mhz=(1500, 990))
    node.client.schedule("job", [node.a], 5, clocks_mhz=(990, 1500))
    assert node.client.set("job", {node.a: 1200}).granted[node.a]["max_mhz"] == 1200
    for mhz in (975, 1515):
        assert node.client.set("job", {node.a: mhz}).refused[node.a].kind == "out_of_bounds"
    assert node.fake.gpu(0).lock_high == 1200


def test_a_schedule_lease_sets_often_and_a_held_clock_excludes_it(node: Node) -> None:
    node.client.schedule("job", [node.a, node.b], 5)
    for mhz in (1500, 1200, 990, None, 1305):
        assert node.client.set("job", {node.a: mhz, node.b: mhz}).refused == {}
        assert node.fake.gpu(0).lock_high == (mhz or 0)
    assert node.client.lock("pool", {node.a: Hold(1200)}, 5).refused[node.a].kind == "leased"
    assert node.client.set("pool", {node.a: 1200}).refused[node.a].kind == "leased"
    node.client.lock("pool", {node.c: Hold(1200)}, 5)
    assert node.client.schedule("job", [node.a, node.c], 5).refused.keys() == {node.c}
    node.client.reset("job")
    eventually(lambda: node.fake.gpu(0).lock_high == 0)


def test_a_schedule_that_nobody_renews_ends_at_full_clock(node: Node) -> None:
    node.client.schedule("job", [node.a], 0.5)
    node.client.set("job", {node.a: 990})
    eventually(lambda: node.fake.gpu(0).lock_high == 0, 2)
    assert node.client.set("job", {node.a: 990}).refused[node.a].kind == "leased"


def test_more_sets_than_a_gpu_can_take_are_refused(node: Node) -> None:
    node.client.schedule("job", [node.e], 5)
    answers = [node.client.set("job", {node.e: 990 + 15 * (number % 2)}) for number in range(70)]
    refused = [answer.refused[node.e].kind for answer in answers if answer.refused]
    assert refused
    assert set(refused) == {"rate"}


def test_a_stuck_clock_is_reported_and_tried_again(node: Node) -> None:
    node.fake.gpu(0).stuck = 1
    answer = node.client.lock("pool", {node.a: Hold(1200)}, 8)
    assert answer.granted[node.a]["verdict"] == "stuck"
    assert answer.granted[node.a]["runs_mhz"] == 1980
    calls = node.fake.gpu(0).lock_calls
    eventually(lambda: node.fake.gpu(0).lock_calls > calls, 5)
    node.fake.gpu(0).stuck = 0
    eventually(lambda: node.gpud.rows()[node.a]["verdict"] == "held", 5)


def test_a_power_capped_gpu_is_capped_and_an_idle_one_unverifiable(node: Node) -> None:
    node.fake.gpu(0).cap_mhz = 900
    node.fake.gpu(1).idle = 1
    verdicts = node.client.lock("pool", {node.a: Hold(1200), node.b: Hold(1200)}, 5).granted
    assert (verdicts[node.a]["verdict"], verdicts[node.b]["verdict"]) == ("capped", "unverifiable")


def test_somebody_elses_set_is_found_and_set_again(node: Node) -> None:
    node.client.lock("pool", {node.a: Hold(1200)}, 10)
    node.fake.gpu(0).lock_high = 0
    eventually(lambda: node.fake.gpu(0).lock_high == 1200, 5)


def test_a_lost_gpu_is_dropped_and_the_others_stay_controlled(node: Node) -> None:
    node.client.lock("pool", {node.a: Hold(1200), node.b: Hold(1200)}, 20)
    node.fake.gpu(0).lost = 1
    rows = node.gpud.rows()
    assert (rows[node.a]["state"], rows[node.a]["clock_mhz"], rows[node.b]["state"]) == ("lost", None, "ok")
    answer = node.client.lock("pool", {node.a: Hold(990), node.b: Hold(990)}, 20)
    assert (answer.refused[node.a].kind, answer.granted[node.b]["verdict"]) == ("lost", "held")
    assert node.client.read()["gpud"]["state"] == "degraded"


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (pynvml.NVML_ERROR_NO_PERMISSION, "permission"),
        (pynvml.NVML_ERROR_NOT_SUPPORTED, "not_supported"),
        (pynvml.NVML_ERROR_FUNCTION_NOT_FOUND, "not_supported"),
        (pynvml.NVML_ERROR_UNKNOWN, "busy"),
        (pynvml.NVML_ERROR_TIMEOUT, "busy"),
        (pynvml.NVML_ERROR_CORRUPTED_INFOROM, "driver"),
    ],
)
def test_a_set_that_the_driver_refuses_is_refused_with_its_kind(node: Node, code: int, kind: str) -> None:
    # A GPU that once said that it cannot lock clocks is not asked again, so it is one of its own.
    place, uuid = (4, node.e) if kind == "not_supported" else (3, node.d)
    node.fake.gpu(place).fails("lock", code)
    answer = node.client.lock("pool", {uuid: Hold(1200), node.b: Hold(1200)}, 5)
    assert (answer.refused[uuid].kind, answer.granted[node.b]["verdict"]) == (kind, "held")
    if kind == "permission":
        node.client.lock("pool", {uuid: Hold(1200)}, 5)
        assert node.gpud.rows()[uuid]["state"] == "watched only"
        assert (node.gpud.folder / "gpud.log").read_text().count("only watched from now on") == 1
        assert node.gpud.rows()[uuid]["power_w"] > 0


def test_a_mig_gpu_is_refused(node: Node) -> None:
    node.fake.gpu(0).mig = 1
    node.gpud.rows()
    assert node.client.lock("pool", {node.a: Hold(1200)}, 5).refused[node.a].kind == "not_ours"
    assert node.fake.gpu(0).lock_high == 0


def test_a_hang_on_one_gpu_delays_no_other(node: Node) -> None:
    node.fake.gpu(0).delays("lock", 5_000_000)
    mine, other = GpudClient(node.client.path), GpudClient(node.client.path)
    hung = said_later(mine, node.a)
    time.sleep(0.2)
    took_s = []
    for number in range(20):
        began_s = time.monotonic()
        assert other.lock("pool", {node.b: Hold(990 + 15 * (number % 2))}, 5).granted[node.b]["verdict"] == "held"
        took_s.append(time.monotonic() - began_s)
    assert max(took_s) < 0.5  # 20 ms of settling each; the benchmark has the figures
    node.fake.gpu(0).delays("lock", 0)
    assert hung.result(10).granted[node.a]["verdict"] == "held"


def said_later(client: GpudClient, uuid: str):  # type: ignore[no-untyped-def]
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(1).submit(client.lock, "pool-0", {uuid: Hold(1200)}, 20)


def test_a_hung_driver_is_said_within_seconds_and_the_gpu_is_brought_up_to_date_when_it_answers(node: Node) -> None:
    node.fake.gpu(2).delays("lock", FOREVER_US)
    began_s = time.monotonic()
    assert node.client.lock("pool", {node.c: Hold(1200)}, 4).refused[node.c].kind == "busy"
    assert time.monotonic() - began_s < 3
    assert node.client.lock("pool", {node.c: Hold(990)}, 4).refused[node.c].kind == "busy"
    assert node.gpud.rows()[node.c]["state"] == "silent"
    assert node.client.lock("pool", {node.b: Hold(990)}, 4).granted[node.b]["verdict"] == "held"
    node.fake.gpu(2).delays("lock", 0)
    eventually(lambda: node.fake.gpu(2).lock_high == 0 and not node.gpud.rows()[node.c]["owes_a_reset"], 8)


def test_a_counter_that_restarts_or_freezes_never_gives_negative_or_no_energy(node: Node) -> None:
    def energy() -> dict[str, float]:
        row: dict[str, float] = node.gpud.rows()[node.a]["energy"]
        return row

    first = energy()
    node.fake.gpu(0).energy_base_mj = 0
    node.fake.gpu(0).energy_from_ns = time.monotonic_ns()
    time.sleep(0.3)
    second = energy()
    assert second["epoch"] == first["epoch"] + 1
    assert second["total_j"] >= first["total_j"]
    node.fake.gpu(0).energy_frozen = 1
    time.sleep(0.12)
    energy()
    time.sleep(2.2)
    frozen = energy()
    assert frozen["source"] == "power"
    assert frozen["total_j"] > second["total_j"] + 500


def test_readings_have_an_age_and_the_newest_is_asked_for(node: Node) -> None:
    node.client.read(max_age_s=0.0)
    time.sleep(0.3)
    old = node.client.read(max_age_s=60.0)["gpus"][0]
    assert old["age_s"] >= 0.3
    assert node.client.read(max_age_s=0.1)["gpus"][0]["age_s"] < 0.1


def test_an_operator_may_reset_a_gpu_that_somebody_else_locked_by_naming_it_only(node: Node) -> None:
    node.fake.gpu(1).lock_high = 800
    node.client.reset(None)
    assert node.fake.gpu(1).lock_high == 800
    node.client.reset(None, [node.b])
    assert node.fake.gpu(1).lock_high == 0


def test_a_gpu_that_is_not_there_is_refused(node: Node) -> None:
    assert node.client.lock("pool", {"GPU-none": Hold(1200)}, 5).refused["GPU-none"].kind == "no_such_gpu"
    assert node.client.reset(None, ["GPU-none"]).refused["GPU-none"].kind == "no_such_gpu"


def test_the_socket_is_closed_to_others_and_the_state_too(node: Node) -> None:
    assert node.client.path.stat().st_mode & 0o777 == 0o600
    assert (node.gpud.state).stat().st_mode & 0o077 == 0


def test_nothing_was_ever_set_out_of_bounds_and_no_two_sets_overlapped(running: Node) -> None:
    for gpu in running.fake.gpus:
        assert gpu.overlaps == 0
        assert all(600 <= high <= 1980 and low == 345 for kind, low, high, _ in gpu.history() if kind == 1)
        assert all(math.isfinite(high) for _, _, high, _ in gpu.history())
    assert os.getpid() in {line.get("pid") for line in running.gpud.audit()}
