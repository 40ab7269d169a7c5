"""Differential privacy: noise, accounting and ledgers."""
