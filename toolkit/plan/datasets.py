"""What contradicts the other stages: where a stage's data comes from, and where its model goes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from toolkit.megatron.config import PretrainConfig

DEFAULT_SPLIT = PretrainConfig.model_fields["split"].default


def makers(stages: Mapping[str, Any], name: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The stages, by name and as written, that a dataset comes from: ``name`` and those before.

    Settings that are not valid are passed over: they are reported elsewhere.
    """
    waiting: list[Any] = [name]
    seen: set[str] = set()
    while waiting:
        current = waiting.pop(0)
        if not isinstance(current, str) or current in seen:
            continue
        stage = stages.get(current)
        if not isinstance(stage, Mapping):
            continue
        seen.add(current)
        yield current, stage
        given = stage.get("dataset") if stage.get("kind") == "pack" else stage.get("data")
        waiting += given if isinstance(given, list) else [given]


def dataset_problems(
    config: PretrainConfig, stages: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    """What contradicts the stages that make the data: (key, message)."""
    for name, stage in makers(stages, config.data):
        length = stage.get("seq_length")
        if stage.get("kind") == "pack" and isinstance(length, int) and length != config.sequence:
            yield (
                "seq_length",
                f"the rows that {name!r} (pack) makes have {length} tokens, and seq_length is"
                f" {config.sequence} here; make them one number",
            )
        if stage.get("kind") == "pack" and config.parallel.context_parallel_size > 1:
            yield (
                "parallel.context_parallel_size",
                f"cuts every row, and the rows that {name!r} (pack) makes hold several examples;"
                " leave one of the two out",
            )
        if stage.get("kind") == "split" and config.split != DEFAULT_SPLIT:
            yield (
                "split",
                f"the data is split already, by {name!r}; leave split out here",
            )


def export_problems(stages: Mapping[str, Any], checkpoint: str) -> Iterator[tuple[str, str]]:
    """What keeps the model of a checkpoint's stage from being exported: (key, message)."""
    stage = stages.get(checkpoint)
    model = stage.get("model") if isinstance(stage, Mapping) else None
    if isinstance(model, Mapping) and model.get("num_moe_experts") is not None:
        yield (
            "checkpoint",
            f"{checkpoint!r} trains {model['num_moe_experts']} experts, and export knows no"
            " architecture with experts yet",
        )
