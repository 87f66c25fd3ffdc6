"""Megatron checkpoints to Hugging Face folders and back, behind a gate that compares logits.

``mapping`` says how one Megatron tensor holds one or more of Hugging Face's; ``llama`` and ``gpt2``
are the two tables; ``export`` and ``import_hf`` are the stages; ``gate`` compares what was written.
"""
