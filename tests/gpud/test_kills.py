"""Whatever ends, and however: clocks go back to full, and GPUs that are not ours are never touched."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pynvml
import pytest
from fake_nvml import FakeNvml
from gpud_process import GpudProcess, eventually
from tests_support import ROOT

from control_plane.leases import Hold

TTL_S = 0.6


@pytest.fixture
def fake(tmp_path: Path) -> FakeNvml:
    library = FakeNvml(tmp_path, gpus=3)
    library.gpu(2).lock_high = 777  # somebody else's
    return library


@pytest.fixture
def gpud(tmp_path: Path, fake: FakeNvml) -> Iterator[GpudProcess]:
    process = GpudProcess(tmp_path, fake.environ, ("--ttl-max", "30", "--rescan", "0.2")).start()
    yield process
    process.end()
    assert fake.gpu(2).lock_high == 777
    assert fake.gpu(2).sets == 0


def locks(fake: FakeNvml) -> list[int]:
    return [fake.gpu(0).lock_high, fake.gpu(1).lock_high]


def test_a_killed_gpud_leaves_clocks_locked_and_the_next_one_undoes_just_that(
    gpud: GpudProcess, fake: FakeNvml
) -> None:
    uuid, other, _ = (gpu.uuid for gpu in fake.gpus)
    gpud.client.lock("pool", {uuid: Hold(1200, 400.0)}, 30)
    gpud.client.schedule("job", [other], 30)
    gpud.client.set("job", {other: 990})
    gpud.kill()
    assert locks(fake) == [1200, 990]
    gpud.start()
    eventually(lambda: locks(fake) == [0, 0], TTL_S + 1)
    assert fake.gpu(0).limit_mw == 700_000
    eventually(lambda: list((gpud.state / "leases").glob("*.json")) == [])
    assert {row["gpu"] for row in gpud.audit() if row["event"] == "found"} == {uuid, other}


def test_a_stopped_gpud_resets_what_lapsed_as_soon_as_it_goes_on(gpud: GpudProcess, fake: FakeNvml) -> None:
    gpud.client.lock("pool", {fake.gpu(0).uuid: Hold(1200)}, TTL_S)
    gpud.signal(signal.SIGSTOP)
    time.sleep(2 * TTL_S)
    assert locks(fake) == [1200, 0]
    gpud.signal(signal.SIGCONT)
    began_s = time.monotonic()
    eventually(lambda: locks(fake) == [0, 0])
    assert time.monotonic() - began_s < 1


CLIENT = """
import sys, time
from pathlib import Path
from actors.gpu.gpud_client import GpudClient
from control_plane.leases import Hold
client = GpudClient(Path(sys.argv[1]))
while True:
    client.lock("client", {sys.argv[2]: Hold(1200)}, 0.6)
    print("held", flush=True)
    time.sleep(0.2)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_client_that_is_killed_or_stopped_loses_its_lease_within_the_ttl(
    gpud: GpudProcess, fake: FakeNvml, number: signal.Signals
) -> None:
    command = [sys.executable, "-c", CLIENT, str(gpud.socket), fake.gpu(0).uuid]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as client:
        assert client.stdout is not None
        client.stdout.readline()
        time.sleep(0.9)
        assert locks(fake)[0] == 1200
        client.send_signal(number)
        began_s = time.monotonic()
        eventually(lambda: locks(fake)[0] == 0)
        assert time.monotonic() - began_s < TTL_S + 1
        client.kill()


def test_a_terminated_gpud_leaves_nothing_set(gpud: GpudProcess, fake: FakeNvml) -> None:
    gpud.client.lock("pool", {fake.gpu(0).uuid: Hold(1200, 400.0)}, 30)
    assert gpud.end() == 0
    assert (locks(fake), fake.gpu(0).limit_mw) == ([0, 0], 700_000)
    assert not gpud.socket.exists()


def test_a_gpud_that_ends_grants_nothing_more(gpud: GpudProcess, fake: FakeNvml) -> None:
    """Clients ask on while it undoes what is set."""
    uuid, other = fake.gpu(0).uuid, fake.gpu(1).uuid
    gpud.client.lock("pool", {uuid: Hold(1200)}, 30)
    fake.gpu(0).delays("reset", 500_000)
    gpud.signal(signal.SIGTERM)
    time.sleep(0.2)
    assert gpud.client.lock("job", {other: Hold(1200)}, 30).refused[other].kind == "busy"
    assert gpud.end() == 0
    assert locks(fake) == [0, 0]
    assert [row["event"] for row in gpud.audit()[-2:]] == ["set", "ended"]


