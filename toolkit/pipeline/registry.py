"""The stage kinds there are: one line here for each folder that has some."""

from __future__ import annotations

import importlib
from functools import cache

from toolkit.stage import StageKind

DOMAINS = (
    "toolkit.data.config",
    "toolkit.data.clean.config",
    "toolkit.data.pack.config",
    "toolkit.megatron.config",
    "toolkit.megatron.convert.config",
    "toolkit.posttrain.config",
    "toolkit.evaluate.config",
)


@cache
def stage_kinds() -> dict[str, StageKind]:
    """Every stage kind, by the name a pipeline file gives it."""
    kinds: dict[str, StageKind] = {}
    for domain in DOMAINS:
        for kind in importlib.import_module(domain).STAGES:
            assert kind.name not in kinds, f"{domain} registers {kind.name} again"
            kinds[kind.name] = kind
    return kinds
