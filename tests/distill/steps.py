"""Each key of an optimizer at another value (``to``), and what it must be of to matter (``of``)."""

import pytest

OTHER_STEPS = [
    pytest.param(change, id=next(iter(change["to"])))
    for change in (
        {"to": {"optimizer": "sgd"}},
        {"to": {"learning_rate": 2e-2}},
        {"to": {"schedule": "constant"}},
        {"to": {"warmup_share": 0.6}},
        {"to": {"momentum": 0.9}, "of": {"optimizer": "sgd"}},
        {"to": {"weight_decay": 0.3}},
        {"to": {"clip_norm": 1e-3}, "of": {"optimizer": "sgd"}},  # adamw takes out a common factor
    )
]
