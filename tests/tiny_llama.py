"""A model and a tokenizer small enough to be made and trained within a test."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

EOS, PAD = "<|endoftext|>", "<|pad|>"
ROLES = """\
{%- for message in messages -%}
    {{- '<|' ~ message['role'] ~ '|>' -}}
    {%- if message['role'] == 'assistant' -%}
        {%- generation -%}{{- message['content'] ~ eos_token -}}{%- endgeneration -%}
    {%- else -%}
        {{- message['content'] -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""
SPECIAL = [EOS, PAD, "<|system|>", "<|user|>", "<|assistant|>", "<|im_start|>", "<|im_end|>"]
TEXTS = [
    "What is the colour of the sky? The sky is blue.",
    "What is the colour of grass? The grass is green.",
    "Name a number. one two three four five six seven eight nine ten",
]


def make_tokenizer(**options: Any) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with roles; ``options`` replace the special tokens' names."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    names = {"eos_token": EOS, "pad_token": PAD, **options}
    named = {key: name for key, name in names.items() if name is not None}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)
    fast.chat_template = ROLES
    return fast


def make_model(folder: Path, tokenizer: Any = None, seed: int = 0, **shape: Any) -> Path:
    """Save a random Llama of hidden size 32 with its tokenizer, as a Hugging Face folder."""
    tokenizer = tokenizer or make_tokenizer()
    torch.manual_seed(seed)
    config = LlamaConfig(
        **{
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 256,
            "initializer_range": 0.2,  # else an adapter can hardly move the logits
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            **shape,
        }
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
