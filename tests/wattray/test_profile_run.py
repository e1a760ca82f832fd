"""`wattray profile run` and what it rests on, with gpud on the fake driver library: no clock stays behind."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from fake_nvml import FakeNvml
from gpud_process import GpudProcess, eventually
from tests_support import ROOT

from control_plane.hardware.profile_file import parse_profile
from wattray.profiler import Meter, Plan, ProfilerError, RepeatedCall, clock_lease, measure

QUICK = Plan(warmup_s=0.1, settle_s=1.0, window_s=0.5, windows=2, lease_ttl_s=2.0)


class Site:
    def __init__(self, folder: Path, *options: str) -> None:
        self.fake = FakeNvml(folder, gpus=2)
        self.gpud = GpudProcess(folder, self.fake.environ, ("--ttl-max", "30", *options)).start()
        self.uuid = self.fake.gpu(0).uuid
        self.meter = Meter(self.gpud.client, [self.uuid])


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.gpud.end()


def test_a_load_is_measured_at_the_present_clock_and_nothing_is_set(site: Site) -> None:
    site.fake.gpu(0).cap_mhz = 1500
    taken_s: list[float] = []

    def iteration() -> None:
        began_s = time.monotonic()
        time.sleep(0.01)
        taken_s.append(time.monotonic() - began_s)

    row = measure(site.meter, None, RepeatedCall(64, iteration), QUICK)
    assert (row.tokens, row.freq_mhz, row.capped) == (64, 1500, True)
    assert min(taken_s) <= row.iteration_s.mean <= 1.01 * max(taken_s)
    assert row.power_w.mean == pytest.approx(423, rel=0.25)  # the counter moves in steps of a fifth of such a window
    assert row.energy_j_per_iteration.mean == pytest.approx(row.power_w.mean * row.iteration_s.mean, rel=0.01)
    assert site.fake.gpu(0).sets == 0


def test_clocks_go_back_when_the_sweep_fails(site: Site) -> None:
    with pytest.raises(ZeroDivisionError), clock_lease(site.meter, "profiler", 5.0) as set_clock:  # noqa: PT012
        set_clock(1200)
        assert site.fake.gpu(0).lock_high == 1200
        raise ZeroDivisionError
    eventually(lambda: site.fake.gpu(0).lock_high == 0)


def test_a_lease_is_renewed_while_an_iteration_lasts(site: Site) -> None:
    with clock_lease(site.meter, "profiler", 0.4) as set_clock:
        set_clock(1200)
        time.sleep(0.6)
        assert site.fake.gpu(0).lock_high == 1200
    eventually(lambda: site.fake.gpu(0).lock_high == 0)


def test_a_clock_that_does_not_take_is_no_measurement(site: Site) -> None:
    site.fake.gpu(0).stuck = 1
    told = pytest.raises(ProfilerError, match="runs at 1980 MHz, above the 1200 MHz")
    with told, clock_lease(site.meter, "p", 5) as set_clock:
        set_clock(1200)


def test_a_load_that_fails_is_said_so(site: Site) -> None:
    with pytest.raises(ProfilerError, match="the load failed: ZeroDivisionError"):
        measure(site.meter, None, RepeatedCall(1, lambda: 1 // 0), QUICK)


def test_a_dry_gpud_lends_no_clock(tmp_path: Path) -> None:
    site = Site(tmp_path, "--dry-run")
    with pytest.raises(ProfilerError, match="measure at the present clock"), clock_lease(site.meter, "p", 5):
        pass
    site.gpud.end()


def profile_run(site: Site, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "wattray", "profile", "run", "--socket", str(site.gpud.socket)]
    quick = ["--window", "0.5", "--windows", "2", "--warmup", "0.1"]
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    whole = [*command, "--gpu", site.uuid, "--kv-tokens", "100000", *quick, *words]
    return subprocess.run(whole, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=100)


@pytest.mark.soak
def test_a_callable_swept_over_clocks_becomes_a_profile_that_planners_read(site: Site, tmp_path: Path) -> None:
    out = tmp_path / "profile.json"
    load = ("--callable", "profiled_load:iteration", "--tokens", "1,512", "--clocks", "1200,1980")
    shown = profile_run(site, "--out", str(out), "--name", "mine", *load)
    assert shown.returncode == 0, shown.stderr
    assert [entry[:3] for entry in site.fake.gpu(0).history()] == [(1, 345, 1980), (1, 345, 1200), (2, 0, 0)]
    profile = parse_profile(out.read_text())
    assert (profile.freqs_mhz, profile.tps) == ((1200, 1980), (1,))
    kept = json.loads((tmp_path / "profile.json.measured.json").read_text())
    assert [round(row["iteration_s"]["mean"] * 1e3) for row in kept["measured"]] == [5, 15, 5, 15]
    assert any("± " in note and "95 %" in note for note in profile.evidence.notes)


class Completions(BaseHTTPRequestHandler):
    """An OpenAI endpoint: a token every 5 ms, the first after a millisecond per hundred prompt tokens."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        time.sleep(len(body["prompt"].split()) * 1e-5)
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        for _ in range(body["max_tokens"]):
            time.sleep(0.005)
            self.wfile.write(b'data: {"choices": [{"text": "word "}]}\n\n')
        self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""


@pytest.mark.soak
def test_an_endpoint_is_profiled_at_the_present_clock(site: Site, tmp_path: Path) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Completions)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    out = tmp_path / "profile.json"
    load = ("--endpoint", url, "--model", "m", "--decode", "1,4", "--prefill", "1000")
    shown = profile_run(site, "--out", str(out), "--name", "served", *load)
    server.shutdown()
    assert shown.returncode == 0, shown.stderr
    rows = json.loads((tmp_path / "profile.json.measured.json").read_text())["measured"]
    assert [row["tokens"] for row in rows] == [1, 4, 1000]
    assert rows[0]["iteration_s"]["mean"] == pytest.approx(0.0055, rel=0.3)
    assert rows[2]["iteration_s"]["mean"] == pytest.approx(0.017, rel=0.4)
    assert parse_profile(out.read_text()).freqs_mhz == (1980,)
    assert site.fake.gpu(0).sets == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "give either --endpoint or --callable"),
        (("--endpoint", "http://127.0.0.1:1/v1"), "--endpoint needs --model"),
        (("--callable", "nothing"), "module:function"),
        (("--callable", "profiled_load:iteration", "--tokens", "1,x"), "whole numbers from 1"),
    ],
)
def test_what_cannot_be_measured_is_one_line(tmp_path: Path, words: tuple[str, ...], told: str) -> None:
    needed = ["--gpu", "GPU-x", "--kv-tokens", "1", "--out", str(tmp_path / "p.json"), "--name", "x"]
    command = [sys.executable, "-m", "wattray", "profile", "run", *needed, *words]
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    shown = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=100)
    assert (shown.returncode, shown.stderr.count("\n")) == (2, 1)
    assert told in shown.stderr
