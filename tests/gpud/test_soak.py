"""The long campaigns of `make soak`: a hundred random kills and stops, and half a minute without gpud."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_nvml import FakeNvml
from gpud_process import GpudProcess, eventually
from tests_support import ROOT

pytestmark = pytest.mark.soak

TTL_S = 1.0
FOREIGN = 777

AGENT = """
import random, sys, time
from pathlib import Path
from actors.gpu.gpud_client import GpudClient, GpudError
from control_plane.leases import Hold
client, name, uuids, chance = GpudClient(Path(sys.argv[1]), 2.0), sys.argv[2], sys.argv[3].split(","), random.Random()
while True:
    try:
        if name.startswith("job"):
            client.schedule(name, uuids, 1.0)
            client.set(name, {uuid: chance.choice([990, 1200, 1500, None]) for uuid in uuids})
        else:
            client.lock(name, {uuid: Hold(chance.choice([990, 1200, 1500])) for uuid in uuids}, 1.0, only=True)
    except GpudError:
        pass
    time.sleep(0.1)
"""


class Campaign:
    """A gpud over six GPUs, of which two are somebody else's, and two clients that hold two GPUs each."""

    def __init__(self, folder: Path) -> None:
        self.fake = FakeNvml(folder, gpus=6)
        for gpu in self.foreign:
            gpu.lock_high = FOREIGN
        self.gpud = GpudProcess(folder, self.fake.environ, ("--ttl-max", "30")).start()
        self.clients = {name: self.client(name) for name in ("pool", "job")}

    @property
    def foreign(self):  # type: ignore[no-untyped-def]
        return self.fake.gpus[4:]

    def client(self, name: str) -> "subprocess.Popen[bytes]":
        first = 0 if name == "pool" else 2
        uuids = ",".join(gpu.uuid for gpu in self.fake.gpus[first : first + 2])
        return subprocess.Popen([sys.executable, "-c", AGENT, str(self.gpud.socket), name, uuids], cwd=ROOT)

    def locked(self, name: str) -> list[int]:
        first = 0 if name == "pool" else 2
        return [gpu.lock_high for gpu in self.fake.gpus[first : first + 2]]

    def end(self) -> None:
        for client in self.clients.values():
            client.kill()
            client.wait()
        self.gpud.end()


@pytest.fixture
def campaign(tmp_path: Path):  # type: ignore[no-untyped-def]
    made = Campaign(tmp_path)
    yield made
    made.end()


def test_a_hundred_random_kills_leave_nothing_locked_and_no_foreign_gpu_touched(campaign: Campaign) -> None:
    chance, slowest_s = random.Random(7), 0.0
    for number in range(100):
        time.sleep(chance.uniform(0.1, 0.6))
        match chance.choice(["kill gpud", "stop gpud", "kill client", "stop client", "kill all"]):
            case "kill gpud":
                campaign.gpud.kill()
                time.sleep(chance.uniform(0, 0.3))
                campaign.gpud.start()
            case "stop gpud":
                campaign.gpud.signal(signal.SIGSTOP)
                time.sleep(chance.uniform(0.1, 1.5))
                campaign.gpud.signal(signal.SIGCONT)
            case "kill client" | "stop client" as what:
                name = chance.choice(["pool", "job"])
                victim = campaign.clients[name]
                victim.send_signal(signal.SIGKILL if what == "kill client" else signal.SIGSTOP)
                began_s = time.monotonic()
                eventually(lambda name=name: campaign.locked(name) == [0, 0], TTL_S + 1)
                slowest_s = max(slowest_s, time.monotonic() - began_s)
                victim.kill()
                victim.wait()
                campaign.clients[name] = campaign.client(name)
            case _:
                for client in campaign.clients.values():
                    client.kill()
                    client.wait()
                campaign.gpud.kill()
                campaign.gpud.start()
                began_s = time.monotonic()
                eventually(lambda: campaign.locked("pool") + campaign.locked("job") == [0] * 4, TTL_S + 1)
                slowest_s = max(slowest_s, time.monotonic() - began_s)
                campaign.clients = {name: campaign.client(name) for name in campaign.clients}
        assert [gpu.lock_high for gpu in campaign.foreign] == [FOREIGN] * 2, number
        assert [gpu.sets for gpu in campaign.foreign] == [0] * 2, number
    locks = sum(gpu.lock_calls for gpu in campaign.fake.gpus)
    assert all(gpu.overlaps == 0 for gpu in campaign.fake.gpus)
    campaign.end()
    assert campaign.locked("pool") + campaign.locked("job") == [0] * 4
    print(f"\n100 kills and stops: 0 left locked, 0 foreign GPUs touched, {locks} locks, slowest {slowest_s:.2f} s")


def test_gpud_stopped_for_half_a_minute_resets_at_once_when_it_goes_on(campaign: Campaign) -> None:
    eventually(lambda: all(campaign.locked("pool")))
    for client in campaign.clients.values():
        client.kill()
    campaign.gpud.signal(signal.SIGSTOP)
    time.sleep(30)
    campaign.gpud.signal(signal.SIGCONT)
    began_s = time.monotonic()
    eventually(lambda: campaign.locked("pool") + campaign.locked("job") == [0] * 4, TTL_S + 1)
    print(f"\ngpud stopped for 30 s: full clock {time.monotonic() - began_s:.2f} s after it went on")


def test_clients_stopped_for_half_a_minute_lose_their_leases_and_take_them_again(campaign: Campaign) -> None:
    eventually(lambda: all(campaign.locked("pool")))
    for client in campaign.clients.values():
        client.send_signal(signal.SIGSTOP)
    began_s = time.monotonic()
    eventually(lambda: campaign.locked("pool") + campaign.locked("job") == [0] * 4, TTL_S + 1)
    print(f"\nclients stopped: full clock after {time.monotonic() - began_s:.2f} s")
    time.sleep(30)
    assert campaign.locked("pool") + campaign.locked("job") == [0] * 4
    for client in campaign.clients.values():
        client.send_signal(signal.SIGCONT)
    eventually(lambda: all(campaign.locked("pool")))
