"""Losses, soft labels, the teacher and domain adaptation: distillation, with no federation in here."""
