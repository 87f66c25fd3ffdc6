"""The index of a pretraining run, built ahead of it, so that no GPU waits while it is drawn up.

It takes the stage's own settings, seed and data, and lies in the stage's own folder, so that it
can't be another one than the run will ask for.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from toolkit.context import StopRequest
from toolkit.errors import ToolkitError
from toolkit.pipeline.loading import Loaded
from toolkit.pipeline.run import make_folder, plan_run, write_run
from toolkit.pipeline.state import locked
from toolkit.worker import make_context

KIND = "pretrain"


def prebuild_index(loaded: Loaded, folder: Path, stage: str) -> dict[str, Any]:
    """Build the index of one ``pretrain`` stage in this process, on the CPU.

    Args:
        loaded: the pipeline.
        folder: the run's folder; the stage's data must be complete in it.
        stage: the stage's name.

    Returns:
        ``split_by``, and the ``tokens`` of each part.

    Raises:
        ToolkitError: the stage is of another kind or complete already, or its data is not there.
    """
    with locked(make_folder(folder), "run"):
        run = plan_run(loaded, folder, only=[stage])
        (task,) = run.tasks
        if task.file.kind != KIND:
            raise ToolkitError(
                f"stage {stage!r} is of kind {task.file.kind}; only {KIND} has an index"
            )
        if task.action == "skip":
            raise ToolkitError(f"stage {stage!r} is complete: it needs no index any more")
        write_run(loaded, run)
        task.folder.mkdir(parents=True, exist_ok=True)
        task.file.write(task.folder)
    with locked(task.folder, "stage"):
        warnings.filterwarnings("ignore", message=".*(Apex|Transformer Engine).*not installed")
        from toolkit.megatron.corpus import open_corpus
        from toolkit.megatron.datasets import prebuild

        context = make_context(task.folder, task.file, StopRequest())
        config: Any = task.config.model_validate(task.file.config)
        return prebuild(open_corpus(config, context), config, context.seed, context.work)
