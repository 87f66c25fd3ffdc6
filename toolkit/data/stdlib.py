"""What the running interpreter's standard library says of itself: names, signatures, docstrings.

Source files are parsed, never imported, so no module's side effects happen; the docstrings of
built-in functions and types, which have no source file, are read from the loaded ``builtins``.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import logging
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from toolkit.errors import DataError

logger = logging.getLogger(__name__)

Kind = Literal["module", "class", "function", "method"]

EXCLUDED_FOLDERS = frozenset({"test", "tests", "idlelib", "lib2to3", "turtledemo", "encodings"})
"""Tests, demonstrations, and code pages whose docstrings are all alike."""
LONGEST_SIGNATURE = 100
"""Characters; a longer argument list is shortened to its names, then to ``...``."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Documented:
    """A module, class, function or method that has a docstring."""

    kind: Kind
    name: str
    """Qualified: ``json.decoder.JSONDecoder.decode``."""
    arguments: str
    """As a call would show them, without ``self``: ``(s, *, strict=True)``; modules have none."""
    docstring: str
    """Without the indentation of the source."""

    @property
    def heading(self) -> str:
        """``json.loads(s, *, cls=None)``."""
        return self.name + self.arguments


@cache
def documented() -> tuple[Documented, ...]:
    """Everything documented in the standard library, sorted by name; each docstring text once.

    Takes two to three seconds the first time in a process.

    Raises:
        DataError: this interpreter was installed without the sources of its library.
    """
    root = Path(sysconfig.get_path("stdlib"))
    found = [item for path in _source_files(root) for item in _from_file(root, path)]
    if not found:
        raise DataError(
            "this Python has no sources of its standard library, which the samples are made of",
            where=str(root),
            hint="use a Python with its .py files, or give files of your own as sources",
        )
    found.extend(_from_builtins())
    found.sort(key=lambda item: (item.name, item.kind, item.docstring))
    once = {item.docstring: item for item in reversed(found)}
    return tuple(item for item in found if once[item.docstring] is item)


def _source_files(root: Path) -> list[Path]:
    """Sources of the modules that belong to Python itself, whatever else lies in the folder."""
    files = []
    for name in sys.stdlib_module_names - EXCLUDED_FOLDERS:
        files.append(root / f"{name}.py")
        files.extend((root / name).rglob("*.py"))
    return sorted(f for f in files if f.is_file() and not _excluded(f.relative_to(root)))


def _excluded(path: Path) -> bool:
    return not EXCLUDED_FOLDERS.isdisjoint(path.parts[:-1])


def _from_file(root: Path, path: Path) -> Iterator[Documented]:
    parts = path.relative_to(root).with_suffix("").parts
    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in old docstrings
            tree = ast.parse(path.read_bytes())
    except SyntaxError as error:
        logger.debug("left out of the samples: %s: %s", path, error)
        return
    yield from _item("module", name, "", tree)
    yield from _members(tree, name)


def _members(parent: ast.Module | ast.ClassDef, prefix: str) -> Iterator[Documented]:
    """Classes and functions in a body, methods included, functions inside functions not."""
    method = isinstance(parent, ast.ClassDef)
    for node in parent.body:
        if isinstance(node, ast.ClassDef):
            yield from _item("class", f"{prefix}.{node.name}", _constructor(node), node)
            yield from _members(node, f"{prefix}.{node.name}")
        elif isinstance(node, Function):
            kind: Kind = "method" if method else "function"
            arguments = _arguments(node.args, drop_first=method and not _static(node))
            yield from _item(kind, f"{prefix}.{node.name}", arguments, node)


def _item(
    kind: Kind, name: str, arguments: str, node: ast.Module | ast.ClassDef | Function
) -> Iterator[Documented]:
    docstring = (ast.get_docstring(node) or "").strip()
    if docstring and docstring.isascii():
        yield Documented(kind, name, arguments, docstring)


def _static(node: Function) -> bool:
    return any(isinstance(d, ast.Name) and d.id == "staticmethod" for d in node.decorator_list)


def _constructor(node: ast.ClassDef) -> str:
    """What a class is called with: the arguments of its ``__init__``, where it has one."""
    for member in node.body:
        if isinstance(member, Function) and member.name == "__init__":
            return _arguments(member.args, drop_first=True)
    return ""


def _arguments(arguments: ast.arguments, drop_first: bool) -> str:
    text = ast.unparse(arguments)
    if drop_first:
        text = text.partition(", ")[2].removeprefix("/, ")
    if len(text) > LONGEST_SIGNATURE:
        names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
        text = ", ".join(names[1:] if drop_first else names)
    return f"({text if len(text) <= LONGEST_SIGNATURE else '...'})"


def _from_builtins() -> Iterator[Documented]:
    for name, value in vars(builtins).items():
        if getattr(value, "__module__", None) != "builtins":
            continue
        if inspect.isclass(value):
            yield from _builtin("class", name, value)
            for member, function in vars(value).items():
                if inspect.isroutine(function):
                    yield from _builtin("method", f"{name}.{member}", function)
        elif inspect.isbuiltin(value):
            yield from _builtin("function", name, value)


def _builtin(kind: Kind, name: str, value: object) -> Iterator[Documented]:
    docstring = inspect.cleandoc(getattr(value, "__doc__", None) or "").strip()
    if docstring and docstring.isascii():
        signature = getattr(value, "__text_signature__", None) or "(...)"
        for hidden in ("$self, /, ", "$self, /", "$self, ", "$module, /, ", "$module, /"):
            signature = signature.replace(hidden, "")
        yield Documented(kind, name, signature.replace("$", ""), docstring)
