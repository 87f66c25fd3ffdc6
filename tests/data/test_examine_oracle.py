"""Datasets that megatron-core writes: we read the same, and ``doctor`` calls them sound."""

from itertools import chain
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from toolkit.data.examine.doctor import examine
from toolkit.data.examine.inspection import document_lengths, read_document
from toolkit.data.examine.locate import Dataset
from toolkit.data.examine.structure import open_sound

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def megatron() -> ModuleType:
    """megatron-core's own format; its import takes ten seconds."""
    reason = "needs megatron-core, which is not installed here"
    return pytest.importorskip("megatron.core.datasets.indexed_dataset", reason=reason)


DTYPES = st.sampled_from([np.uint8, np.int32, np.uint16, np.int64])
DOCUMENTS = st.lists(
    st.lists(st.lists(st.integers(0, 120), max_size=9), max_size=4), min_size=1, max_size=12
).filter(lambda documents: any(chain(*documents)))
"""Of each document its sequences, of each sequence its tokens; any may be empty, but not all:
megatron-core can't map an empty ``.bin`` into memory."""


@settings(
    deadline=None,
    max_examples=150,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(found=DOCUMENTS, dtype=DTYPES, multimodal=st.booleans())
def test_whatever_megatron_writes(
    tmp_path_factory: pytest.TempPathFactory,
    megatron: ModuleType,
    found: list[list[list[int]]],
    dtype: type,
    multimodal: bool,
) -> None:
    # "_sentence": Megatron's name where a document has any number of sequences
    prefix = tmp_path_factory.mktemp("oracle") / "text_sentence"
    build(megatron, prefix, found, dtype, multimodal)
    theirs = megatron.IndexedDataset(str(prefix), multimodal=multimodal)
    (examination,) = examine([Dataset(prefix)], lambda _: None)
    assert examination.failure is None, examination
    ours = open_sound(Dataset(prefix))
    assert len(ours) == len(theirs) == sum(map(len, found))
    for index in range(len(ours)):
        expected = theirs[index][0] if multimodal else theirs[index]
        assert np.array_equal(ours[index], expected) and ours[index].dtype == expected.dtype
    assert np.array_equal(ours.document_indices, theirs.document_indices)
    assert list(document_lengths(ours)) == [sum(map(len, document)) for document in found]
    for number, document in enumerate(found):
        assert list(read_document(ours, number)) == list(chain(*document))


def build(
    megatron: ModuleType, prefix: Path, found: list[list[list[int]]], dtype: type, modes: bool
) -> None:
    import torch

    builder = megatron.IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype, multimodal=modes)
    for document in found:
        for number, sequence in enumerate(document):
            tokens = torch.tensor(sequence, dtype=torch.int64)
            builder.add_item(tokens, number % 2) if modes else builder.add_item(tokens)
        builder.end_document()
    builder.finalize(f"{prefix}.idx")
