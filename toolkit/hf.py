"""Hugging Face models and tokenizers from artifacts, and from folders made elsewhere.

An adapter is never used apart from its base: it is merged in memory onto the unquantised base,
which may itself be an adapter. (Merging into NF4 weights gave logits off by 1.07.)
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from peft import PeftModel, PeftType
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import GENERATION_CONFIG_NAME
from transformers.utils import logging as transformers_logging

from toolkit.artifacts import Artifact, read_artifact
from toolkit.errors import ToolkitError

logger = logging.getLogger(__name__)
transformers_logging.disable_progress_bar()  # "Loading weights" would garble logs and answers

ADAPTER_CONFIG = "adapter_config.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
UNREADABLE = (OSError, ValueError, RuntimeError, KeyError, SafetensorError)
"""What transformers and peft raise for files that are missing, damaged or don't fit."""


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a model, adapter or tokenizer folder; an adapter without one has its base's.

    Raises:
        ToolkitError: the folder has no tokenizer, or one that transformers can't read.
    """
    folder = Path(folder)
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        if (folder / ADAPTER_CONFIG).is_file():
            return load_tokenizer(base_folder(folder))
        raise ToolkitError(
            f"no tokenizer here (none of {', '.join(TOKENIZER_FILES)})", where=str(folder)
        )
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except UNREADABLE as error:
        raise ToolkitError(
            f"transformers can't read the tokenizer: {error}", where=str(folder)
        ) from error


def load_model(folder: Path, device: str = "cpu", dtype: str = "float32") -> PreTrainedModel:
    """A causal language model, dense, in evaluation mode; adapters are merged, base first.

    Args:
        folder: a ``model`` or ``adapter`` artifact, or such a folder made by another program.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        dtype: ``float32``, ``bfloat16``, ``float16``, or ``auto`` for what the files have.

    Raises:
        ToolkitError: not a model, files damaged, a base that can't be found, or an adapter of a
            method that can't be merged.
    """
    folder = Path(folder)
    artifact = read_artifact(folder)
    if artifact.type == "adapter":
        model = merge(load_adapter(folder, dtype=dtype), folder)
    elif artifact.type == "model":
        model = _dense(folder, dtype)
    else:
        raise ToolkitError(
            f"a {artifact.type}, where a model or an adapter was expected", where=str(folder)
        )
    return model.to(device).eval()


def load_adapter(folder: Path, dtype: str = "float32") -> PeftModel:
    """The adapter applied to (not merged into) its base, which is dense, on the CPU.

    Raises:
        ToolkitError: as ``load_model``.
    """
    require_mergeable(folder)
    base = load_model(base_folder(folder), dtype=dtype)
    if (folder / GENERATION_CONFIG_NAME).is_file():  # where the tuned model stops
        base.generation_config = GenerationConfig.from_pretrained(folder)
    try:
        return PeftModel.from_pretrained(base, folder).eval()
    except UNREADABLE as error:
        raise ToolkitError(
            f"the adapter doesn't fit its base {base_folder(folder)}: {error}", where=str(folder)
        ) from error


def merge(applied: PeftModel, folder: Path) -> PreTrainedModel:
    """The adapter's weights added into its base's; ``applied`` is used up.

    Raises:
        ToolkitError: a variant that PEFT can't merge, or weights that are not finite.
    """
    try:
        merged = applied.merge_and_unload(safe_merge=True)
    except (NotImplementedError, ValueError) as error:
        raise ToolkitError(f"PEFT can't merge this adapter: {error}", where=str(folder)) from error
    merged.requires_grad_(True)  # PEFT froze the base; what is dense again may be trained again
    return merged


def base_folder(folder: Path) -> Path:
    """Where the model lies that an adapter was trained on.

    Our own artifacts name it (``info.base``, one of the ``parents``); a folder made elsewhere has
    ``base_model_name_or_path``, which is a path or a name in the Hugging Face hub's local cache.

    Raises:
        ToolkitError: it is named nowhere, or not there.
    """
    artifact = read_artifact(folder)
    found = _parent_folder(artifact)
    if found is None:
        return _named_base(folder)
    if not found.is_dir():
        raise ToolkitError(
            f"the base that this adapter was trained on is gone: {found}",
            where=str(folder),
            hint="bring it back, or run the stage that made it",
        )
    return found


def require_mergeable(folder: Path) -> None:
    """Refuse adapters that can't be merged into weights: prefix, prompt and p-tuning, X-LoRA.

    Raises:
        ToolkitError: naming the method.
    """
    method = str(adapter_config(folder).get("peft_type"))
    if method not in PeftType.__members__:
        raise ToolkitError(f"unknown PEFT method {method}", where=str(folder / ADAPTER_CONFIG))
    if not hasattr(PEFT_TYPE_TO_TUNER_MAPPING.get(PeftType[method]), "merge_and_unload"):
        raise ToolkitError(
            f"an adapter of the method {method} can't be merged: it adds inputs, not weights",
            where=str(folder),
            hint="methods that merge: LORA (rsLoRA, DoRA, PiSSA), ADALORA, IA3, LOHA, LOKR, OFT, "
            "BOFT, VERA, LN_TUNING",
        )


def adapter_config(folder: Path) -> dict[str, Any]:
    """The content of ``adapter_config.json``.

    Raises:
        ToolkitError: it is missing or not JSON.
    """
    path = folder / ADAPTER_CONFIG
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ToolkitError(f"not a readable adapter config: {error}", where=str(path)) from error


def _parent_folder(artifact: Artifact) -> Path | None:
    base = artifact.info.get("base")
    parents = [p for p in artifact.parents if p.type in ("model", "adapter")]
    named = [p for p in parents if p.reference == base] or parents
    return artifact.parent_folder(named[0]) if len(named) == 1 else None


def _named_base(folder: Path) -> Path:
    name = adapter_config(folder).get("base_model_name_or_path")
    if not name:
        raise ToolkitError(
            "no base model named in adapter_config.json",
            where=str(folder),
            hint="set base_model_name_or_path there to the folder of the model it was trained on",
        )
    for path in (Path(name), folder / name):
        if path.is_dir():
            return path
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (OSError, ValueError) as error:
        raise ToolkitError(
            f"the base model {name} is neither a folder nor in the local Hugging Face cache",
            where=str(folder / ADAPTER_CONFIG),
            hint="download it first, or set base_model_name_or_path to its folder",
        ) from error


def _dense(folder: Path, dtype: str) -> PreTrainedModel:
    try:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
    except UNREADABLE as error:
        raise ToolkitError(
            f"transformers can't load the model: {error}", where=str(folder)
        ) from error
