"""The rules and the dashboard ask only for metrics and labels that the service exports."""

import json
import re
from pathlib import Path

import pytest
import yaml

from fed_distill.serving.service_metrics import ServiceMetrics

DOCS = Path(__file__).parents[2] / "docs"
DASHBOARD = json.loads((DOCS / "grafana.json").read_text(encoding="utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
GROUPS = yaml.safe_load((DOCS / "alerts.yml").read_text(encoding="utf-8"))["groups"]
RULES = [rule for group in GROUPS if group["name"] == "fed-distill serve" for rule in group["rules"]]
SCRAPED = {"instance", "job"}
"""Labels that Prometheus adds."""


def labels():
    """Labels of each series by its name, as the client library names them."""
    found = {}
    for metric in ServiceMetrics()._registry._collector_to_names:
        kind, name, own = metric._type, metric._name, set(metric._labelnames)
        names = {"counter": [f"{name}_total"], "gauge": [name]}.get(kind)
        for series in names or [f"{name}_sum", f"{name}_count"]:
            found[series] = own
        if kind == "histogram":
            found[f"{name}_bucket"] = own | {"le"}
            if metric._upper_bounds[0] < 0:
                del found[f"{name}_sum"]  # the library shows none of negative values
    return found


EXPORTED = labels()


def problems(expression, shown):
    """What an expression, and the text with its labels, asks for and the service does not have."""
    names = re.findall(r"\bfed_distill_\w+", expression)
    if not names and "up{" not in expression:
        return ["no metric"]
    if unknown := [name for name in names if name not in EXPORTED]:
        return unknown
    found = []
    for name, selected in re.findall(r"\b(fed_distill_\w+)\{([^}]*)\}", expression):
        asked = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selected))
        found += sorted(asked - EXPORTED[name] - SCRAPED)
    grouped = {label.strip() for group in re.findall(r"\bby \(([^)]*)\)", expression) for label in group.split(",")}
    for name in names:
        found += sorted(grouped - EXPORTED[name] - SCRAPED)
    return found + sorted(shown - (grouped or set().union(*(EXPORTED[name] for name in names)) | SCRAPED))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_rules_ask_for_what_there_is(rule):
    shown = set(re.findall(r"\$labels\.(\w+)", " ".join(rule["annotations"].values())))
    assert problems(rule["expr"], shown) == []


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_panels_ask_for_what_there_is(panel):
    for target in panel["targets"]:
        shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        assert problems(target["expr"], shown) == []


def test_the_check_finds_what_there_is_not():
    assert problems("fed_distill_requests", set()) == ["fed_distill_requests"]
    assert problems("sum(1)", set()) == ["no metric"]
    assert problems('rate(fed_distill_requests_total{path="/rank"}[5m])', set()) == ["path"]
    assert problems("sum by (le) (fed_distill_requests_total)", set()) == ["le"]
    assert problems("sum by (route) (fed_distill_requests_total)", {"status"}) == ["status"]
    assert problems("fed_distill_shadow_rank_correlation_sum", set()) == ["fed_distill_shadow_rank_correlation_sum"]


def test_what_was_asked_for_is_watched():
    alerts = {rule["alert"] for rule in RULES}
    wanted = {"ServiceSlow", "ServiceErrors", "ServiceOverloaded", "Drift", "UnseenFeatures", "ReloadRefused"}
    assert wanted | {"ServiceUnused"} <= alerts
    asked = " ".join(target["expr"] for panel in PANELS for target in panel["targets"])
    unshown = {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in EXPORTED}
    assert [name for name in unshown if name not in asked] == []  # the dashboard shows every metric


def test_the_dashboard_fits_together():
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    cells = [(x, y) for one in places for x in range(one["x"], one["x"] + one["w"]) for y in _rows(one)]
    assert len(cells) == len(set(cells)) and max(x for x, _ in cells) < 24
    numbers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(numbers)) == len(numbers)
    variables = {"$" + one["name"] for one in DASHBOARD["templating"]["list"]}
    assert set(re.findall(r"\$(?!__)\w+", json.dumps(PANELS))) | {"$datasource"} <= variables


def _rows(place):
    return range(place["y"], place["y"] + place["h"])
