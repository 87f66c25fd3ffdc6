"""The process that passes a stage's metrics on to one sink: ``python -m toolkit.tracking``.

It is told its job by one line on stdin, and by a second one how the stage ended; stdin closed
without that means that the stage's process died. What it has to say goes to stdout, which the
stage's process puts into its own log; what libraries print goes to stderr.
"""

from __future__ import annotations

import logging
import os
import re
import select
import signal
import sys
from typing import get_args

from toolkit.artifacts import MANIFEST, read_artifact
from toolkit.tracking.identity import alone, where
from toolkit.tracking.job import Ending, Job, results
from toolkit.tracking.metrics import METRICS
from toolkit.tracking.sinks import make_sink
from toolkit.tracking.tail import Tail

logger = logging.getLogger("toolkit.tracking")
POLL = 1.0
"""Seconds between looks at ``metrics.jsonl``."""
RETRY, LONGEST_RETRY = 30.0, 600.0
"""Seconds until a sink that failed is tried again; each time twice as long."""
LAST_TRIES = 2
"""How often a sink is tried once the stage has ended."""
LOST_SECONDS = 20
"""What is left to a sender whose stage was killed: the next attempt waits for it."""
ENDINGS: dict[str, Ending] = {ending: ending for ending in get_args(Ending)}
SECRET = re.compile("KEY|TOKEN|PASSWORD|SECRET|CREDENTIAL", re.IGNORECASE)


class Stage:
    """The stage's process, as its pipe tells of it."""

    def __init__(self) -> None:
        self._pipe = os.fdopen(0, "rb", buffering=0)
        self.job = Job.from_json(self._pipe.readline().decode())
        self.end: Ending | None = None
        self._parent = os.getppid()

    def wait(self, seconds: float) -> Ending | None:
        """Wait so long, or until the stage has ended; says how it did."""
        if self.end is not None:
            return self.end
        if select.select([self._pipe], [], [], seconds)[0]:
            self.end = ENDINGS.get(self._pipe.readline().decode().strip(), "lost")
        elif os.getppid() != self._parent:  # what it forked may hold the pipe open for a while
            self.end = "lost"
        if self.end == "lost":
            signal.alarm(LOST_SECONDS)  # its default action ends this process, whatever hangs
        return self.end


def send(stage: Stage) -> None:
    """Open the job's run, pass on the steps as they come, and close it when the stage has ended."""
    job, tail = stage.job, Tail(stage.job.folder / METRICS)
    sink = make_sink(job)
    sent = sink.begin()
    logger.info("tracking.%s: run %s, %s", job.sink, job.run_id, where(job.folder, job.sink))
    end: Ending | None = None
    while end is None:
        end = stage.wait(POLL)
        anew, steps = tail.steps()
        if anew:
            sent = sink.rewound(tail.last, sent)
        if end is not None and end != "lost":
            steps += tail.held()
        new = [step for step in steps if step.step > sent]
        if new:
            sink.log(new)
            sent = new[-1].step
    made = job.folder / "artifact"
    info = read_artifact(made).info if end == "complete" and (made / MANIFEST).is_file() else {}
    sink.finish(end, dict(results(info)))


def keep_sending(stage: Stage) -> int:
    """Send; and where a library, a server or a key fails, say so once and try again later.

    Returns:
        The exit code: 0 when all was sent.
    """
    patience, told, last_tries = RETRY, False, 0
    while last_tries < LAST_TRIES:
        try:
            send(stage)
        except Exception as error:  # noqa: BLE001 - whatever a library raises ends no training
            (logger.debug if told else logger.warning)(
                "tracking.%s fails: %s; the stage goes on, and its rows stay in %s",
                stage.job.sink,
                scrubbed(f"{type(error).__name__}: {error}"),
                METRICS,
            )
            told = True
        else:
            return 0
        last_tries += stage.end is not None
        stage.wait(patience)
        patience = min(2 * patience, LONGEST_RETRY)
    return 1


def scrubbed(text: str) -> str:
    """The text on one line, without passwords in URLs and without values of secret variables."""
    for name, value in os.environ.items():
        if SECRET.search(name) and len(value) >= 4:
            text = text.replace(value, "***")
    return " ".join(re.sub(r"://[^/@\s]*@", "://***@", text).split())


def wait_for_turn(stage: Stage) -> int:
    """Send as soon as the last attempt's sender has ended; see ``keep_sending``."""
    while True:
        with alone(stage.job.folder, stage.job.sink) as ours:
            if ours:
                return keep_sending(stage)
        if stage.wait(POLL) is not None:
            logger.warning("tracking.%s: another process sends these rows", stage.job.sink)
            return 1


def main() -> int:
    """Do the job that stands on stdin."""
    said = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries print to stdout, too
    handler = logging.StreamHandler(said)
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logging.raiseExceptions = False  # where the stage's process is dead, nobody listens
    return wait_for_turn(Stage())


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # not by the libraries' atexit functions: they wait for servers
