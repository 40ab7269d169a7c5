"""Whole runs of what a student is taught: every kind of transfer, levels beside their controls, several teachers."""

import json
from itertools import combinations

import pytest
import torch

from fed_distill.errors import ConfigError, DataError
from fed_distill.experiment.teaching import TeacherEnsemble
from fed_distill.storage.checkpoints import read_checkpoint

SMALL_LSTM = {"model": "lstm", "options": {"rows": 512, "width": 8}}
PRIVATE = {"privacy__unit": "example", "privacy__epsilon": 50.0}
ANY = ("probabilities", "decoupled", "correlation", "decisions", "hints", "hidden", "attention", "relations")
KINDS = {"lstm": (*ANY, "ranking", "listwise", "contrastive"), "two-tower": ("probabilities", "embeddings")}


@pytest.fixture
def summary_of(tiny_experiment, simulate, tmp_path):
    """A function: the summary of a run with these changes, of one round and few controls."""

    def run(**changes):
        quick = {"controls": ["server"], "federation.rounds": 1, "adaptation.enabled": False}
        changes = {key.replace("__", "."): value for key, value in changes.items()}
        folder, _ = simulate(tiny_experiment(tmp_path, {**quick, **changes}))
        return json.loads((folder / "summary.json").read_text(encoding="utf-8"))

    return run


@pytest.fixture
def taught(tmp_path):
    """A function: the weights of the server's student in a run of this name, as one vector."""

    def read(name, student="two-tower"):
        tensors, _ = read_checkpoint(
            tmp_path / name / "checkpoint" / "seed-0" / "server" / student / "final.safetensors"
        )
        return torch.cat([tensors[key].flatten() for key in sorted(tensors)])

    return read


@pytest.mark.parametrize("student", KINDS)
def test_every_kind_of_transfer_runs_and_each_teaches_something_else(summary_of, taught, student):
    options = {**SMALL_LSTM["options"], "head_width": 8} if student == "two-tower" else SMALL_LSTM["options"]
    plain = {"student.model": student, "student.options": options}
    for kind in KINDS[student]:
        summary_of(**plain, distill__transfer=[kind], name=kind)
    summary_of(**plain, distill__transfer=list(KINDS[student]), name="together")
    summary_of(**plain, distill__standardize=True, name="standardized")
    found = [taught(name, student) for name in (*KINDS[student], "together", "standardized")]
    assert not any(torch.equal(one, other) for place, one in enumerate(found) for other in found[:place])
    assert all(bool(torch.isfinite(one).all()) for one in found)


def test_levels_are_reported_beside_one_step_and_no_teacher(summary_of, tmp_path):
    summary = summary_of(
        distill__assistants=[{"model": "bert-mini", "options": {"layers": 1, "width": 16}, "epochs": 1}, SMALL_LSTM],
        training__server={"epochs": 6},  # so long that what a student was taught with shows in its predictions
    )
    levels = summary["levels"]
    assert list(levels) == [
        "assistant 1: bert-mini",
        "assistant 2: lstm",
        "student",
        "student in one step",
        "student without a teacher",
    ]
    assert levels["student"]["ndcg@10"] == summary["controls"]["server"]["ndcg@10"]
    assert levels["student in one step"] != levels["student"]
    assert levels["student without a teacher"] != levels["student in one step"]
    assert {level["retention"] for level in levels.values()} == {None}  # of a teacher that is no better than chance
    assert (
        levels["student"]["parameters"] == summary["student"]["parameters"] != levels["assistant 2: lstm"]["parameters"]
    )
    report = (tmp_path / "tiny" / "report.html").read_text(encoding="utf-8")
    assert "From the teacher down to the student" in report
    assert "assistant 2: lstm" in report


