import socket
import warnings
from collections.abc import Iterator

import pytest


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@pytest.fixture(autouse=True)
def _library_warnings() -> Iterator[None]:
    """The stages turn warnings into log records, for good; here only within a test."""
    import logging

    with warnings.catch_warnings():
        yield
    logging.captureWarnings(False)
