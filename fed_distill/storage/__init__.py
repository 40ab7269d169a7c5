"""Files, checkpoints and fingerprints of a run, written atomically."""
