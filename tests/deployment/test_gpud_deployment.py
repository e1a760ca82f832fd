"""The systemd unit and the Kubernetes manifest say what gpud can be told, and give privilege to nothing else."""

import configparser
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_nvml import FakeNvml
from gpud_process import GpudProcess
from tests_support import ROOT

from gpud.options import parse_options

DEPLOY = ROOT / "deploy"


class Unit(configparser.ConfigParser):
    """A systemd unit's keys may come twice and keep their case."""

    def __init__(self) -> None:
        super().__init__(strict=False, interpolation=None)
        self.optionxform = str  # type: ignore[assignment,method-assign]
        self.read(DEPLOY / "wattray-gpud.service")


@pytest.mark.parametrize("key", ["ExecStart", "ExecStopPost"])
def test_the_units_commands_are_gpuds(key: str) -> None:
    program, name, *options = Unit()["Service"][key].split()
    assert (program.rpartition("/")[2], name) == ("wattray", "gpud")
    parsed = parse_options(options)
    assert parsed.state == Path("/var/lib/wattray/gpud")
    assert parsed.restore_only == (key == "ExecStopPost")


def test_the_unit_restarts_always_resets_when_it_ends_and_holds_two_capabilities_only() -> None:
    service = Unit()["Service"]
    assert service["Restart"] == "always"
    assert "--restore-only" in service["ExecStopPost"]
    assert set(service["CapabilityBoundingSet"].split()) == {"CAP_SYS_ADMIN", "CAP_CHOWN"}
    assert service["NoNewPrivileges"] == "yes"
    assert service["RuntimeDirectory"] == "wattray"
    assert service["StateDirectory"] == "wattray/gpud"
    assert Unit()["Unit"]["StartLimitIntervalSec"] == "0"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_takes_the_unit() -> None:
    command = ["systemd-analyze", "verify", "--man=no", str(DEPLOY / "wattray-gpud.service")]
    told = subprocess.run(command, capture_output=True, text=True, timeout=30).stderr
    assert [line for line in told.splitlines() if "not executable" not in line and "wattray-gpud" in line] == []


def documents() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / "gpud-daemonset.yaml").read_text()))


def daemon_set() -> dict[str, Any]:
    [found] = [document for document in documents() if document["kind"] == "DaemonSet"]
    return found


def test_the_manifest_is_a_namespace_and_a_daemon_set_that_selects_its_own_pods() -> None:
    assert [(document["apiVersion"], document["kind"]) for document in documents()] == [
        ("v1", "Namespace"),
        ("apps/v1", "DaemonSet"),
    ]
    spec = daemon_set()["spec"]
    assert spec["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()
    assert documents()[0]["metadata"]["name"] == daemon_set()["metadata"]["namespace"]


POD_FIELDS = {
    *("nodeSelector", "tolerations", "priorityClassName", "runtimeClassName", "automountServiceAccountToken"),
    *("hostPID", "terminationGracePeriodSeconds", "containers", "volumes"),
}
CONTAINER_FIELDS = {
    *("name", "image", "imagePullPolicy", "command", "args", "env", "securityContext", "resources"),
    *("volumeMounts", "livenessProbe"),
}


def test_the_manifest_has_known_fields_only_and_every_mount_a_volume() -> None:
    """A misspelt field is dropped by Kubernetes without a word."""
    pod = daemon_set()["spec"]["template"]["spec"]
    assert pod.keys() <= POD_FIELDS
    [container] = pod["containers"]
    assert container.keys() <= CONTAINER_FIELDS
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert container["resources"]["limits"].keys() == {"memory"}  # a CPU limit would delay a reset


def test_the_manifests_options_and_folders_are_gpuds() -> None:
    pod = daemon_set()["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert container["command"] == ["python", "-m", "gpud"]
    parsed = parse_options(container["args"])
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts == {str(parsed.socket.parent), str(parsed.state)}
    assert all(volume["hostPath"]["path"] in mounts for volume in pod["volumes"])
    assert not parsed.rules.dry_run


def test_the_probe_of_the_manifest_passes_while_gpud_answers_and_fails_when_it_is_gone(tmp_path: Path) -> None:
    [container] = daemon_set()["spec"]["template"]["spec"]["containers"]
    command = container["livenessProbe"]["exec"]["command"]
    fake = FakeNvml(tmp_path, gpus=1)
    gpud = GpudProcess(tmp_path, fake.environ).start()

    def probed() -> int:
        import sys

        words = [sys.executable, *command[1:-1], str(gpud.socket)]
        return subprocess.run(words, cwd=ROOT, capture_output=True, timeout=20).returncode

    assert probed() == 0
    gpud.end()
    assert probed() == 1
