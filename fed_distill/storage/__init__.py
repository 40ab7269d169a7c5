"""Files, checkpoints and fingerprints: what a run keeps on disk, written atomically."""
