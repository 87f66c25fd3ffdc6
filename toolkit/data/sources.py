"""What ``sources:`` may name: files, folders, globs, URLs, ``hf:`` and ``sample:`` names.

They are made into a list of what is read, in order: see ``expand``.
"""

from __future__ import annotations

import difflib
import glob
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from toolkit.data.files import Source, format_of, known_formats
from toolkit.data.hub import (
    DICTIONARY,
    HUB_PREFIX,
    INFO,
    STATE,
    HubName,
    dataset_files,
    saved_files,
)
from toolkit.data.remote import (
    SCHEMES,
    RemoteObject,
    find_objects,
    scheme_of,
    unreadable,
)
from toolkit.data.samples import check_sample
from toolkit.errors import DataError
from toolkit.stage import SAMPLE_PREFIX

__all__ = [
    "Source",
    "absolute_name",
    "expand",
    "is_named",
    "local_path",
    "name_problem",
    "path_problem",
]

logger = logging.getLogger(__name__)

LOCAL_SCHEMES = ("file", "local")


def expand(sources: str | Path | Sequence[str | Path]) -> list[Source]:
    """What sources name, each source's files sorted by path.

    A folder stands for all files of a known format in it, however deep; hidden files and names
    that begin with ``_`` (``_SUCCESS``) are passed over, others are passed over with a warning.
    Links are followed. A path that exists is never taken for a glob. URLs of object stores may
    name folders and patterns too.

    Raises:
        DataError: a source that is missing, matches nothing, is empty, has an unknown suffix, or
            a file that two sources name.
    """
    if isinstance(sources, (str, Path)):
        sources = [sources]
    if not sources:
        raise DataError("no sources are given")
    return [source for found in expand_each(sources) for source in found]


def expand_each(sources: Sequence[str | Path]) -> list[list[Source]]:
    """As ``expand``, apart for each of the sources.

    Raises:
        DataError: as ``expand``.
    """
    each = [list(_expand_one(given)) for given in sources]
    _refuse_twice([(str(g), s) for g, found in zip(sources, each, strict=True) for s in found])
    return each


def is_named(given: str) -> bool:
    """Whether a source is a name (``sample:``, ``hf:``, a URL) rather than a path."""
    return given.startswith((SAMPLE_PREFIX, HUB_PREFIX)) or scheme_of(given) is not None


def absolute_name(given: str, base: Path) -> str:
    """An ``hf:`` name of a folder under ``base`` with its absolute path; others as they are."""
    if not given.startswith(HUB_PREFIX):
        return given
    path, mark, split = given.removeprefix(HUB_PREFIX).partition("#")
    folder = base / Path(path).expanduser()
    return f"{HUB_PREFIX}{folder.absolute()}{mark}{split}" if path and folder.is_dir() else given


def local_path(given: str) -> Path | None:
    """Where on this machine a name's data is: an ``hf:`` folder, or what ``file://`` names."""
    if given.startswith(HUB_PREFIX):
        return HubName.parse(given).folder
    return Path(given.partition("://")[2]) if scheme_of(given) in LOCAL_SCHEMES else None


def name_problem(given: str) -> str | None:
    """Why a name can't be a source, or None; nothing is looked up outside of this machine."""
    if given.startswith(SAMPLE_PREFIX):
        return None
    if given.startswith(HUB_PREFIX):
        name = HubName.parse(given)
        return None if name.folder is not None else name.problem()
    scheme = str(scheme_of(given))
    if scheme not in SCHEMES:
        return scheme_problem(scheme)
    path = local_path(given)
    if path is not None and not path.exists() and not glob.has_magic(str(path)):
        return f"no such file or folder; {_nearest_folder(path)}"
    if scheme in ("http", "https") and format_of(_path_of(given)) is None:
        return f"the URL's suffix names no known format; {known_formats()}"
    return None


def path_problem(paths: Sequence[Path]) -> str | None:
    """Why files can't be sources, by their names alone, or None; folders are not looked into."""
    if all(path.is_file() and format_of(path.name) is None for path in paths):
        return f"{paths[0].name!r} has a suffix that names no known format; {known_formats()}"
    return None


def _expand_one(given: str | Path) -> list[Source]:
    if isinstance(given, str) and is_named(given):
        return _expand_name(given)
    given = str(given)
    path = Path(given).expanduser()
    if path.is_dir():
        return _known([path], f"folder {given}")
    if path.exists() or path.is_symlink():
        return [_file(path)]
    if glob.has_magic(given):
        matches = sorted(Path(p) for p in glob.glob(str(path), recursive=True))  # noqa: PTH207 - absolute patterns too
        if not matches:
            raise DataError("no file matches this pattern", where=given)
        return _known(matches, f"pattern {given}")
    raise DataError("no such file or folder", where=given, hint=_nearest_folder(path))


def _expand_name(given: str) -> list[Source]:
    if given.startswith(SAMPLE_PREFIX):
        check_sample(given)
        return [Source(given, "sample")]
    if given.startswith(HUB_PREFIX):
        return _hub(given)
    problem = name_problem(given)
    if problem is not None:
        raise DataError(problem, where=given)
    path = local_path(given)
    return _remote(given) if path is None else _expand_one(path)


