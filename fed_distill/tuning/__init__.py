"""Tuning: settings searched by Optuna on validation data, pruned round by round, and resumed where they stopped."""
