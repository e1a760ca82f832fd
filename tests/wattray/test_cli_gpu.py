"""`wattray gpu`, `wattray gpud` and `wattray doctor` as an operator uses them, on the fake driver library."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_nvml import FakeNvml
from gpud_process import GpudProcess, eventually
from prometheus_client.parser import text_string_to_metric_families
from tests_support import ROOT, free_ports

from actors.gpu.node_findings import Finding, Level, node_findings


class Site:
    def __init__(self, folder: Path) -> None:
        self.fake = FakeNvml(folder, gpus=2)
        [self.metrics_port] = free_ports(1)
        options = ("--ttl-max", "30", "--metrics-port", str(self.metrics_port), "--rescan", "0.2")
        self.gpud = GpudProcess(folder, self.fake.environ, options).start()
        self.a, self.b = (gpu.uuid for gpu in self.fake.gpus)

    def wattray(self, *words: str) -> subprocess.CompletedProcess[str]:
        # A temp folder of its own: a control plane that somebody else runs here is not looked at.
        own = {"WATTRAY_GPUD_SOCKET": str(self.gpud.socket), "TMPDIR": str(self.gpud.folder)}
        environ = {**os.environ, **self.fake.environ, **own}
        command = [sys.executable, "-m", "wattray", *words]
        return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("cli"))
    yield made
    made.gpud.end()


@pytest.fixture
def site(shared: Site) -> Site:
    for gpu in shared.fake.gpus:
        gpu.works()
        gpu.idle = 0
    eventually(lambda: all(row["state"] != "lost" for row in shared.gpud.rows().values()))
    shared.gpud.client.reset(None)
    eventually(lambda: not any(row["owes_a_reset"] for row in shared.gpud.rows().values()))
    time.sleep(0.025)
    return shared


def test_list_is_json_with_every_gpu_and_a_table_with_lost_ones_as_rows(site: Site) -> None:
    told = json.loads(site.wattray("gpu", "list", "--json").stdout)
    assert [(gpu["uuid"], gpu["name"]) for gpu in told["gpus"]] == [
        (site.a, "NVIDIA H100 80GB HBM3"),
        (site.b, "NVIDIA H100 80GB HBM3"),
    ]
    site.fake.gpu(1).lost = 1
    shown = site.wattray("gpu", "list")
    lost = next(line for line in shown.stdout.splitlines() if line.startswith(site.b))
    assert lost.split()[-1] == "N/A"
    assert "lost" in lost
    assert "degraded" in shown.stderr


@pytest.mark.parametrize(
    ("fault", "code", "told"),
    [
        ({}, 0, "held at 1200 MHz, runs at 1200 MHz"),
        ({"cap_mhz": 900}, 0, "capped at 1200 MHz, runs at 900 MHz"),
        ({"stuck": 1}, 1, "stuck at 1200 MHz, runs at 1980 MHz"),
        ({"idle": 1}, 1, "unverifiable at 1200 MHz"),
    ],
)
def test_a_lock_exits_zero_only_where_the_clock_is_held_or_capped(
    site: Site, fault: dict[str, int], code: int, told: str
) -> None:
    for field, value in fault.items():
        setattr(site.fake.gpu(0), field, value)
    shown = site.wattray("gpu", "lock", "--gpu", site.a, "--max-mhz", "1210", "--ttl", "5", "--owner", "me")
    assert (shown.returncode, told in shown.stdout) == (code, True), shown


def test_a_lock_that_is_refused_says_why_and_one_that_is_granted_is_not_renewed(site: Site) -> None:
    refused = site.wattray("gpu", "lock", "--gpu", site.a, "--max-mhz", "5000", "--ttl", "5", "--owner", "me")
    assert (refused.returncode, "outside 345..1980 MHz" in refused.stderr) == (1, True)
    long = site.wattray("gpu", "lock", "--gpu", site.a, "--max-mhz", "1200", "--ttl", "99", "--owner", "me")
    assert (long.returncode, "ttl_s must be" in long.stderr) == (2, True)
    site.wattray("gpu", "lock", "--gpu", site.a, "--max-mhz", "1200", "--ttl", "0.7", "--owner", "me")
    eventually(lambda: site.fake.gpu(0).lock_high == 0, 2)


@pytest.mark.parametrize(("option", "value"), [("--max-mhz", "nan"), ("--max-mhz", "1e400"), ("--ttl", "nan")])
def test_what_is_no_number_is_one_line_and_sets_nothing(site: Site, option: str, value: str) -> None:
    options = {"--max-mhz": "1200", "--ttl": "5", option: value}
    words = [word for pair in options.items() for word in pair]
    shown = site.wattray("gpu", "lock", "--gpu", site.a, "--owner", "me", *words)
    assert (shown.returncode, shown.stderr.count("\n"), site.fake.gpu(0).lock_high) == (2, 1, 0)


def test_reset_ends_what_gpud_set_and_a_named_gpu_whoever_locked_it(site: Site) -> None:
    site.wattray("gpu", "lock", "--gpu", site.a, "--max-mhz", "1200", "--ttl", "20", "--owner", "me")
    site.fake.gpu(1).lock_high = 800
    assert site.wattray("gpu", "reset").stdout == f"{site.a}: reset\n"
    assert [gpu.lock_high for gpu in site.fake.gpus] == [0, 800]
    assert site.wattray("gpu", "reset", "--gpu", site.b).stdout == f"{site.b}: reset\n"
    assert site.fake.gpu(1).lock_high == 0
    assert site.wattray("gpu", "reset").stdout == "nothing was set\n"


def test_watch_looks_again(site: Site) -> None:
    shown = site.wattray("gpu", "watch", "--json", "--every", "0.1", "--count", "3")
    looks = [json.loads(line) for line in shown.stdout.splitlines()]
    assert [len(look["gpus"]) for look in looks] == [2, 2, 2]
    assert looks[0]["at"] < looks[1]["at"] < looks[2]["at"]


def test_without_gpud_a_command_says_what_to_do(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "wattray", "gpu", "list", "--socket", str(tmp_path / "none")]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (shown.returncode, shown.stderr.count("\n")) == (2, 1)
    assert "start it (`wattray gpud`)" in shown.stderr


A_GPU_COMMAND = """
import sys
sys.argv = ["wattray", "gpu", "list", "--socket", "/none"]
from wattray.cli import main
try:
    main()
