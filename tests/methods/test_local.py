"""Local training merges nothing; personal adaptation does not even send the weights."""

from fed_distill.methods.local import Local
from fed_distill.methods.personal import Personal
from fed_distill.payloads.student_update import StudentUpdate


def test_the_global_student_stays_as_it_was(state, uplinks, server):
    for method in (Local(), Personal()):
        merged = method.merge(state, uplinks, server)
        assert (merged.round, merged.weights) == (5, state.weights)


def test_local_students_are_sent_to_be_measured(state, trained):
    up = Local().uplink(trained, Local().broadcast(state))
    assert up.need(StudentUpdate).arrays["w"].tolist() == [2.0, -2.0]
    assert Local.keeps != "own_student"


def test_personal_students_stay_at_the_merchant(state, trained):
    up = Personal().uplink(trained, Personal().broadcast(state))
    assert (up.merchant, up.examples, up.payloads) == ("a", 10, ())
    assert Personal.keeps == "own_student"


def test_both_train_on_private_labels(state):
    for method in (Local(local_epochs=3), Personal(local_epochs=3)):
        (phase,) = method.plan(method.broadcast(state)).phases
        assert (phase.data, phase.epochs) == ("private", 3)
