"""Byzantine merchants, for simulations: what they train on and what they send in place of what they should.

Robust merging is believed when it has been seen beside the plain mean under attack. Attacks are chosen by name in the
table ``[byzantine]``; which merchants they are is drawn from the seed (``adversaries.byzantine``).
"""

from fed_distill.registry import Registry

ATTACKS = Registry(
    "attack",
    {
        "label-flip": "fed_distill.adversaries.attacks:LabelFlip",
        "sign-flip": "fed_distill.adversaries.attacks:SignFlip",
        "scaled": "fed_distill.adversaries.attacks:Scaled",
    },
)
