"""Compression of messages: stages by name, composed into chains, for updates of weights and for soft labels."""

from fed_distill.registry import Registry

UPDATE_STAGES = Registry(
    "weight stage",
    {
        "float16": "fed_distill.transport.coding.updates:Float16",
        "int8": "fed_distill.transport.coding.updates:Int8",
        "int4": "fed_distill.transport.coding.updates:Int4",
        "sign": "fed_distill.transport.coding.updates:Sign",
        "top-k": "fed_distill.transport.coding.updates:TopK",
        "svd": "fed_distill.transport.coding.updates:SVD",
    },
)
SOFT_LABEL_STAGES = Registry(
    "soft-label stage",
    {
        "float16": "fed_distill.transport.coding.probabilities:Float16Probabilities",
        "int8": "fed_distill.transport.coding.probabilities:Int8Probabilities",
        "int4": "fed_distill.transport.coding.probabilities:Int4Probabilities",
        "log-int4": "fed_distill.transport.coding.probabilities:LogInt4Probabilities",
        "top-k": "fed_distill.transport.coding.probabilities:TopKProbabilities",
    },
)
