"""Studies: one experiment along several axes and seeds, each cell run once and kept, and what they say together."""
