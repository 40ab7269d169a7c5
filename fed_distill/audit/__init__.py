"""Attacks on trained students, and lower bounds on what they leak."""
