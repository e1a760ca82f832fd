"""The Grafana dashboard shows the metrics there are, and every metric says what it is."""

import json
import re

import pytest
import yaml
from tests_support import ROOT

from actors.metrics import HELP

DASHBOARD = json.loads((ROOT / "docs" / "grafana" / "wattray.json").read_text())
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
ALERTS = yaml.safe_load((ROOT / "docs" / "grafana" / "alerts.yaml").read_text())
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]
UNITS = "watts hertz joules_total seconds total ratio replicas gpus gpu_budget per_second info"
BASE_UNITS = tuple(f"_{unit}" for unit in UNITS.split())


@pytest.mark.parametrize("expressions", [EXPRESSIONS, [rule["expr"] for rule in RULES]], ids=["dashboard", "alerts"])
def test_dashboard_and_alerts_ask_only_for_metrics_that_exist(expressions: list[str]) -> None:
    asked = {name for expression in expressions for name in re.findall(r"ray_(wattray_\w+)", expression)}
    assert asked
    assert {name.removesuffix("_bucket") for name in asked} <= set(HELP)


def test_alerts_ask_only_for_rates_that_are_recorded() -> None:
    asked = {name for rule in RULES for name in re.findall(r"wattray:[\w:]+", rule["expr"])}
    assert asked == {rule["record"] for rule in RULES if "record" in rule}


@pytest.mark.parametrize("name", HELP)
def test_every_metric_is_on_the_dashboard(name: str) -> None:
    assert any(re.search(rf"ray_{name}(_bucket)?\b", expression) for expression in EXPRESSIONS)


@pytest.mark.parametrize(("name", "text"), HELP.items())
def test_names_carry_base_units_and_texts_end_with_a_full_stop(name: str, text: str) -> None:
    assert name.endswith(BASE_UNITS)
    assert text.endswith(".")
    assert len(text) > 20


def test_panels_do_not_overlap_and_have_a_text() -> None:
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in DASHBOARD["panels"]]
    assert len(set(places)) == len(places)
    assert all(panel["description"] and panel["fieldConfig"]["defaults"]["unit"] for panel in DASHBOARD["panels"])
