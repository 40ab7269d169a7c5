"""Training of plans: optimizers, schedules, and trainers for merchants and the server."""
