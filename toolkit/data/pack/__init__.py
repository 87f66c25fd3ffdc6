"""Stages between tokens and training: packed rows, splits by documents, blends."""
