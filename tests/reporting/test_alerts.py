"""The example rules are of Prometheus' form, and ask only for metrics that there are."""

import re
from pathlib import Path

import pytest
import yaml

from fed_distill.endpoint import as_text
from fed_distill.merchant.metrics import SiteMetrics
from fed_distill.reporting.run_metrics import RunMetrics
from fed_distill.serving.service_metrics import ServiceMetrics

DOCS = Path(__file__).parents[2] / "docs"
FOREIGN = {"up", "node_filesystem_avail_bytes", "node_filesystem_size_bytes", "probe_ssl_earliest_cert_expiry"}
"""Metrics of Prometheus itself, of node_exporter and of blackbox_exporter."""
GROUPS = yaml.safe_load((DOCS / "alerts.yml").read_text(encoding="utf-8"))["groups"]
RULES = [rule for group in GROUPS for rule in group["rules"]]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Names of all metrics of a server, a site and a service."""
    site = SiteMetrics(tmp_path_factory.mktemp("metrics"), "north", tmp_path_factory.mktemp("ledgers"), lambda _: None)
    text = as_text(RunMetrics()._registry) + as_text(site.registry()) + ServiceMetrics().text()
    return {
        name
        for name, kind in re.findall(r"^# TYPE (\w+) (\w+)$", text.decode(), re.MULTILINE)
        if not name.endswith("_created")
    }


def series(named):
    """The metrics of which these series are: a histogram has several."""
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in named}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_a_rule_asks_for_metrics_that_there_are(rule, exported):
    assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
    assert rule["annotations"]["summary"] and rule["annotations"]["action"]
    named = set(re.findall(r"\b(?:fed_distill|node|probe)_\w+|\bup\b", rule["expr"]))
    assert named and series(named) <= exported | FOREIGN


def test_every_alert_that_was_asked_for_is_there():
    names = [rule["alert"] for rule in RULES]
    wanted = {"RunFailed", "NoProgress", "ManyUplinksRejected", "EpsilonNearlySpent", "SiteAbsent", "DiskNearlyFull"}
    wanted |= {"CertificateExpires"}
    assert wanted <= set(names) and len(names) == len(set(names))


def test_the_guide_names_every_metric_and_no_other(exported):
    guide = (DOCS / "how-to" / "observability.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`(fed_distill_[a-z_]+)`", guide)) == exported
