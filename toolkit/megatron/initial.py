"""Starting from another checkpoint's weights (``load``)."""

from __future__ import annotations

import logging
from pathlib import Path

from toolkit.artifacts import sha256
from toolkit.errors import ToolkitError
from toolkit.megatron import checkpoint, state
from toolkit.megatron.config import TrainedModel
from toolkit.megatron.corpus import TOKENIZER, TOKENIZER_FILE, Corpus
from toolkit.megatron.setup import Training

logger = logging.getLogger(__name__)


def load_initial(training: Training, source: Path, wanted: TrainedModel, corpus: Corpus) -> None:
    """Take the weights of the checkpoint in ``source``; optimizer and schedule start anew.

    Raises:
        ToolkitError: it is of another model, or its tokenizer is not the data's.
    """
    checkpoint.check_model(source, wanted)
    _same_tokenizer(source, corpus)
    state.load_weights(training.models, source)
    # The optimizer keeps copies of the weights in fp32.
    training.optimizer.reload_model_params()
    logger.info("started from the weights of %s", source)


def _same_tokenizer(source: Path, corpus: Corpus) -> None:
    theirs = source / TOKENIZER / TOKENIZER_FILE
    if theirs.is_file() and sha256(theirs) != sha256(corpus.tokenizer / TOKENIZER_FILE):
        raise ToolkitError(
            "the checkpoint was trained with another tokenizer than the data's",
            where=str(theirs),
            hint=f"tokenize the data with {theirs.parent}",
        )
