"""Starting from another checkpoint's weights (``load``)."""

from __future__ import annotations

import logging
from pathlib import Path

from toolkit.data.tokenizer_folder import find_tokenizer
from toolkit.errors import ToolkitError
from toolkit.megatron import checkpoint, state
from toolkit.megatron.config import TrainedModel
from toolkit.megatron.corpus import TOKENIZER, Corpus
from toolkit.megatron.setup import Training

logger = logging.getLogger(__name__)


def load_initial(training: Training, source: Path, wanted: TrainedModel) -> None:
    """Take the weights of the checkpoint in ``source``; optimizer and schedule start anew.

    Raises:
        ToolkitError: it is of another model.
    """
    checkpoint.check_model(source, wanted)
    state.start_from(training, source)
    logger.info("started from the weights of %s", source)


def check_tokenizer(source: Path, corpus: Corpus) -> None:
    """Refuse to go on training the checkpoint in ``source`` on another tokenizer's tokens.

    Raises:
        ToolkitError: naming both tokenizers.
    """
    if not (source / TOKENIZER).is_dir():
        logger.warning("%s has no tokenizer: nothing shows that it fits the data's", source)
        return
    theirs, ours = find_tokenizer(source / TOKENIZER), find_tokenizer(corpus.tokenizer)
    if ours.sha256 != theirs.sha256:
        raise ToolkitError(
            "the checkpoint was trained with another tokenizer than the data's:"
            f" {theirs.files[0]} ({theirs.sha256[:12]}), {ours.files[0]} ({ours.sha256[:12]})",
            where=str(source),
            hint=f"tokenize the data with {theirs.folder}",
        )