def test_what_a_killed_gpud_left_can_be_undone_without_serving(gpud: GpudProcess, fake: FakeNvml) -> None:
    gpud.client.lock("pool", {fake.gpu(0).uuid: Hold(1200)}, 30)
    gpud.kill()
    command = [sys.executable, "-m", "gpud", "--state", str(gpud.state), "--restore-only"]
    environ = {**os.environ, **fake.environ}
    assert subprocess.run(command, cwd=ROOT, env=environ, timeout=20, capture_output=True).returncode == 0
    assert locks(fake) == [0, 0]


def test_the_record_is_on_disk_before_the_first_set(gpud: GpudProcess, fake: FakeNvml) -> None:
    fake.gpu(0).delays("lock", 500_000)
    uuid = fake.gpu(0).uuid
    gpud.client.schedule("job", [uuid], 30)
    record = gpud.state / "leases" / f"{uuid}.json"
    told = json.loads(record.read_text())
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert (told["uuid"], told["owner"], told["boot_id"], told["clock"]) == (uuid, "job", boot, True)
    assert fake.gpu(0).sets == 0


def test_a_record_of_another_boot_is_forgotten_and_a_torn_one_counts(gpud: GpudProcess, fake: FakeNvml) -> None:
    first, second, _ = (gpu.uuid for gpu in fake.gpus)
    gpud.client.lock("pool", {first: Hold(1200), second: Hold(1200)}, 30)
    gpud.kill()
    record = gpud.state / "leases" / f"{first}.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "boot_id": "another"}))
    (gpud.state / "leases" / f"{second}.json").write_text('{"uuid": "GPU-')
    gpud.start()
    eventually(lambda: locks(fake)[1] == 0)
    assert locks(fake)[0] == 1200  # in this world the boot that must have reset it did not take place
    fake.gpu(0).lock_high = 0


def test_a_reset_that_fails_is_tried_until_it_succeeds(gpud: GpudProcess, fake: FakeNvml) -> None:
    gpud.client.lock("pool", {fake.gpu(0).uuid: Hold(1200)}, 30)
    fake.gpu(0).fails("reset", pynvml.NVML_ERROR_UNKNOWN)
    gpud.kill()
    gpud.start()
    time.sleep(0.3)
    assert locks(fake)[0] == 1200
    assert gpud.rows()[fake.gpu(0).uuid]["owes_a_reset"]
    fake.gpu(0).works()
    eventually(lambda: locks(fake)[0] == 0)


def test_a_driver_that_comes_later_is_found(tmp_path: Path, fake: FakeNvml) -> None:
    fake.state.init_error = pynvml.NVML_ERROR_DRIVER_NOT_LOADED
    gpud = GpudProcess(tmp_path, fake.environ, ("--rescan", "0.1")).start()
    told = gpud.client.read()
    assert (told["gpus"], told["gpud"]["state"]) == ([], "no gpu")
    fake.state.init_error = 0
    eventually(lambda: len(gpud.rows()) == 3)
    gpud.end()
    assert (tmp_path / "gpud.log").read_text().count("no GPU:") == 1


def test_gpus_that_vanish_and_come_back_under_another_index_keep_their_leases(
    gpud: GpudProcess, fake: FakeNvml
) -> None:
    first, second = fake.gpu(0).uuid, fake.gpu(1).uuid
    fake.state.count = 1
    eventually(lambda: gpud.rows()[second]["state"] == "lost")
    assert gpud.client.lock("pool", {second: Hold(1200)}, 5).refused[second].kind == "lost"
    fake.gpu(0).uuid_bytes, fake.gpu(1).uuid_bytes = second.encode(), first.encode()
    fake.state.count = 3
    eventually(lambda: all(row["state"] == "ok" for row in gpud.rows().values()))
    gpud.client.lock("pool", {second: Hold(1200)}, 5)
    assert locks(fake) == [1200, 0]


