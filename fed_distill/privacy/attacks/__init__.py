"""Audits by attack: what can be found out of a trained student, and what that says of the epsilon that is claimed."""
