"""Pretraining on megatron-core: model, data, loop, checkpoints, and Hugging Face conversion."""
