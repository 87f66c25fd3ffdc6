"""README.md says what is true: its tables, trees, commands and examples are checked here."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer.main
from typer.testing import CliRunner

import toolkit
from toolkit.cli import app
from toolkit.context import StageContext
from toolkit.errors import ExitCode
from toolkit.pipeline import registry
from toolkit.pipeline.loading import load_pipeline
from toolkit.pipeline.registry import stage_kinds

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(first_line: str) -> str:
    """The fenced block that starts with a line."""
    found = re.search(rf"^```\w+\n({re.escape(first_line)}\n.*?)^```$", README, re.M | re.S)
    assert found, f"README.md has no block that starts with {first_line!r}"
    return found.group(1)


def section(title: str) -> str:
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", README, re.M | re.S)
    assert found, f"README.md has no section {title!r}"
    return found.group(1)


def test_the_table_of_stage_kinds_is_the_registry() -> None:
    rows = re.findall(r"^\| `([\w-]+)` \| (.+?) \|$", section("Stage kinds"), re.M)
    assert rows == [(kind.name, kind.summary) for kind in stage_kinds().values()]


def test_the_exit_codes_are_the_code_s() -> None:
    codes = [int(code) for code in re.findall(r"^\| (\d+) \|", section("A run's folder"), re.M)]
    assert codes == sorted(set(ExitCode) - {ExitCode.SAVED_AND_STOPPED})
    assert f"ends with {ExitCode.SAVED_AND_STOPPED}," in section("A run's folder")


def paths_of_the_tree() -> Iterator[Path]:
    """The paths that the tree names, from its indentation."""
    folder = ROOT
    for line in block("Makefile             make help lists the targets").splitlines():
        indented = line.startswith("  ")
        names = re.match(r"\s*((?:[\w.-]+/?)(?:  [\w.-]+/)*)", line)
        assert names is not None
        for name in names.group(1).split():
            path = (folder if indented else ROOT) / name
            if not indented and name == "toolkit/":
                folder = path
            yield path


def test_the_tree_is_the_checkout_s() -> None:
    paths = list(paths_of_the_tree())
    assert len(paths) > 20
    assert not [p for p in paths if not p.exists()]
    shown = {p.name for p in paths if p.parent.name == "toolkit"}
    there = {
        p.name
        for p in (ROOT / "toolkit").iterdir()
        if (p.is_dir() and (p / "__init__.py").exists()) or p.suffix == ".py"
    }
    assert shown == there - {"__init__.py", "share.py"}


def test_every_verb_and_target_that_it_names_exists() -> None:
    verbs = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    assert set(re.findall(r"^toolkit ([a-z]+)", README, re.M)) <= verbs
    assert set(re.findall(r"`toolkit ([a-z]+)", README)) <= verbs
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"(?:^|`)make ([a-z-]+)", README, re.M)) <= targets


def test_its_pipeline_is_valid(tmp_path: Path) -> None:
    file = tmp_path / "pipeline.yaml"
    file.write_text(block("# pipeline.yaml"))
    assert len(load_pipeline(file).pipeline.stages) == 6


def test_a_wrong_file_prints_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wrong.yaml").write_text(block("# wrong.yaml"))
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["check", "wrong.yaml"])
    assert done.exit_code == ExitCode.USER_ERROR
    printed = re.search(r"^```text\n(\d+ mistakes:\n.*?)^```$", README, re.M | re.S)
    assert printed and done.stderr == printed.group(1)


def test_a_plan_prints_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "110")
    command = re.search(r"^toolkit (plan .* --tokens 15T)", README, re.M)
    shown = re.search(r"^```text\n(base  .*?)\n\nsearch", README, re.M | re.S)
    assert command and shown
    done = CliRunner().invoke(app, command.group(1).split())
    printed = "\n".join(line.rstrip() for line in done.stdout.splitlines())
    assert printed.startswith(shown.group(1))


@pytest.fixture
def average(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The stage kind that README.md adds, added."""
    for name in ("config", "average"):
        heading = f"# toolkit/average/{name}.py"
        path = tmp_path / heading.removeprefix("# ")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block(heading))
    (tmp_path / "toolkit" / "average" / "__init__.py").touch()
    monkeypatch.setattr(toolkit, "__path__", [*toolkit.__path__, str(tmp_path / "toolkit")])
    line = re.search(r"registry\.py`: `\"([\w.]+)\",`", README)
    assert line is not None
    monkeypatch.setattr(registry, "DOMAINS", (*registry.DOMAINS, line.group(1)))
    stage_kinds.cache_clear()
    yield
    stage_kinds.cache_clear()
    for name in [n for n in sys.modules if n.startswith("toolkit.average")]:
        del sys.modules[name]


def test_the_stage_kind_that_it_adds_works(
    average: None, tmp_path: Path, stage_context: Callable[..., StageContext]
) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    for name, value in (("one", 1.0), ("two", 3.0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        save_file({"weight": torch.full((2, 2), value)}, tmp_path / name / "model.safetensors")
    kind = stage_kinds()["average"]
    config = kind.config.model_validate({"kind": "average", "models": ["one", "two"]})
    context = stage_context("mean", "average", **{n: tmp_path / n for n in ("one", "two")})
    artifact = kind.load()(config, context)
    assert artifact.type == "model" and artifact.info == {"averaged": 2}
    mean = load_file(artifact.path("model.safetensors"))["weight"]
    assert torch.equal(mean, torch.full((2, 2), 2.0))
    assert artifact.path("config.json").is_file()


def test_the_stage_kind_that_it_adds_is_checked(average: None, tmp_path: Path) -> None:
    file = tmp_path / "mean.yaml"
    text = block("# pipeline.yaml") + "  mean: {kind: average, models: [base-hf, corpus]}\n"
    file.write_text(text)
    done = CliRunner().invoke(app, ["check", str(file)])
    assert done.exit_code == ExitCode.USER_ERROR
    assert "'mean' (average) needs a model" in done.stderr
    assert "'corpus' (tokenize) makes a dataset" in done.stderr
    file.write_text(text.replace("corpus]}", "base-hf]}"))
    assert CliRunner().invoke(app, ["check", str(file)]).exit_code == 0
