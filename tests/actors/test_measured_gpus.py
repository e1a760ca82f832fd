"""What a replica of a real engine meters on real GPUs: the driver's readings, in the order asked for."""

import subprocess
import sys
from pathlib import Path

from fake_nvml import FakeNvml

READ = """
import json, sys
from actors.gpu.drivers import measured_gpus
from control_plane.ports import GpuError
try:
    print(json.dumps([[gpu.uuid, gpu.freq_mhz(), gpu.power_w() > 0] for gpu in measured_gpus(sys.argv[1:])]))
except GpuError as error:
    print(error)
"""


def read(fake: FakeNvml, *uuids: str) -> str:
    command = [sys.executable, "-c", READ, *uuids]
    done = subprocess.run(command, env={**fake.environ, "PATH": "/usr/bin:/bin"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_gpus_are_the_drivers_own_and_a_missing_one_is_named(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path, gpus=3)
    first, _, third = (gpu.uuid for gpu in fake.gpus)
    assert read(fake, third, first) == f'[["{third}", 1980, true], ["{first}", 1980, true]]'
    assert read(fake, "GPU-gone").startswith("NVML shows no GPU GPU-gone; it shows GPU-fa4e")
    assert fake.gpu(0).history() == [], "nothing is set by whoever only reads"
