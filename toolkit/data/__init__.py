"""Data: from raw text to Megatron's indexed shards, and conversations for post-training."""
