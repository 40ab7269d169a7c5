"""Partial coverage: teachers that are files have labels for some examples only, and are never asked for others.

The proxy set is restricted to the examples that at least one teacher covers; a teacher has no weight on the others.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fed_distill.config import Experiment
from fed_distill.data.examples import Examples, FederatedData
from fed_distill.distill.transfer import FEATURES
from fed_distill.errors import ConfigError, DataError
from fed_distill.models import TextModel
from fed_distill.models.labels_file import LabelsFile


def covered(teachers: Sequence[TextModel], examples: Examples) -> Tensor:
    """Return which examples each teacher has a prediction for, bool ``[teachers, n]``."""
    return torch.stack([teacher.covers(examples.texts, examples.pairs) for teacher in teachers])


def check_labels_files(experiment: Experiment, teachers: Sequence[TextModel], data: FederatedData) -> None:
    """Check what an experiment requires of teachers that are files; ``teachers`` without domains.

    :raises ConfigError: an experiment uses more than probabilities of a file
    :raises DataError: a file covers too few examples
    """
    distill = experiment.distill
    hidden = [kind for kind in distill.transfer if kind in FEATURES]
    if hidden and isinstance(teachers[0], LabelsFile):
        raise ConfigError(
            f"distill.transfer has {hidden[0]!r}, which requires hidden states, and the first teacher is a file of "
            'labels: remove it, use "probabilities", or put the file into teacher.ensemble'
        )
    found = covered(teachers, data.proxy)
    for teacher, own in zip(teachers, found, strict=True):
        if isinstance(teacher, LabelsFile):
            share = float(own.float().mean())
            if share < teacher.min_coverage or not share:
                raise DataError(
                    f"{teacher.path} has labels for {int(own.sum()):,} of {len(data.proxy):,} proxy examples, "
                    f"{share:.1%}, and min_coverage is {teacher.min_coverage:.1%}: label more of them, or lower the "
                    "teacher's option min_coverage"
                )
    if distill.hard_weight < 1.0:
        merchants = data.merchants.values() if "pooled" in experiment.controls else ()
        parts = [data.public, *(merchant.train for merchant in merchants)]
        lacking = sum(int((~covered(teachers, part).any(dim=0)).sum()) for part in parts)
        if lacking:
            raise ConfigError(
                f"distill.hard_weight = {distill.hard_weight} requires the teachers' labels of all labelled examples, "
                f"and {lacking:,} of {sum(map(len, parts)):,} have none: set it to 1, add them to the file, or add a "
                "teacher that is a model to teacher.ensemble"
            )
