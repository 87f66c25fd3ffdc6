"""Exact and near deduplication over any number of shards, and n-gram decontamination."""
