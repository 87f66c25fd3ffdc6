"""pyproject.toml, constraints.txt and the imports agree."""

import ast
import importlib.util
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FROM_THE_IMAGE = {"transformer_engine", "apex", "amp_C", "flash_attn"}
"""What comes with NVIDIA's image, and is imported only where it is."""
WHERE_IT_IS = {"fasttext", "datatrove", "datasketch", "mistral_common", "loguru"}
"""A library that a user's own model file needs, and the benchmarks' and tests' peers."""


def pins(python: str) -> dict[str, str]:
    """The exact versions of constraints.txt on a Python version, by normalized name."""
    found = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            if pin.marker is None or pin.marker.evaluate({"python_full_version": f"{python}.0"}):
                [specifier] = pin.specifier
                assert specifier.operator == "==", line
                name = canonicalize_name(pin.name)
                assert name not in found, f"{name} is pinned twice for Python {python}"
                found[name] = specifier.version
    return found


def requirements() -> list[Requirement]:
    lines = [*PROJECT["dependencies"]]
    for extra in PROJECT["optional-dependencies"].values():
        lines += extra
    return [Requirement(line) for line in lines]


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_every_requirement_is_pinned_within_its_range(python: str) -> None:
    exact = pins(python)
    for requirement in requirements():
        version = exact[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} but {version} is pinned"


def test_megatron_core_is_the_newest_that_each_python_can_have() -> None:
    assert Version(pins("3.11")["megatron-core"]) < Version("0.17")
    assert Version(pins("3.12")["megatron-core"]) >= Version("0.17")


@pytest.mark.parametrize("name", ["numpy", "pyyaml", "torch", "trl"])
def test_what_is_installed_brings_nothing_that_is_not_pinned(name: str) -> None:
    exact = pins("3.11") | pins("3.12")
    for line in metadata.requires(name) or ():
        needed = Requirement(line)
        if needed.marker is None or needed.marker.evaluate({"extra": ""}):
            left_out = needed.name.startswith(("nvidia-", "cuda-", "triton"))
            assert left_out or canonicalize_name(needed.name) in exact, line


def third_party_imports(folder: Path) -> Iterator[tuple[str, Path]]:
    """(top-level module, file) of each import of something that is neither Python's nor ours."""
    shared = (path for each in (folder, ROOT / "tests" / "plan") for path in each.rglob("*.py"))
    ours = {"toolkit", "megatron", *(path.stem for path in shared)}
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            for top in {name.partition(".")[0] for name in names}:
                if top not in sys.stdlib_module_names and top not in ours:
                    yield top, path


@pytest.mark.parametrize("folder", ["toolkit", "tests", "benchmarks"])
def test_every_import_is_a_declared_requirement(folder: str) -> None:
    declared = {canonicalize_name(requirement.name) for requirement in requirements()}
    owners = metadata.packages_distributions()
    undeclared = {
        f"{module} in {path.relative_to(ROOT)}"
        for module, path in third_party_imports(ROOT / folder)
        if module not in FROM_THE_IMAGE | WHERE_IT_IS
        and not {canonicalize_name(o) for o in owners.get(module, [module])} & declared
    }
    assert not undeclared


# What an image installs (docker/requirements.py)


@pytest.fixture
def image() -> ModuleType:
    spec = importlib.util.spec_from_file_location("image", ROOT / "docker" / "requirements.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_an_image_keeps_what_was_built_for_it(image: ModuleType) -> None:
    installed = {"torch": "2.14.0a0+b2c75dd062.nv26.9", "numpy": "2.1.0", "pyyaml": "6.0.1"}
    lines = image.constraints(["torch==2.13.0", "numpy==2.4.6", "trl==1.16.0"], installed)
    assert lines == ["trl==1.16.0", "torch==2.14.0a0+b2c75dd062.nv26.9"]
    assert all(Requirement(line) for line in lines)


def test_names_are_compared_as_the_index_does(image: ModuleType) -> None:
    assert image.normalized("lm_eval>=0.4.11,<0.5") == "lm-eval"
    assert image.constraints(["lm-eval==0.4.13", "ruamel.yaml==0.19.1"], {"lm-eval": "0.4.12"}) == [
        "ruamel.yaml==0.19.1"
    ]


def test_an_image_s_requirements_are_the_project_s(image: ModuleType, tmp_path: Path) -> None:
    image.main(ROOT, tmp_path, ["train", "k8s"])
    wanted = (tmp_path / "requirements.txt").read_text().splitlines()
    optional = PROJECT["optional-dependencies"]
    assert wanted == [*PROJECT["dependencies"], *optional["train"], *optional["k8s"]]
    constraints = (tmp_path / "constraints.txt").read_text()
    assert "kubernetes==" in constraints and "\ntransformers==" not in constraints
