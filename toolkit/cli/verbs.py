"""What all verbs share: errors as messages, exit codes, the console."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import typer

from toolkit.errors import DISK_ERRORS, ExitCode, ToolkitError

P = ParamSpec("P")
R = TypeVar("R")


def verb(function: Callable[P, R]) -> Callable[P, R]:
    """Turn the user's mistakes into one message and an exit code; bugs keep their traceback."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except ToolkitError as error:
            typer.secho(str(error), err=True, fg=typer.colors.RED)
            raise typer.Exit(error.exit_code) from None
        except OSError as error:
            if error.filename is None and error.errno not in DISK_ERRORS:
                raise
            full = error.errno in DISK_ERRORS  # of two files, that is the one copied to
            name = (error.filename2 if full else None) or error.filename
            place = f"{name}: " if name else ""
            typer.secho(f"{place}{error.strerror}", err=True, fg=typer.colors.RED)
            raise typer.Exit(ExitCode.STAGE_FAILED) from None
        except ModuleNotFoundError as error:
            if (error.name or "toolkit").partition(".")[0] == "toolkit":
                raise
            message = f"this needs {error.name}, which is not installed here\n"
            message += "  on a machine that runs models: pip install 'megatron-toolkit[data,train]'"
            typer.secho(message, err=True, fg=typer.colors.RED)
            raise typer.Exit(ExitCode.USER_ERROR) from None
        except KeyboardInterrupt:
            typer.secho("interrupted", err=True, fg=typer.colors.YELLOW)
            raise typer.Exit(ExitCode.INTERRUPTED) from None

    return wrapped


def console() -> Any:
    """The terminal; a log file or a CI page gets 160 columns, for it has no width of its own."""
    from rich.console import Console

    known = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(highlight=False, width=None if known else 160)
