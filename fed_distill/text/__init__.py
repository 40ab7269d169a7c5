"""Tokenizing, hashing and cleaning of strings."""
