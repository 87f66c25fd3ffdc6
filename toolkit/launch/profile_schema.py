"""The JSON schema of cluster profiles, for editors."""

from __future__ import annotations

from typing import Any

from toolkit.launch.cluster import Cluster
from toolkit.pipeline.registry import stage_kinds


def profile_schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of a profile, or of one that extends another."""
    schema = Cluster.model_json_schema()
    schema["properties"]["extends"] = {
        "type": "string",
        "description": "Another profile, which this one overrides key by key.",
    }
    schema["properties"]["resources"]["propertyNames"] = {"enum": list(stage_kinds())}
    schema["title"] = "toolkit cluster profile"
    del schema["required"]  # what is missing may stand in the file that this one extends
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
