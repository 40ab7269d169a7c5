"""FedProx is FedAvg with the pull of eq. 2 in every merchant's phase."""

from fed_distill.methods.fedprox import FedProx
from fed_distill.payloads.student_update import StudentUpdate


def test_the_private_phase_is_held_near_the_downlink(state):
    method = FedProx(local_epochs=2, proximal_mu=0.3)
    (phase,) = method.plan(method.broadcast(state)).phases
    assert (phase.data, phase.epochs, phase.proximal_mu) == ("private", 2, 0.3)


def test_everything_else_is_fedavg(state, trained, uplinks, server):
    method = FedProx()
    assert method.broadcast(state).weights is state.weights
    up = method.uplink(trained, method.broadcast(state))
    assert up.need(StudentUpdate).arrays["w"].tolist() == [2.0, -2.0]
    merged = method.merge(state, uplinks, server)
    assert (merged.round, merged.weights["w"].tolist()) == (5, [111.0, 222.0])