def test_the_one_step_control_is_what_a_run_without_assistants_gives(summary_of):
    chain = summary_of(distill__assistants=[SMALL_LSTM], name="chain")
    alone = summary_of(name="alone")
    assert chain["levels"]["student in one step"]["ndcg@10"] == alone["controls"]["server"]["ndcg@10"]
    assert alone["levels"] == {}


def test_a_student_may_hear_its_last_assistant_alone(summary_of):
    """As in the paper of Mirzadeh et al.; the control in one step hears the teacher all the same."""
    both = summary_of(distill__assistants=[SMALL_LSTM], name="both")["levels"]
    alone = summary_of(distill__assistants=[SMALL_LSTM], distill__transfer=[], name="alone")["levels"]
    assert alone["student"]["auc"] != both["student"]["auc"]
    for level in ("assistant 1: lstm", "student in one step", "student without a teacher"):
        assert alone[level]["auc"] == both[level]["auc"]


def test_an_assistant_is_trained_once_for_all_runs(summary_of, tiny_experiment, simulate, tmp_path):
    class Stages(list):
        def __getattr__(self, name):
            return lambda *arguments: self.append(arguments[0]) if name == "on_stage" else None

    experiment = tiny_experiment(
        tmp_path, {"controls": ["server"], "federation.rounds": 1, "distill.assistants": [SMALL_LSTM], "seed": 7}
    )
    first, second = Stages(), Stages()
    simulate(experiment, callbacks=[first])
    simulate(experiment.with_changes({"name": "again", "federation.rounds": 2}), callbacks=[second])
    assert "seed 7 · assistant 1: lstm" in first
    assert "seed 7 · assistant 1: lstm" not in second


def test_several_teachers_teach_as_one_and_each_way_to_combine_them_teaches_something_else(summary_of, taught):
    alone = summary_of(name="alone")
    found = [taught("alone")]
    for combine in ("mean", "confidence", "similarity"):
        several = {"teacher__ensemble": [{"seed": 1}], "teacher__domains": 2, "teacher__combine": combine}
        summary = summary_of(**several, name=combine)
        assert summary["teacher"]["parameters"] == 4 * alone["teacher"]["parameters"]
        found.append(taught(combine))
    assert not any(torch.equal(one, other) for one, other in combinations(found, 2))


def test_an_assistant_below_another_hears_that_one_alone_on_labelled_examples_too(summary_of, taught, monkeypatch):
    """The teacher is asked about these for the first assistant, the student, and the student in one step."""
    heard = []
    spoken = TeacherEnsemble.labels

    def labels(self, what, examples):
        heard.append(what)
        return spoken(self, what, examples)

    monkeypatch.setattr(TeacherEnsemble, "labels", labels)
    two = [{**SMALL_LSTM, "epochs": 1}, {"model": "bert-mini", "options": {"layers": 1, "width": 16}, "epochs": 1}]
    summary_of(distill__assistants=two, distill__hard_weight=0.5, seed=9)
    assert heard.count("labelled examples") == 3


PRIVATE = {"privacy__unit": "example", "privacy__epsilon": 50.0}
BERT = {"width": 16, "heads": 2, "rows": 1024, "layers": 1}


@pytest.mark.parametrize(
    ("adapters", "private"),
    [
        ({"lora_rank": 2}, {}),
        ({"lora_rank": 2}, PRIVATE),
        ({"prefix_length": 2}, {}),
        ({"prefix_length": 2}, PRIVATE),
        ({"ia3": True}, {}),
    ],
)
def test_merchants_send_adapters_and_head_alone(summary_of, taught, adapters, private):
    plain = summary_of(student__model="bert-mini", student__options=BERT, name="plain", **private)
    adapted = summary_of(student__model="bert-mini", student__options={**BERT, **adapters}, name="adapted", **private)
    sent = [one["bytes"]["uplink_per_merchant_round"] for one in (adapted, plain)]
    assert sent[0] < sent[1] / 3
    whole, started = taught("adapted", "bert-mini"), adapted["student"]["parameters"]
    assert len(whole) == started  # the server's student has been trained as a whole


