"""Hooks of the documentation's build: reference pages from the code, and links to files of the repository."""
