"""Data sets of the Hugging Face hub, streamed by ``datasets``, at one revision of the hub's.

A data set is read by its own files: each is a part that one process can read by itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from toolkit.data.files import Part
from toolkit.data.hub import HubName
from toolkit.data.read_json import numbered
from toolkit.data.records import OnBad, Place, Record
from toolkit.data.remote import network_errors
from toolkit.errors import DataError

TIMEOUT = 30.0
"""Seconds to wait for the hub's answer to what revision a data set has."""


def revision_of(name: str) -> str:
    """The commit that a data set is at now: what is planned is what will be read.

    Raises:
        DataError: there is no such data set, or the hub can't be reached.
    """
    from huggingface_hub import HfApi

    with _errors(name):
        return str(HfApi().dataset_info(HubName.parse(name).path, timeout=TIMEOUT).sha)


def count_files(name: str, revision: str) -> int:
    """How many parts it can be read in.

    Raises:
        DataError: as ``read_hub``.
    """
    with _errors(name):
        return int(_open(name, revision).num_shards)


def read_hub(part: Part, on_bad: OnBad) -> Iterator[Record]:
    """The rows of a part, as they come; a row is numbered within its file.

    Raises:
        DataError: there is no such data set, configuration or split, or it can't be reached.
    """
    source = part.source
    with _errors(source.name):
        rows = _open(source.name, source.etag)
        count = rows.num_shards
        for index in range(count)[part.start : part.stop]:
            file = rows.shard(num_shards=count, index=index) if count > 1 else rows
            where = f"{source.name}[{index}]" if count > 1 else source.name
            yield from numbered(file, Place(where), on_bad)


def _open(name: str, revision: str) -> Any:
    import datasets  # takes seconds to import

    parsed = HubName.parse(name)
    return datasets.load_dataset(
        parsed.path, parsed.config, split=parsed.split, revision=revision, streaming=True
    )


@contextmanager
def _errors(name: str) -> Iterator[None]:
    """Turn what the hub and its libraries say into a DataError."""
    from datasets.exceptions import DatasetNotFoundError, DatasetsError
    from huggingface_hub.errors import OfflineModeIsEnabled, RepositoryNotFoundError

    try:
        yield
    except (DatasetNotFoundError, RepositoryNotFoundError) as error:
        message = f"the hub has no such data set, or wants a token (HF_TOKEN): {error}"
        raise DataError(message, where=name) from error
    except OfflineModeIsEnabled as error:
        raise _unreachable(name, error) from error
    except (ValueError, DatasetsError) as error:
        raise DataError(str(error), where=name) from error
    except network_errors() as error:
        raise _unreachable(name, error) from error


def _unreachable(name: str, error: Exception) -> DataError:
    offline = os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE")
    elsewhere = "save the data set to disk where there is a network, and name its folder"
    return DataError(
        f"the hub can't be reached: {error or type(error).__name__}",
        where=name,
        hint=f"HF_HUB_OFFLINE is set: unset it, or {elsewhere}" if offline else elsewhere,
    )
