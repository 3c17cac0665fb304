"""HTTP: the same handlers for the standalone server and for Jupyter."""
