"""The cohort trainer: many merchants as one tensor program."""
