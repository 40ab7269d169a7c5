"""The run folder, its tables, charts and report, and callbacks."""
