"""Merchants of very different sizes for every kind of student, and a plan with private and proxy phases."""

from types import SimpleNamespace

import pytest
import torch

from fed_distill import seeds
from fed_distill.data.tasks import HISTORY_SEPARATOR
from fed_distill.distill.losses import hard_labels, soft_labels
from fed_distill.methods.fd import regularized
from fed_distill.methods.fedet import consensus_and_diversity
from fed_distill.methods.fedkd import FedKD
from fed_distill.methods.fedmkt import FedMKT
from fed_distill.methods.fedntd import FedNTD
from fed_distill.methods.fedproto import to_expected_prototypes, to_prototypes
from fed_distill.methods.fml import FML
from fed_distill.methods.moon import MOON
from fed_distill.methods.scaffold import Scaffold
from fed_distill.methods.selective_fd import weighted
from fed_distill.models import build_student
from fed_distill.models.pair import Pair
from fed_distill.payloads.class_means import ClassMeans
from fed_distill.payloads.prototypes import Prototypes
from fed_distill.payloads.soft_labels import SoftLabels
from fed_distill.training.plan import Phase, Plan
from fed_distill.training.trainer import Learner
from fed_distill.transport.messages import Downlink

SMALL = {
    "two-tower": {"rows": 512, "width": 8, "head_width": 8},
    "static": {"width": 8, "head_width": 8},
    "history-tower": {"rows": 512, "width": 8, "head_width": 8, "history": 2, "layers": 2},
    "lstm": {"rows": 256, "width": 8},
    "bert-mini": {"rows": 256, "width": 16, "heads": 2},
    "distilbert": {"rows": 256, "width": 16, "heads": 2},
    "mobilebert": {"rows": 256, "width": 16, "heads": 2},
}
SIZES = (5, 50, 23, 31, 16)


@pytest.fixture
def small_student(task, wordpiece_teacher, make_examples):
    """A function: a small student of a kind, always with the same weights."""
    teacher, texts = wordpiece_teacher(task), make_examples(20).texts

    def make(kind, **options):
        with seeds.scope(0, "small student"):
            return build_student(kind, {**SMALL[kind], **options}, task, teacher, texts)

    return make


@pytest.fixture
def pair(small_student):
    """A two-tower that is shared, and an LSTM of a merchant's own."""
    shared, own = ({"kind": one.kind, "settings": one.settings} for one in map(small_student, ("two-tower", "lstm")))
    with seeds.scope(0, "pair"):
        return Pair(shared=shared, own=own)


def encoded(student, examples):
    """Examples of a student, for one of histories with a title for each word."""
    texts = examples.texts
    if student.kind == "history-tower":
        texts = [text.replace(" ", HISTORY_SEPARATOR) for text in texts]
    return student.encode(texts, examples.pairs)


@pytest.fixture
def merchants(make_examples):
    """A function: learners of uneven sizes that share a student, its start and the proxy set."""

    def make(student, privacy=None, sizes=SIZES):
        start = {name: value.clone() for name, value in student.state_dict().items()}
        proxy = make_examples(40, seed=99)
        encoded_proxy = encoded(student, proxy)
        learners = []
        for number, size in enumerate(sizes):
            examples = make_examples(size, seed=number)
            learners.append(
                Learner(
                    f"shop {number}",
                    student,
                    start,
                    private=encoded(student, examples),
                    labels=torch.from_numpy(examples.labels),
                    proxy=encoded_proxy,
                    randomness=(7, "arm", f"shop {number}", 1),
                    privacy=privacy,
                )
            )
        return learners

    return make


@pytest.fixture
def plans():
    """Plans by name: what the built-in methods train."""
    drawn = torch.randn(40, 3, generator=seeds.torch_stream(3))
    references = {"soft_labels": torch.softmax(drawn, dim=-1)}
    private = Phase(hard_labels(), epochs=2)
    digest = Phase(soft_labels(1.0), data="proxy", epochs=1, references=references)
    clear = Phase(
        weighted(soft_labels(1.0)),
        data="proxy",
        epochs=1,
        references={**references, "example_weights": torch.linspace(0.0, 2.0, 40)},
    )
    means = ClassMeans(references["soft_labels"][:3], torch.ones(3, dtype=torch.bool))
    diverse = Phase(
        consensus_and_diversity(0.5),
        data="proxy",
        epochs=2,
        references={
            **references,
            "disagreeing": references["soft_labels"].roll(1, dims=1),
            "disagreed": torch.arange(40) % 2.0,
        },
    )
    prototypes = Prototypes(torch.linspace(-1.0, 1.0, 24).reshape(3, 8), torch.tensor([True, True, False]))
    prototyped = Phase(to_prototypes(prototypes, 2.0), epochs=2, hidden=True)
    expected = Phase(
        to_expected_prototypes(prototypes, 0.5), data="proxy", epochs=1, references=references, hidden=True
    )
    down = Downlink(1)
    proxy = Phase(soft_labels(2.0), data="proxy", steps=3, references=references, learning_rate_scale=0.5)
    return SimpleNamespace(
        fedavg=Plan((private,)),
        fedprox=Plan((Phase(hard_labels(), epochs=1.5, proximal_mu=0.3),)),
        fedavg_kd=Plan((private, proxy)),
        fedmd=Plan((digest, private)),
        selective=Plan((clear, private)),
        fd=Plan((Phase(regularized(means, 0.5), epochs=2),)),
        fedet=Plan((diverse,)),
        fedmkt=FedMKT().plan(Downlink(1, (SoftLabels(references["soft_labels"]),))),
        fedntd=FedNTD().plan(down),
        moon=MOON().plan(down),
        scaffold=Scaffold().plan(down),
        fedproto=Plan((prototyped, expected)),
        fml=FML().plan(down),
        fedkd=FedKD().plan(down),
        turns=Plan((private, proxy, Phase(hard_labels(), steps=2), proxy)),
    )