def scheme_problem(scheme: str) -> str:
    """What to say of a URL of an unknown kind."""
    near = difflib.get_close_matches(scheme.lower(), SCHEMES, n=1, cutoff=0.5)
    advice = f"; did you mean {near[0]}://?" if near else ""
    return f"{scheme}:// is no kind of URL that can be read{advice} (valid: {', '.join(SCHEMES)})"


def _hub(given: str) -> list[Source]:
    name = HubName.parse(given)
    if name.folder is not None:
        return [_file(path) for path in dataset_files(given)]
    problem = name.problem()
    if problem is not None:
        raise DataError(problem, where=given)
    from toolkit.data.hub_stream import revision_of  # datasets takes seconds to import

    return [Source(given, "hub", etag=revision_of(given))]


def _remote(given: str) -> list[Source]:
    objects = find_objects(given)
    if not objects:
        raise DataError("no object is there, or matches this pattern", where=given)
    if len(objects) == 1 and objects[0].url.rstrip("/") == given.rstrip("/"):
        return [_object(objects[0])]
    visible = [o for o in objects if not PurePosixPath(o.url).name.startswith((".", "_"))]
    known = [o for o in visible if format_of(_path_of(o.url))]
    others = Counter(PurePosixPath(o.url).suffix or "no suffix" for o in visible if o not in known)
    _tell_others(len(known), others, given)
    return [_object(o) for o in known]


def _object(found: RemoteObject) -> Source:
    kind = format_of(_path_of(found.url))
    if kind is None:
        message = "the URL's suffix names no known format"
        raise DataError(message, where=found.url, hint=known_formats())
    return Source(*(found.url, *kind), size=found.size, etag=found.etag, seekable=found.seekable)


def _path_of(url: str) -> str:
    """A URL without what follows ``?`` or ``#`` on web servers."""
    web = scheme_of(url) in ("http", "https")
    return url.partition("#")[0].partition("?")[0] if web else url


def _nearest_folder(path: Path) -> str:
    there = next(parent for parent in path.absolute().parents if parent.is_dir())
    return (
        f"the folder {there} exists; nothing called {path.absolute().relative_to(there)} is there"
    )


def _known(paths: Sequence[Path], what: str) -> list[Source]:
    """The files of a known format among these and in these folders."""
    files = [f for p in paths for f in (_walk(p, ()) if p.is_dir() else [p])]
    known = [f for f in dict.fromkeys(files) if format_of(f.name)]
    others = Counter(f.suffix or "no suffix" for f in files if not format_of(f.name))
    _tell_others(len(known), others, what)
    return [_file(f) for f in known]


def _tell_others(known: int, others: Counter[str], what: str) -> None:
    """Warn of files that are passed over, or refuse where there are no others."""
    if not known:
        seen = f"it has: {_counts(others)}" if others else "it is empty"
        raise DataError(f"no file that can be read in the {what}; {seen}", hint=known_formats())
    if others:
        logger.warning("%s: passed over files of unknown formats: %s", what, _counts(others))


def _walk(folder: Path, above: tuple[str, ...]) -> Iterator[Path]:
    """Files under a folder, sorted, links followed, a link to a folder above passed over."""
    real = os.path.realpath(folder)
    if real in above:
        return
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"the folder can't be read: {error.strerror}", where=str(folder)) from error
    names = {entry.name for entry in entries}
    if DICTIONARY in names:
        raise DataError(
            "a folder of several splits of one data set",
            where=str(folder),
            hint=f"name the split: {HUB_PREFIX}{folder}#train",
        )
    if {STATE, INFO} <= names:
        yield from saved_files(folder)
        return
    for entry in entries:
        if entry.name.startswith((".", "_")) or entry.name == INFO:
            continue
        if entry.is_dir():
            yield from _walk(entry, (*above, real))
        else:
            yield entry


def _file(path: Path) -> Source:
    kind = format_of(path.name)
    if kind is None:
        raise DataError(
            "the file's suffix names no known format", where=str(path), hint=known_formats()
        )
    try:
        stat = path.stat()
    except OSError as error:
        raise unreadable(str(path), error) from error
    if not path.is_file():
        raise DataError("not a regular file", where=str(path))
    if stat.st_size == 0:
        raise DataError("the file is empty (0 bytes)", where=str(path), hint="leave it out")
    return Source(str(path), *kind, path, stat.st_size, stat.st_mtime_ns)


def _refuse_twice(found: Sequence[tuple[str, Source]]) -> None:
    first: dict[str, str] = {}
    for given, source in found:
        key = os.path.realpath(source.path) if source.path else source.name
        if key in first:
            raise DataError(
                f"would be read twice: {first[key]} and {given} both name it",
                where=source.name,
                hint="name it once (a link counts as the file that it points to)",
            )
        first[key] = given


def _counts(names: Counter[str]) -> str:
    return ", ".join(f"{count} x {name}" for name, count in sorted(names.items()))
