"""Models of a distillation chain: its assistants, the student below them, and two controls of that student."""

from collections.abc import Callable

from fed_distill.config import Experiment
from fed_distill.experiment.student_factory import StudentFactory
from fed_distill.models import TextModel


def chain_models(
    experiment: Experiment, factory: StudentFactory, student: Callable[[], TextModel]
) -> dict[str, Callable[[], TextModel]]:
    """Return a function for each evaluated model of a chain, by title; empty without assistants.

    :param student: returns the student distilled through the chain
    """
    if not experiment.distill.assistants:
        return {}
    name, epochs = experiment.student.model, experiment.training.server.epochs

    def fresh(how: str) -> TextModel:
        model = factory.student(name)
        factory.callbacks.on_stage(f"seed {factory.seed} · {name} {how}", None)
        factory.pretrain_on_domain(model, name, factory.step)
        return model

    def one_step() -> TextModel:
        model = fresh("in one step")
        target, step = factory.teaching.target, factory.step
        model.load_state_dict(dict(factory.distilled(model, target, epochs, step, "server", name)))
        return model

    def no_teacher() -> TextModel:
        model = factory.student(name)
        model.load_state_dict(dict(factory.start(name, "labels")[0]))
        return model

    def assistant(place: int) -> Callable[[], TextModel]:
        return lambda: factory.levels[place].model

    return {
        **{
            f"assistant {place + 1}: {one.model}": assistant(place)
            for place, one in enumerate(experiment.distill.assistants)
        },
        "student": student,
        "student in one step": one_step,
        "student without a teacher": no_teacher,
    }