def test_a_dry_run_sets_nothing_and_says_what_it_would(tmp_path: Path, fake: FakeNvml) -> None:
    gpud = GpudProcess(tmp_path, fake.environ, ("--dry-run",)).start()
    uuid = fake.gpu(0).uuid
    answer = gpud.client.lock("pool", {uuid: Hold(1200)}, 5)
    assert answer.granted[uuid]["verdict"] == "recommended"
    assert gpud.client.schedule("job", [fake.gpu(1).uuid], 5).granted[fake.gpu(1).uuid] == {"dry_run": True}
    gpud.client.set("job", {fake.gpu(1).uuid: 990})
    gpud.end()
    assert [gpu.sets for gpu in fake.gpus] == [0, 0, 0]
    would = [row["new"]["max_mhz"] for row in gpud.audit() if row["event"] == "would set"]
    assert would[:2] == [1200, 990]


def test_a_second_gpud_on_the_same_state_or_socket_does_not_start(gpud: GpudProcess, fake: FakeNvml) -> None:
    def started(state: Path, socket: Path) -> str:
        command = [sys.executable, "-m", "gpud", "--state", str(state), "--socket", str(socket)]
        environ = {**os.environ, **fake.environ}
        shown = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=20)
        assert shown.returncode == 1
        return shown.stderr

    assert "another gpud works with" in started(gpud.state, gpud.folder / "b.sock")
    assert "another gpud listens at" in started(gpud.folder / "b", gpud.socket)


PEER = """
import json, os, socket, sys
os.setgroups([int(group) for group in sys.argv[4].split(",") if group]); os.setgid(65534); os.setuid(65534)
s = socket.socket(socket.AF_UNIX)
try:
    s.connect(sys.argv[1])
    s.sendall((sys.argv[2] + chr(10)).encode())
    print(s.recv(65536).decode())
except PermissionError as error:
    print("no way in")
"""


def as_nobody(gpud: GpudProcess, request: dict[str, object], groups: str = "") -> str:
    command = [sys.executable, "-c", PEER, str(gpud.socket), json.dumps(request), "", groups]
    for folder in (gpud.folder, *gpud.folder.parents):
        if str(folder).startswith("/tmp/"):
            folder.chmod(0o755)
    return subprocess.run(command, capture_output=True, text=True, timeout=20, cwd="/").stdout


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")


@needs_root
def test_another_user_is_refused_even_where_the_socket_is_open_to_all(gpud: GpudProcess, fake: FakeNvml) -> None:
    assert as_nobody(gpud, {"op": "read"}).strip() == "no way in"
    gpud.socket.chmod(0o666)
    told = as_nobody(gpud, {"op": "lock", "owner": "x", "ttl_s": 5, "gpus": {fake.gpu(0).uuid: {"max_mhz": 1200}}})
    assert json.loads(told)["error"]["kind"] == "forbidden"
    assert fake.gpu(0).sets == 0
    assert gpud.audit()[-1] | {"at": 0, "pid": 0} == {
        "at": 0,
        "pid": 0,
        "event": "refused",
        "uid": 65534,
        "kind": "forbidden",
        "message": "user 65534 may not talk to gpud",
    }


@needs_root
def test_a_member_of_the_group_may_lock_and_end_its_own_leases_only(tmp_path: Path, fake: FakeNvml) -> None:
    gpud = GpudProcess(tmp_path, fake.environ, ("--group", "54321")).start()
    uuid, other = fake.gpu(0).uuid, fake.gpu(1).uuid
    gpud.client.lock("mine", {other: Hold(1200)}, 20)
    lock = {"op": "lock", "owner": "mine", "ttl_s": 20, "gpus": {uuid: {"max_mhz": 990}, other: {"max_mhz": 990}}}
    told = json.loads(as_nobody(gpud, lock, "54321"))
    assert told["granted"][uuid]["verdict"] == "held"
    assert told["refused"][other]["kind"] == "leased"
    told = json.loads(as_nobody(gpud, {"op": "reset", "gpus": [uuid, other]}, "54321"))
    assert (told["granted"].keys(), told["refused"][other]["kind"]) == ({uuid}, "forbidden")
    as_nobody(gpud, lock, "54321")
    as_nobody(gpud, {"op": "reset"}, "54321")
    assert locks(fake) == [0, 1200]
    assert as_nobody(gpud, {"op": "read"}).strip() == "no way in"
    gpud.end()
