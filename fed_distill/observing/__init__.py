"""What an operator sees of runs and sites while they work: log lines as JSON, and metrics for Prometheus."""
