"""The wheel: what it holds, and that it serves a login node, which has no torch."""

import re
import subprocess
import sys
import venv
import zipfile
from email import message_from_string
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory"]
    done = subprocess.run(
        [*command, str(folder)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    [built] = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def login_node(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel and its core requirements, and nothing else."""
    folder = tmp_path_factory.mktemp("login-node")
    venv.create(folder, symlinks=True, with_pip=False)
    [site] = folder.glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    installed: set[str] = set()
    for requirement in core_requirements(wheel):
        link_distribution(requirement, site, installed)
    return folder


def core_requirements(wheel: Path) -> list[Requirement]:
    """What the wheel requires without any extra."""
    with zipfile.ZipFile(wheel) as archive:
        [name] = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        headers = message_from_string(archive.read(name).decode())
    lines = [Requirement(line) for line in headers.get_all("Requires-Dist") or ()]
    return [r for r in lines if needed(r)]


def needed(requirement: Requirement) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": ""})


def link_distribution(requirement: Requirement, site: Path, installed: set[str]) -> None:
    """Link an installed distribution, and what it requires, into another environment."""
    if requirement.name in installed:
        return
    installed.add(requirement.name)
    found = metadata.distribution(requirement.name)
    tops = {file.parts[0] for file in found.files or () if not file.parts[0].startswith("..")}
    for top in tops - {"__pycache__"}:
        if not (site / top).exists():
            (site / top).symlink_to(Path(str(found.locate_file(top))))
    for line in found.requires or ():
        if needed(Requirement(line)):
            link_distribution(Requirement(line), site, installed)


def toolkit(environment: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in an environment, away from the checkout."""
    main = "import sys; from toolkit.cli import main; sys.argv[0] = 'toolkit'; main()"
    command = [str(environment / "bin" / "python"), "-c", main, *arguments]
    return subprocess.run(command, cwd=environment, capture_output=True, text=True, timeout=60)


def test_the_wheel_holds_code_configs_and_templates(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    tracked = subprocess.run(
        ["git", "ls-files", "toolkit", "configs", "slurm", "k8s"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    expected = {n if n.startswith("toolkit/") else f"toolkit/_share/{n}" for n in tracked}
    assert expected <= names
    assert {"toolkit/_share/configs/mini.yaml", "toolkit/_share/slurm/README.md"} <= names
    assert any(re.fullmatch(r".*\.dist-info/licenses/LICENSE", n) for n in names)
    assert not [n for n in names if n.startswith(("tests/", "benchmarks/"))]


def test_its_core_requirements_are_light(wheel: Path) -> None:
    names = {requirement.name for requirement in core_requirements(wheel)}
    assert {"pydantic", "pyyaml", "typer", "rich", "jinja2"} <= names
    assert not names & {"torch", "numpy", "megatron-core", "transformers"}


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["--version"], ["schema"]])
def test_a_login_node_has_the_command_line(login_node: Path, arguments: list[str]) -> None:
    done = toolkit(login_node, *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_a_login_node_checks_a_pipeline(login_node: Path) -> None:
    [mini] = login_node.glob("lib/python*/site-packages/toolkit/_share/configs/mini.yaml")
    done = toolkit(login_node, "check", str(mini))
    assert done.returncode == 0, done.stderr
    assert "pretrain" in done.stdout and "train-tokenizer" in done.stdout
    wrong = toolkit(login_node, "check", str(mini), "sed=1")
    assert wrong.returncode == 2
    assert "seed" in wrong.stderr


def test_a_login_node_can_ask_the_doctor(login_node: Path) -> None:
    done = toolkit(login_node, "doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "run no stage" in done.stdout
    assert "the check broke" not in done.stdout


def test_a_stage_on_a_login_node_says_what_to_install(login_node: Path) -> None:
    (login_node / "text.txt").write_text("some text\n")
    (login_node / "one.yaml").write_text(
        "name: one\nstages:\n"
        "  vocabulary: {kind: train-tokenizer, sources: [text.txt], vocab_size: 300}\n"
    )
    done = toolkit(login_node, "run", "one.yaml")
    assert done.returncode in (1, 2), done.stdout + done.stderr
    assert "data]" in done.stdout + done.stderr
