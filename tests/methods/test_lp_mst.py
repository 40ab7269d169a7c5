"""LP-MST: merchants train nothing and send their randomized labels, on which the server trains."""

import numpy as np
import pytest
import torch

from fed_distill.data.examples import Examples
from fed_distill.errors import UplinkRejected
from fed_distill.methods.lp_mst import LPMST
from fed_distill.payloads.released_labels import ReleasedLabels
from fed_distill.payloads.student_weights import StudentWeights
from fed_distill.transport.messages import Uplink


def uplink(merchant, count, claimed=None):
    texts = tuple(f"{merchant} {row}" for row in range(count))
    none = np.full(count, -1)
    outputs = torch.tensor([[0, 1, 2]] * count, dtype=torch.int64).reshape(count, 3)
    sent = ReleasedLabels.of(Examples(texts, None, none, none, (merchant,) * count), torch.arange(count) % 3, outputs)
    return Uplink(merchant, count if claimed is None else claimed, (sent,))


def test_merchants_get_the_student_train_nothing_and_send_what_was_randomized(state, trained):
    method = LPMST()
    down = method.broadcast(state)
    assert (down.round, down.kinds) == (5, {StudentWeights})
    assert method.plan(down).phases == ()
    sent = method.uplink(trained, down)
    assert (sent.merchant, sent.examples, sent.kinds) == ("a", 2, {ReleasedLabels})
    released = sent.need(ReleasedLabels)
    assert released.examples("a").texts == ("shoes", "tent")
    assert released.labels.tolist() == [2, 0]


def test_the_server_trains_on_all_of_them_from_where_the_student_is(state, server):
    merged = LPMST(passes=3, learning_rate_scale=0.5).merge(state, iter([uplink("a", 4), uplink("b", 2)]), server)
    ((released, passes, scale),) = server.released
    assert {merchant: len(sent.labels) for merchant, sent in released.items()} == {"a": 4, "b": 2}
    assert (passes, scale) == (3, 0.5)
    assert merged.round == state.round + 1
    torch.testing.assert_close(merged.weights["w"], state.weights["w"] + 1.0)


def test_a_merchant_has_no_more_labels_than_it_counts_for(state, server):
    """The server truncates what merchants claim (``federation.max_share``), and so what they send."""
    LPMST().merge(state, iter([uplink("a", 10, claimed=4), uplink("b", 3)]), server)
    ((released, _, _),) = server.released
    assert released["a"].examples("a").texts == ("a 0", "a 2", "a 5", "a 7")
    assert released["a"].labels.tolist() == [0, 2, 2, 1]
    assert len(released["b"].labels) == 3


def test_without_any_label_there_is_no_round(state, server):
    with pytest.raises(UplinkRejected, match="no merchant sent randomized labels"):
        LPMST().merge(state, iter([]), server)
    assert not server.released
