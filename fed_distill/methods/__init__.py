"""Federated methods by name, one file each."""

from fed_distill.registry import Registry

METHODS = Registry(
    "method",
    {
        "personal": "fed_distill.methods.personal:Personal",
        "local": "fed_distill.methods.local:Local",
        "fedavg": "fed_distill.methods.fedavg:FedAvg",
        "fedprox": "fed_distill.methods.fedprox:FedProx",
        "fedntd": "fed_distill.methods.fedntd:FedNTD",
        "moon": "fed_distill.methods.moon:MOON",
        "scaffold": "fed_distill.methods.scaffold:Scaffold",
        "fml": "fed_distill.methods.fml:FML",
        "fedkd": "fed_distill.methods.fedkd:FedKD",
        "fedavg-kd": "fed_distill.methods.fedavg_kd:FedAvgKD",
        "fedmd": "fed_distill.methods.fedmd:FedMD",
        "feddf": "fed_distill.methods.feddf:FedDF",
        "pate": "fed_distill.methods.pate:PATE",
        "dsfl": "fed_distill.methods.dsfl:DSFL",
        "cronus": "fed_distill.methods.cronus:Cronus",
        "selective-fd": "fed_distill.methods.selective_fd:SelectiveFD",
        "selective-fd-kulsif": "fed_distill.methods.selective_fd_kulsif:SelectiveFDKuLSIF",
        "expert-fd": "fed_distill.methods.expert_fd:ExpertFD",
        "fedet": "fed_distill.methods.fedet:FedET",
        "fedmkt": "fed_distill.methods.fedmkt:FedMKT",
        "lp-mst": "fed_distill.methods.lp_mst:LPMST",
        "fd": "fed_distill.methods.fd:FD",
        "fedproto": "fed_distill.methods.fedproto:FedProto",
        "fedtgp": "fed_distill.methods.fedtgp:FedTGP",
    },
)
