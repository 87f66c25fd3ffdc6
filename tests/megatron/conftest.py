"""Data that all the tests of pretraining share."""

from pathlib import Path

import pytest
from pretrain_runs import make_dataset


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset artifact of 200 documents."""
    return make_dataset(tmp_path_factory.mktemp("data") / "corpus")
