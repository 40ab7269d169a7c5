"""Deployment across sites: keys, folders, checks, the SuperNode and the two Flower apps."""
