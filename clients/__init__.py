"""A site as a deployable: Flower app, container file and example configuration."""
