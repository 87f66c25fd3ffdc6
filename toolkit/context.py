"""What a running stage is given: its folder, its inputs, its rank, and ways to say how it goes."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from multiprocessing import resource_tracker
from pathlib import Path
from types import FrameType
from typing import Any

from toolkit.artifacts import Artifact, ArtifactType, Parent, publish, read_artifact
from toolkit.errors import ToolkitError
from toolkit.tracking import Progress, Tracker
from toolkit.watchdog import Watchdog

RECORDED = (
    "megatron-toolkit",
    "torch",
    "megatron-core",
    "transformer-engine",
    "transformers",
    "tokenizers",
    "gigatoken",
    "sentencepiece",
    "tiktoken",
    "orjson",
    "pyarrow",
    "ftfy",
    "py3langid",
    "resiliparse",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "lm_eval",
    "numpy",
)
"""Packages whose versions are recorded with every stage and artifact."""

WATCHDOG = "TOOLKIT_WATCHDOG"
"""In the environment: seconds within which a rank must take its next step."""
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def versions() -> dict[str, str]:
    """Installed versions of the packages that shape a result; nothing is imported."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in RECORDED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@contextmanager
def signals_held() -> Iterator[None]:
    """Within the block no stop signal is heard: neither here, nor by processes that it starts.

    Slurm tells every process of a rank to stop. One that a library started, and that never learned
    of these signals, would die of it, and what goes on in it would be lost. What comes within the
    block is heard after it, in this process alone. Main thread only.
    """
    resource_tracker.ensure_running()  # its start would let signals in again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Stopped(KeyboardInterrupt):
    """Raised by a stop signal where the stage stands.

    A class of its own: where a plain KeyboardInterrupt leaves ``exec`` of a text, as imports do,
    ``python -m`` ends by SIGINT even when it was caught (``unhandled_keyboard_interrupt`` in
    CPython's ``pythonrun.c``); to srun that is a crash.
    """


class StopRequest:
    """Whether someone asked this process to stop (SIGTERM, SIGINT, SIGUSR1).

    By default a signal ends the stage where it stands, by ``Stopped``. A stage that can save first
    wraps its loop in ``with context.stop.deferred():`` and looks at ``requested`` between steps.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._deferred = True

    @property
    def requested(self) -> bool:
        """True once a signal came."""
        return self.signal is not None

    def install(self) -> None:
        """Handle the stop signals of this process from now on. Main thread only."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._handle)

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """Around the stage's function: a signal ends the block, and so does one that came before.

        Outside of it, where the worker writes its state, a signal only sets ``requested``.
        """
        self._deferred = False
        try:
            if self.signal is not None:
                raise Stopped(self.signal.name)
            yield
        finally:
            self._deferred = True

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within the block a signal only sets ``requested``; the block must look at it."""
        before, self._deferred = self._deferred, True
        try:
            yield
        finally:
            self._deferred = before

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        if not self._deferred:
            raise Stopped(self.signal.name)


@dataclass(frozen=True)
class Input:
    """One input of a stage: the reference as the pipeline file has it, and where it is."""

    reference: str
    folder: Path
    type: str
    fingerprint: str


@dataclass
class StageContext:
    """Everything around a stage's function; ``config`` is the rest.

    ``folder`` is the stage's folder. ``work`` is scratch space inside it that outlives a crash:
    checkpoints and half-made output go there. What is finished is handed to ``publish``.
    """

    stage: str
    kind: str
    folder: Path
    fingerprint: str
    inputs: Mapping[str, Input] = field(default_factory=dict)
    seed: int = 1234
    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    device: str = "cpu"
    """``cpu`` or ``cuda``; on ``cuda`` the rank's own GPU is ``cuda:{local_rank}``."""
    phase: str | None = None
    """The one phase of a sharded stage to work on, or ``finish``; None: all of them, here."""
    stop: StopRequest = field(default_factory=StopRequest)
    watchdog: Watchdog | None = None
    """Ends this rank when it takes no step; see ``alive``."""

    def __post_init__(self) -> None:
        self.tracker = Tracker(self.folder)
        self.progress = Progress(self.folder)

    @property
    def work(self) -> Path:
        """Scratch space that outlives a crash; made on first use."""
        path = self.folder / "work"
        path.mkdir(parents=True, exist_ok=True)
        return path

    def building(self) -> Path:
        """A new, empty folder to build the artifact in; what a crash left there is removed."""
        path = self.folder / "artifact.building"
        if path.exists():
            shutil.rmtree(path)
        path.mkdir(parents=True)
        return path

    def runs(self, phase: str) -> bool:
        """Whether this process works on a phase of a sharded stage."""
        return self.phase is None or self.phase == phase

    def alive(self) -> None:
        """Say that this rank took a step; in a stage whose ranks wait for each other.

        With a watchdog (``TOOLKIT_WATCHDOG``) the next step must follow within so many seconds:
        else the rank leaves its reason and the stacks of all threads, and ends with 1. A save, and
        a batch of an evaluation, are steps, too. What comes before the first one (compilation,
        indices of data) may take any time, and so may what comes after ``all_steps_taken``.
        """
        if self.watchdog is not None:
            self.watchdog.step()

    def all_steps_taken(self) -> None:
        """Say that no step is to follow: what is made is now written and checked."""
        if self.watchdog is not None:
            self.watchdog.stop()

    def path(self, reference: str) -> Path:
        """Where an input is: an artifact's folder, or a plain path."""
        found = self.inputs.get(reference)
        return found.folder if found else Path(reference)

    def artifact(self, reference: str) -> Artifact:
        """An input as an artifact.

        Raises:
            ToolkitError: it is not there, or not an artifact.
        """
        return read_artifact(self.path(reference))

    def publish(
        self,
        built: Path,
        artifact_type: ArtifactType,
        info: Mapping[str, Any] | None = None,
        checksums: Mapping[str, str] | None = None,
    ) -> Artifact:
        """Make the finished folder ``built`` this stage's artifact. Rank 0 alone calls this.

        The arguments are those of ``artifacts.publish``.
        """
        if self.rank != 0:
            raise ToolkitError(f"rank {self.rank} tried to publish; only rank 0 does")
        target = self.folder / "artifact"
        return publish(
            built,
            target,
            artifact_type=artifact_type,
            stage=self.stage,
            kind=self.kind,
            fingerprint=self.fingerprint,
            parents=[self._parent(i) for i in self.inputs.values()],
            versions=versions(),
            info=info,
            checksums=checksums,
        )

    def _parent(self, source: Input) -> Parent:
        run = self.folder.parent
        inside = source.folder.is_relative_to(run)
        where = (
            os.path.relpath(source.folder, self.folder / "artifact") if inside else source.folder
        )
        return Parent(source.reference, source.type, source.fingerprint, str(where))
