"""Privacy mechanisms by name, one file per privacy unit."""

from fed_distill.registry import Registry

MECHANISMS = Registry(
    "privacy unit",
    {
        "none": "fed_distill.mechanisms.none:Unprotected",
        "example": "fed_distill.mechanisms.example:ByExample",
        "group": "fed_distill.mechanisms.group:ByGroup",
        "label": "fed_distill.mechanisms.label:ByLabel",
        "merchant": "fed_distill.mechanisms.merchant:ByMerchant",
        "vote": "fed_distill.mechanisms.vote:ByVote",
    },
)
