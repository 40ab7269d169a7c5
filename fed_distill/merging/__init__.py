"""How the merchants' weights become one: aggregators by name.

All but ``fedsubavg`` are Flower's own strategies.
"""

from fed_distill.registry import Registry

AGGREGATORS = Registry(
    "aggregator",
    {
        "fedavg": "fed_distill.merging.flower:FedAvg",
        "fedavgm": "fed_distill.merging.flower:FedAvgM",
        "fedadam": "fed_distill.merging.flower:FedAdam",
        "fedadagrad": "fed_distill.merging.flower:FedAdagrad",
        "fedyogi": "fed_distill.merging.flower:FedYogi",
        "fedmedian": "fed_distill.merging.flower:FedMedian",
        "fedtrimmedavg": "fed_distill.merging.flower:FedTrimmedAvg",
        "krum": "fed_distill.merging.flower:Krum",
        "multikrum": "fed_distill.merging.flower:MultiKrum",
        "bulyan": "fed_distill.merging.flower:Bulyan",
        "fedsubavg": "fed_distill.merging.fedsubavg:FedSubAvg",
    },
)