def test_adapters_whose_use_shows_no_examples_gradient_are_refused_under_its_privacy(summary_of):
    with pytest.raises(ConfigError, match=r"student option ia3: use lora_rank or prefix_length"):
        summary_of(student__model="bert-mini", student__options={**BERT, "ia3": True}, **PRIVATE)


def test_reading_the_domain_and_gradual_unfreezing_change_what_is_learned(summary_of, taught):
    options = {"rows": 1024, "width": 8}
    plain = {"student__model": "lstm", "student__options": options, "adaptation__enabled": True}
    summary_of(**plain, name="plain")
    summary_of(**plain, name="read", student__masked={"epochs": 1.0}, teacher__masked={"epochs": 0.5})
    freed = summary_of(**plain, name="freed", adaptation__unfreeze=True)
    assert not torch.equal(taught("plain", "lstm"), taught("read", "lstm"))
    assert torch.equal(taught("plain", "lstm"), taught("freed", "lstm"))
    assert len(freed["federations"]["fedavg-kd"]["adaptation"]["notes"]["0"]) == 3


def test_a_federation_stops_when_validation_no_longer_rises_and_keeps_its_best_round(
    tiny_experiment, simulate, tmp_path
):
    """With a rate at which it can only get worse, it stops after as many rounds more as it has patience."""
    changes = {
        "controls": ["server"],
        "adaptation.enabled": False,
        "federation.rounds": 8,
        "federation.patience": 2,
        "training.merchants.learning_rate": 3.0,
    }
    folder, _ = simulate(tiny_experiment(tmp_path, changes))
    rounds = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    scores = [one["valid"]["ndcg@10"] for one in rounds]
    best = scores.index(max(scores))
    assert len(scores) == best + 3 < 8
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert summary["federations"]["fedavg-kd"]["validation"]["ndcg@10"] == pytest.approx(scores[best])
    sent = [one["bytes"]["uplink"] for one in rounds]
    assert summary["bytes"]["uplink_per_merchant_round"] == pytest.approx(sum(sent) / len(sent), abs=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distill.transfer": ["attention"]}, "attention requires states per position"),
        ({"distill.transfer": ["hints", "hints"]}, "transfer names hints twice"),
        ({"distill.weights": {"hints": 2.0}}, "weights has hints, which is not in transfer"),
        ({"training.r_drop": 1.0}, "student two-tower does not have"),
        ({"student.masked.epochs": 1.0}, "two-tower has no token-level inputs"),
        ({"distill.transfer": ["hidden"], "federation": {"method": "dsfl"}}, "has no kind that uses soft labels"),
        ({"distill.transfer": ["hidden"], "federation": {"method": "pate"}}, "has no kind that uses soft labels"),
        (
            {"federation": {"method": "fedmd", "aggregator": "krum"}},
            "aggregator krum has no effect: method fedmd does not average weights",
        ),
        ({"federation": {"method": "pate", "aggregator_options": {"weight": "examples"}}}, "does not average weights"),
        (
            {"training.augmentation": {"synonyms": 0.3, "dictionary": "none.txt"}},
            "cannot read the synonyms of training.augmentation.dictionary, none.txt",
        ),
        (
            {"training.augmentation": {"translated": 0.3, "back_translation": ["there", "back"]}},
            "cannot load the translation model 'there'",
        ),
        (
            {"training.adversarial.attack": "fgm", "privacy.unit": "example", "privacy.epsilon": 8.0},
            "clips the gradient of one pass over an example",
        ),
    ],
)
def test_what_cannot_be_taught_is_said_before_anything_is_written(
    tiny_experiment, simulate, tmp_path, changes, message
):
    with pytest.raises((ConfigError, DataError), match=message):
        simulate(tiny_experiment(tmp_path / "runs", changes))
    assert not (tmp_path / "runs").exists()
