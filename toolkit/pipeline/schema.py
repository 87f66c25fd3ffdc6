"""What a pipeline file may say: the typed pipeline, and its JSON schema for editors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from toolkit.pipeline.registry import stage_kinds
from toolkit.share import share
from toolkit.stage import Settings, StageConfig
from toolkit.tracking.config import Tracking

STAGE_NAME = r"^[a-z0-9][a-z0-9_-]{0,62}$"


class Header(Settings):
    """A pipeline file without its stages."""

    name: Annotated[
        str,
        Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$", description="The run's folder name."),
    ]
    seed: Annotated[
        int, Field(ge=0, lt=2**31, description="Seeds every stage's random numbers.")
    ] = 1234
    tracking: Annotated[
        Tracking, Field(description="Where metrics go besides each stage's metrics.jsonl.")
    ] = Tracking()
    stages: Annotated[
        dict[str, dict[str, Any]],
        Field(min_length=1, description="The stages, by name; order follows from references."),
    ]


@dataclass(frozen=True)
class Pipeline:
    """A decoded pipeline file."""

    name: str
    seed: int
    stages: dict[str, StageConfig]
    file: Path
    """The file it was read from."""
    tracking: Tracking


def model_presets() -> dict[str, Path]:
    """The model presets there are, by name: ``configs/models/NAME.yaml``."""
    return {p.stem: p for p in sorted(share("configs", "models").glob("*.yaml"))}


def json_schema() -> dict[str, Any]:
    """The JSON schema of a pipeline file, for editors (YAML language server) and CI."""
    definitions: dict[str, Any] = {}
    branches = []
    for kind in stage_kinds().values():
        schema = kind.config.model_json_schema(ref_template="#/$defs/{model}")
        definitions |= schema.pop("$defs", {})
        schema["properties"]["kind"] = {"const": kind.name, "description": kind.summary}
        schema["required"] = ["kind", *(k for k in schema.get("required", []) if k != "kind")]
        schema["title"] = kind.name
        definitions[f"stage {kind.name}"] = schema
        condition = {"properties": {"kind": {"const": kind.name}}, "required": ["kind"]}
        branches.append({"if": condition, "then": {"$ref": f"#/$defs/stage {kind.name}"}})
    _allow_presets(definitions)
    header = Header.model_json_schema(ref_template="#/$defs/{model}")
    definitions |= header.pop("$defs", {})
    header["properties"]["extends"] = {
        "type": "string",
        "description": "Another pipeline file, which this one overrides key by key.",
    }
    header["properties"]["stages"] = {
        "type": "object",
        "propertyNames": {"pattern": STAGE_NAME},
        "additionalProperties": {
            "type": "object",
            "properties": {"kind": {"enum": list(stage_kinds())}},
            "allOf": branches,
        },
        "description": header["properties"]["stages"]["description"],
    }
    header["title"] = "toolkit pipeline"
    del header["required"]  # what is missing may stand in the file that this one extends
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **header,
        "$defs": definitions,
    }


def _allow_presets(definitions: dict[str, Any]) -> None:
    model = definitions.get("ModelConfig")
    if model is not None:
        model["properties"]["preset"] = {
            "anyOf": [{"enum": list(model_presets())}, {"type": "string", "pattern": r"\.yaml$"}],
            "description": "Start from configs/models/NAME.yaml, or from a file; other keys win.",
        }
        model.pop("required", None)
