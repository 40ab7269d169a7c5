"""What a run leaves behind: metrics, one folder a run, tables and the report."""
