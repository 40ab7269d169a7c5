"""Byzantine merchants for simulations: attacks on their training labels and uplinks.

They serve to compare robust aggregators with the mean under attack. Attacks are chosen by name in the table
``[byzantine]``; the Byzantine merchants are drawn from the seed (``adversaries.byzantine``).
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
