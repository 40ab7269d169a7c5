"""Use of a trained student: predictions, rankings and vectors."""
