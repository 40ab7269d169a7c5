"""What a federated round costs: our trainers beside a plain loop and other people's simulators, on one workload."""
