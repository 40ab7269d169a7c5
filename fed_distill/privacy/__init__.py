"""Differential privacy of what leaves a merchant."""
