"""A trained tokenizer for the tests of the data stages."""

from pathlib import Path

import pytest
from some_tokenizers import KINDS, make

from toolkit.artifacts import Artifact
from toolkit.context import StageContext
from toolkit.data.config import TrainTokenizerConfig
from toolkit.data.tokenizer import run


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A tokenizer artifact of 2048 tokens, trained on the sample documents."""
    folder = tmp_path_factory.mktemp("run") / "vocabulary"
    folder.mkdir()
    context = StageContext("vocabulary", "train-tokenizer", folder, fingerprint="test")
    config = TrainTokenizerConfig(sources=["sample:python-docs"], vocab_size=2048)
    return run(config, context)


@pytest.fixture(scope="session")
def tokenizer_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder with a small tokenizer of each kind; not to be changed."""
    root = tmp_path_factory.mktemp("tokenizers")
    return {kind: make(kind, root) for kind in KINDS}
