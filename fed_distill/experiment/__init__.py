"""One experiment from its configuration to its report: preflight, teacher, students, controls and federations."""
