"""Federated methods by name, one file each."""

from fed_distill.registry import Registry

METHODS = Registry(
    "method",
    {
        "personal": "fed_distill.methods.personal:Personal",
        "local": "fed_distill.methods.local:Local",
        "fedavg": "fed_distill.methods.fedavg:FedAvg",
        "fedprox": "fed_distill.methods.fedprox:FedProx",
        "fedavg-kd": "fed_distill.methods.fedavg_kd:FedAvgKD",
        "fedmd": "fed_distill.methods.fedmd:FedMD",
        "feddf": "fed_distill.methods.feddf:FedDF",
        "pate": "fed_distill.methods.pate:PATE",
    },
)
