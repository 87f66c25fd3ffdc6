"""Launching: from a stage to processes, here or on a cluster."""
