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


def load_initial(training: Training, source: Path, wanted: TrainedModel) -> None:
    """Take the weights of the checkpoint in ``source``; optimizer and schedule start anew.

    Raises:
        ToolkitError: it is of another model.
    """
    checkpoint.check_model(source, wanted)
    state.load_weights(training.models, source)
    # The optimizer keeps copies of the weights in fp32.
    training.optimizer.reload_model_params()
    logger.info("started from the weights of %s", source)


def check_tokenizer(source: Path, corpus: Corpus) -> None:
    """Refuse to go on training the checkpoint in ``source`` on another tokenizer's tokens.

    Raises:
        ToolkitError: naming both tokenizers.
    """
    theirs, ours = source / TOKENIZER / TOKENIZER_FILE, corpus.tokenizer / TOKENIZER_FILE
    if not theirs.is_file():
        logger.warning("%s has no tokenizer: nothing shows that it fits the data's", source)
        return
    found, expected = sha256(ours), sha256(theirs)
    if found != expected:
        raise ToolkitError(
            "the checkpoint was trained with another tokenizer than the data's:"
            f" {theirs} ({expected[:12]}), {ours} ({found[:12]})",
            where=str(source),
            hint=f"tokenize the data with {theirs.parent}",
        )
