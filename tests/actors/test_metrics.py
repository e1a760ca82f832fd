"""The Grafana dashboard shows the metrics there are, and every metric says what it is."""

import json
import re

import pytest
from tests_support import ROOT

from actors.metrics import HELP

DASHBOARD = json.loads((ROOT / "docs" / "grafana" / "wattray.json").read_text())
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
UNITS = "watts hertz joules_total seconds total ratio replicas gpu_budget per_second info"
BASE_UNITS = tuple(f"_{unit}" for unit in UNITS.split())


def test_the_dashboard_asks_only_for_metrics_that_exist() -> None:
    asked = {name for expression in EXPRESSIONS for name in re.findall(r"ray_(wattray_\w+)", expression)}
    assert {name.removesuffix("_bucket") for name in asked} <= set(HELP)


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
