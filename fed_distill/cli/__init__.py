"""The command line; it may import the apps of both server and sites."""
