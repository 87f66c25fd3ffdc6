"""Write what pip is to install beside what a base image already has.

``python requirements.py PROJECT FOLDER EXTRA...`` reads ``pyproject.toml`` and ``constraints.txt``
in the folder PROJECT, and writes ``requirements.txt`` and ``constraints.txt`` into FOLDER. Three
rules make the latter:

- What the image lacks comes at the exact version of the project's ``constraints.txt``.
- What the image has stays, unless the project's own ranges demand another version.
- What was built for the image (its version carries a local label, as in ``2.14.0a0+b2c75dd.nv26.9``
  or ``2.13.0+cpu``) is pinned where it is: torch and TransformerEngine are never replaced.
"""

import re
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path


def normalized(requirement: str) -> str:
    """The package's name in a requirement or constraint, spelled as PEP 503 says."""
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    if name is None:
        raise SystemExit(f"not a requirement: {requirement!r}")
    return re.sub(r"[-_.]+", "-", name.group()).lower()


def requirements(pyproject: str, extras: Sequence[str]) -> list[str]:
    """The project's dependencies with those of some extras."""
    project = tomllib.loads(pyproject)["project"]
    optional = project["optional-dependencies"]
    return [*project["dependencies"], *(line for extra in extras for line in optional[extra])]


def constraints(pins: Iterable[str], installed: Mapping[str, str]) -> list[str]:
    """Pins for what is not installed, and for what was built for this image."""
    lacking = [pin for pin in pins if normalized(pin) not in installed]
    built = [f"{name}=={version}" for name, version in installed.items() if "+" in version]
    return lacking + sorted(built)


def main(project: Path, folder: Path, extras: Sequence[str]) -> None:
    """Write the two files."""
    installed = {normalized(d.name): d.version for d in metadata.distributions() if d.name}
    lines = [line.strip() for line in (project / "constraints.txt").read_text().splitlines()]
    pins = [line for line in lines if line and not line.startswith("#")]
    wanted = requirements((project / "pyproject.toml").read_text(), extras)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "requirements.txt").write_text("\n".join(wanted) + "\n")
    (folder / "constraints.txt").write_text("\n".join(constraints(pins, installed)) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
