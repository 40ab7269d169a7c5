"""What a run stands on whatever its method: Flower's grid in this process, seeds, checkpoints and callbacks."""
