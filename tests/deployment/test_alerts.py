"""The alert rules, evaluated by Prometheus's own tool: they fire when they should, and not otherwise."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests_support import ROOT

RULES = ROOT / "docs" / "grafana" / "alerts.yaml"
GROUPS = yaml.safe_load(RULES.read_text())["groups"]
ALERTS = {rule["alert"] for group in GROUPS for rule in group["rules"] if "alert" in rule}
PROMTOOL = shutil.which("promtool")

needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian: prometheus)")

MET, MISSED = (
    'ray_wattray_request_slo_total{pool="p",met="true"}',
    'ray_wattray_request_slo_total{pool="p",met="false"}',
)
GPUS = {f'ray_wattray_gpu_power_watts{{uuid="GPU-{i}"}}': "300x240" for i in range(2)}
HEALTHY = {"ray_wattray_cluster_gpus": "2x240", **GPUS}


def told(tmp_path: Path, series: dict[str, str], at: str, fire: dict[str, dict[str, str]]) -> None:
    """Which alerts fire at ``at``, with which labels: exactly these."""
    expected = [
        {
            "alertname": name,
            "eval_time": at,
            "exp_alerts": [{"exp_labels": fire[name]}] if name in fire else [],
        }
        for name in sorted(ALERTS)
    ]
    # A test without annotations would compare them too: take them out of the copy that is tested.
    groups: list[dict[str, Any]] = yaml.safe_load(RULES.read_text())["groups"]
    for group in groups:
        for rule in group["rules"]:
            rule.pop("annotations", None)
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": groups}))
    test = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "alert_rule_test": expected,
    }
    plan = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": [test]}
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(plan))
    assert PROMTOOL is not None
    done = subprocess.run([PROMTOOL, "test", "rules", "test.yaml"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_promtool_takes_the_rules_as_they_are() -> None:
    assert PROMTOOL is not None
    done = subprocess.run([PROMTOOL, "check", "rules", str(RULES)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


PAGE, TICKET = {"severity": "page"}, {"severity": "ticket"}
GPU_1 = {**TICKET, "uuid": "GPU-1"}


@needs_promtool
@pytest.mark.parametrize(
    ("series", "at", "fire"),
    [
        ({MET: "0+100x240", MISSED: "0+0x240"}, "2h", {}),
        ({MET: "0+100x240", MISSED: "0+0.5x240"}, "2h", {}),
        ({MET: "0+80x240", MISSED: "0+20x240"}, "2h", {"WattraySloBurnsFast": PAGE, "WattraySloBurnsSlowly": TICKET}),
        # A burst of misses that is over: the hour still shows it, the last five minutes and half hour do not.
        ({MET: "0+80x60 4800+100x180", MISSED: "0+20x60 1200+0x180"}, "100m", {"WattraySloBurnsSlowly": TICKET}),
        ({'ray_wattray_gpu_lease_lapses_total{uuid="GPU-1"}': "_x20 1x220"}, "23m", {"WattrayLeaseLapsed": GPU_1}),
        ({'ray_wattray_gpu_lease_lapses_total{uuid="GPU-1"}': "_x20 1x220"}, "40m", {}),
        ({'ray_wattray_gpu_lease_lapses_total{uuid="GPU-1"}': "1x20 2x220"}, "23m", {"WattrayLeaseLapsed": GPU_1}),
        ({'ray_wattray_gpu_lease_age_seconds{uuid="GPU-1"}': "4x240"}, "30m", {}),
        ({'ray_wattray_gpu_lease_age_seconds{uuid="GPU-1"}': "40x240"}, "30m", {"WattrayLeaseNotRenewed": GPU_1}),
        (
            {'ray_wattray_profile_disagreement_ratio{pool="p"}': "0.2x240"},
            "20m",
            {"WattrayProfileOff": {**TICKET, "pool": "p"}},
        ),
        ({'ray_wattray_profile_disagreement_ratio{pool="p"}': "0.2x10 0x230"}, "20m", {}),
    ],
    ids=[
        "all met", "half the budget", "a fifth missed", "a burst that is over", "a first lapse", "an old lapse",
        "a second lapse", "a renewed lease", "a lease that is not renewed", "the profile is off",
        "the profile was off shortly",
    ],
)  # fmt: skip
def test_an_alert_fires_when_it_should_and_no_other_does(
    tmp_path: Path, series: dict[str, str], at: str, fire: dict[str, dict[str, str]]
) -> None:
    told(tmp_path, {**HEALTHY, **series}, at, fire)


@needs_promtool
@pytest.mark.parametrize(
    ("series", "fire"),
    [
        ({"ray_wattray_cluster_gpus": "2x240", 'ray_wattray_gpu_power_watts{uuid="GPU-0"}': "300x240"}, ["Agent"]),
        ({"ray_wattray_cluster_gpus": "2x240"}, ["Agent"]),
        (GPUS, ["Manager"]),
        # The dead agent's process is still exported beside the new one's.
        ({**HEALTHY, 'ray_wattray_gpu_power_watts{uuid="GPU-1",pid="7"}': "300x240"}, []),
    ],
    ids=["one of two agents", "every agent", "the manager", "none: a restart"],
)
def test_who_is_lost_is_told(tmp_path: Path, series: dict[str, str], fire: list[str]) -> None:
    told(tmp_path, series, "30m", {f"Wattray{name}Lost": PAGE for name in fire})


def test_every_alert_says_what_to_do() -> None:
    for group in GROUPS:
        for rule in group["rules"]:
            if "alert" in rule:
                assert rule["labels"]["severity"] in ("page", "ticket")
                assert len(rule["annotations"]["description"]) > 60
