"""Cleaning: documents in, documents out; every one that goes is counted with its reason."""
