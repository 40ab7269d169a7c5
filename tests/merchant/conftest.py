"""A site with merchants of the tiny marketplace, and requests to it."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from fed_distill import seeds
from fed_distill.data import load
from fed_distill.merchant.opening import open_site
from fed_distill.models import build_student
from fed_distill.payloads.soft_labels import SoftLabels
from fed_distill.payloads.student_weights import StudentWeights
from fed_distill.transport.messages import Downlink
from fed_distill.transport.requests import TrainRequest, blueprint_of

METHODS = ("fedmd", "fd", "fedproto", "moon", "fml", "fedkd", "scaffold")
"""Those that requests may be for, beside the experiment's own."""


@pytest.fixture(scope="session")
def tiny_data(tiny_experiment, tmp_path_factory):
    return load(tiny_experiment(tmp_path_factory.mktemp("unused")).data)


@pytest.fixture
def world(tiny_experiment, tiny_data, tmp_path):
    """All that a round at a site needs: experiment, data, start, and functions for site, downlink and request."""
    experiment = tiny_experiment(tmp_path, {"compare": [{"method": method} for method in METHODS]})
    with seeds.scope(0, "start"):
        student = build_student("two-tower", experiment.student.options, tiny_data.task)
    start = {name: value.clone() for name, value in student.state_dict().items()}
    classes = len(tiny_data.task.classes)
    draw = torch.Generator().manual_seed(0)
    labels = torch.rand(len(tiny_data.proxy), classes, generator=draw).softmax(dim=-1)

    def request(*merchants, arm="fedavg-kd", test=False, rounds=1):
        blueprints = {"two-tower": blueprint_of(student)}
        return TrainRequest(
            arm, 0, merchants, ("two-tower",) * len(merchants), blueprints, (rounds,) * len(merchants), 5, 0.01, test
        )

    return SimpleNamespace(
        experiment=experiment,
        data=tiny_data,
        student=student,
        start=start,
        names=sorted(tiny_data.merchants),
        site=lambda part=0, parts=1: open_site(experiment, part, parts),
        down=lambda number=1: Downlink(number, (StudentWeights(start), SoftLabels(labels))),
        consensus=lambda number: Downlink(number, (SoftLabels(labels),)),
        request=request,
        having=lambda site, merchants: replace(site, holdings=replace(site.holdings, merchants=merchants)),
    )
