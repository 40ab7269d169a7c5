"""Many runs: studies over grids and tuning by Optuna."""
