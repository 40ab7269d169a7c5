"""The command line, and the simulation that it starts: the one room that may import both sides' apps."""
