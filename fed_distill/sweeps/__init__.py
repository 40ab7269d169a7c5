"""Sweeps of runs: studies over grids, and tuning with Optuna."""
