"""A trained tokenizer for the tests of the data stages."""

import pytest

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
