"""Adapt a federation's global student to the domain, at the server."""

from fed_distill.coordinator.evaluation import Evaluator
from fed_distill.distill.adapt import AdaptationStage, Adapted, adapt, domain_stages
from fed_distill.distill.losses import hard_labels
from fed_distill.evaluation.resampling import Resampled
from fed_distill.experiment.student_factory import StudentFactory
from fed_distill.models.freezing import frozen, layers_of
from fed_distill.models.weights import Weights
from fed_distill.training.plan import Phase
from fed_distill.training.preparation import steps_of


def adapted_to_domain(factory: StudentFactory, evaluator: Evaluator, arm: str, weights: Weights) -> Adapted:
    """Adapt the global student of ``arm`` on the server's data, with model selection on the validation set.

    For a private federation that is the server's own validation set, as results must not depend on merchants'
    validation examples.
    """
    experiment, seed, callbacks = factory.experiment, factory.seed, factory.callbacks
    config = experiment.adaptation
    student = factory.student(experiment.student.model)
    target = factory.target.at(1.0)
    prepared = target.prepared(student, seed, arm, "adapt")
    layers = layers_of(student) if config.unfreeze else ()
    optimizer = config.over(experiment.training.server)
    fine_tune = Phase(hard_labels(), epochs=config.epochs)
    steps = steps_of(fine_tune, len(factory.server.data.public), experiment.training.server.batch_size)
    stages = domain_stages(target.phase(prepared, config.epochs), steps, layers)

    def train(current: Weights, stage: AdaptationStage) -> Weights:
        callbacks.on_stage(f"seed {seed} · {arm}: {stage.title}", None)
        for number, part in enumerate(stage.parts):
            purpose: tuple[str | int, ...] = (arm, "adapt", stage.title, *([number] if number else []))
            with frozen(student, part.frozen):
                current = factory.server.train(prepared, current, part.plan, (seed, *purpose), optimizer, factory.step)
        return current

    def validate(current: Weights) -> Resampled:
        student.load_state_dict(dict(current))
        if experiment.protects(arm):
            return evaluator.public_resampled(student)
        return evaluator.validation_resampled(student)

    adapted = adapt(weights, stages, train, validate)
    for note in adapted.notes:
        callbacks.on_message(note)
    return adapted
