"""How a plan is trained: optimizers, schedules, and the trainers that run phases for merchants and the server."""
