"""The Hugging Face architectures that export and import know; a new one is a module and a line."""

from __future__ import annotations

from toolkit.megatron.convert.families import Family
from toolkit.megatron.convert.gpt2 import GPT2
from toolkit.megatron.convert.llama import LLAMA, QWEN2, QWEN3

FAMILIES: tuple[Family, ...] = (LLAMA, QWEN2, QWEN3, GPT2())
