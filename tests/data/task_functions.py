"""What the tests of tasks have done, in this process or in others."""

import os
import signal
import time
from typing import Any

from toolkit.data.tasks import TaskOutput
from toolkit.errors import DataError


def square(payload: int, output: TaskOutput) -> dict[str, Any]:
    output.path("square.txt").write_text(str(payload**2))
    output.progress(1, documents=1)
    return {"pid": os.getpid(), "value": payload**2}


def refuse_three(payload: int, output: TaskOutput) -> dict[str, Any]:
    if payload == 3:
        output.path("half.txt").write_text("half")
        raise DataError("three is refused", where="numbers:3", hint="leave it out")
    return square(payload, output)


def break_down(payload: int, output: TaskOutput) -> dict[str, Any]:
    return {"value": 1 // (payload - 3)}


def die_at_three(payload: int, output: TaskOutput) -> dict[str, Any]:
    if payload == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return square(payload, output)


def slow(payload: int, output: TaskOutput) -> dict[str, Any]:
    time.sleep(60)
    return square(payload, output)
