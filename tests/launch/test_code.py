"""The code that jobs run: what of a checkout is packed, and what is refused."""

import subprocess
from pathlib import Path

import pytest

from toolkit.errors import ToolkitError
from toolkit.launch import code
from toolkit.launch.code import find_code

GIT = ("git", "-c", "user.name=t", "-c", "user.email=t@t", "-c", "protocol.file.allow=always")


def git(folder: Path, *words: str) -> None:
    subprocess.run([*GIT, "-C", str(folder), *words], check=True, capture_output=True)


def make(folder: Path, files: dict[str, str]) -> Path:
    """A repository with one commit of some files."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "one")
    return folder


def test_uncommitted_code_is_packed_and_named(tmp_path: Path) -> None:
    checkout = make(tmp_path / "checkout", {"toolkit/a.py": "one = 1\n", ".gitignore": "*.tmp\n"})
    clean = find_code(checkout)
    assert clean is not None and not clean.diff and not clean.untracked
    (checkout / "toolkit/a.py").write_text("one = 2\n")
    (checkout / "toolkit/b.py").write_text("two = 2\n")
    (checkout / "toolkit/c.tmp").write_text("left out")
    changed = find_code(checkout)
    assert changed is not None and changed.digest != clean.digest
    assert changed.untracked == ("toolkit/b.py",)
    killed = tmp_path / "run/code/.left-by-one-that-was-killed"
    killed.mkdir(parents=True)
    packed = changed.pack(tmp_path / "run")
    assert (packed / "toolkit/a.py").read_text() == "one = 2\n"
    assert (packed / "toolkit/b.py").is_file() and not (packed / "toolkit/c.tmp").exists()
    assert "+one = 2" in (packed / "uncommitted.diff").read_text()
    assert not killed.exists()
    assert changed.pack(tmp_path / "run") == packed


def test_what_is_installed_from_a_wheel_is_not_packed(tmp_path: Path) -> None:
    assert find_code(tmp_path) is None


def test_submodules_are_packed_with_what_is_uncommitted_in_them(tmp_path: Path) -> None:
    part = make(tmp_path / "part", {"p.py": "one = 1\n"})
    checkout = make(tmp_path / "checkout", {"toolkit/a.py": ""})
    git(checkout, "submodule", "add", "-q", str(part), "toolkit/part")
    git(checkout, "commit", "-q", "-m", "two")
    (checkout / "toolkit/part/p.py").write_text("one = 2\n")
    (checkout / "toolkit/part/q.py").write_text("")
    found = find_code(checkout)
    assert found is not None
    assert set(found.files) == {"toolkit/a.py", "toolkit/part/p.py", "toolkit/part/q.py"}
    assert found.untracked == ("toolkit/part/q.py",)
    assert "+one = 2" in found.diff
    assert (found.pack(tmp_path / "run") / "toolkit/part/p.py").read_text() == "one = 2\n"


def test_data_in_the_checkout_is_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code, "MOST", 1000)
    checkout = make(tmp_path / "checkout", {"toolkit/a.py": "", "configs/data.bin": "x" * 2000})
    with pytest.raises(ToolkitError, match=r"configs/data\.bin") as caught:
        find_code(checkout)
    assert ".gitignore" in str(caught.value)