except SystemExit:
    pass
"""


@pytest.mark.parametrize(
    ("start", "heavy"),
    [
        (A_GPU_COMMAND, {"ray", "numpy", "torch", "numba", "scipy", "asyncio"}),
        ("import gpud.__main__, actors.gpu.nvml, actors.gpu.simulated", {"ray", "numpy", "torch", "pydantic", "typer"}),
    ],
)
def test_gpu_commands_and_gpud_load_nothing_heavy(start: str, heavy: set[str]) -> None:
    code = f"{start}\nimport sys\nprint(sorted({heavy!r} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert shown.stdout.splitlines()[-1] == "[]", shown


def test_gpuds_figures_are_prometheus_text_with_the_uuid(site: Site) -> None:
    site.gpud.client.ask({"op": "lock", "owner": "me", "ttl_s": 20, "gpus": {site.a: {"max_mhz": 1200}}})
    site.fake.gpu(0).cap_mhz = 900
    site.fake.gpu(1).lost = 1
    time.sleep(1.1)
    with urllib.request.urlopen(f"http://127.0.0.1:{site.metrics_port}/metrics", timeout=10) as answer:
        families = {family.name: family for family in text_string_to_metric_families(answer.read().decode())}
    values = {name: {s.labels["uuid"]: s.value for s in family.samples} for name, family in families.items()}
    assert values["wattray_gpu_clock_hertz"] == {site.a: 900e6}
    assert values["wattray_gpu_clock_target_hertz"] == {site.a: 1200e6}
    assert values["wattray_gpu_energy_joules"][site.a] > 0
    assert 0 < values["wattray_gpu_lease_age_seconds"][site.a] < 20
    assert [s.labels["event"] for s in families["wattray_gpu_clock_event_info"].samples] == ["power_cap"]
    assert {s.labels["uuid"]: s.labels["state"] for s in families["wattray_gpu_state_info"].samples} == {
        site.a: "ok",
        site.b: "lost",
    }
    with socket.socket() as raw:
        raw.connect(("127.0.0.1", site.metrics_port))
        raw.sendall(b"\x00\xff" * 6000)
        raw.settimeout(5)
        with contextlib.suppress(ConnectionError):
            assert raw.recv(10) == b""


def test_doctor_tells_findings_with_remedies(site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    site.fake.use_here(monkeypatch)
    site.fake.gpu(0).persistence, site.fake.gpu(1).mig = 0, 1
    found = {finding.what: finding for finding in node_findings(site.gpud.socket)}
    site.fake.gpu(0).persistence, site.fake.gpu(1).mig = 1, 0
    assert found["driver"] == Finding(Level.OK, "driver", "NVIDIA 575.57.08, 2 GPUs")
    persistence = found[f"GPU {site.a} persistence mode"]
    assert (persistence.level, "nvidia-smi -pm 1" in persistence.remedy) == (Level.NOTE, True)
    assert found[f"GPU {site.b} MIG"].level is Level.PROBLEM
    assert found["gpud"].level is Level.OK
    assert all(finding.remedy for finding in found.values() if finding.level is not Level.OK)
    alone = {finding.what: finding for finding in node_findings(tmp_path / "none.sock")}
    assert "no gpud at" in alone["gpud"].found


def test_doctor_exits_with_one_where_something_is_a_problem(site: Site) -> None:
    well = site.wattray("doctor", "--json")
    assert well.returncode == 0, well.stdout
    nodes = json.loads(well.stdout)["nodes"]
    assert {finding["what"] for finding in nodes["this node"]} >= {"Python", "driver", "gpud", "ray", "nvidia-ml-py"}
    site.fake.gpu(0).lost = 1
    ill = site.wattray("doctor")
    assert ill.returncode == 1
    assert "remedy: drain the node" in ill.stdout
