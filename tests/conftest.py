"""Fixtures for every test: small thread counts, no network, and stage contexts."""

import os
from collections.abc import Callable, Generator, Mapping
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

from toolkit.artifacts import read_artifact
from toolkit.context import Input, StageContext

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def shared_data() -> Path:
    """Real data that is not part of the project; tests that need it skip where it is not."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the shared data folder {folder}, which is not here")
    return folder


@pytest.fixture
def stage_context(tmp_path: Path) -> Callable[..., StageContext]:
    """A factory: ``stage_context("corpus", "tokenize", vocabulary=folder)`` makes a context."""

    def make(stage: str, kind: str, /, **inputs: Path) -> StageContext:
        return make_context(tmp_path / "run" / stage, kind, inputs)

    return make


def make_context(folder: Path, kind: str, inputs: Mapping[str, Path]) -> StageContext:
    """A context for running a stage's function in this process."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {name: read_artifact(path) for name, path in inputs.items()}
    return StageContext(
        stage=folder.name,
        kind=kind,
        folder=folder,
        fingerprint=f"test-{folder.name}",
        inputs={n: Input(n, a.folder, a.type, a.fingerprint) for n, a in found.items()},
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A skip of a test whose marker ``TOOLKIT_REQUIRE`` names is a failure: CI sets it."""
    report = yield
    required = os.environ.get("TOOLKIT_REQUIRE", "").split()
    if report.skipped and any(item.get_closest_marker(name) for name in required):
        report.outcome = "failed"
        report.longrepr = f"skipped, and TOOLKIT_REQUIRE={' '.join(required)}: {report.longrepr}"
    return report
