"""What a submission has that the last one had not: short, and nothing left out."""

import json
from pathlib import Path

from toolkit.launch.code import Code
from toolkit.launch.difference import changes
from toolkit.launch.rendered import RenderedJob

NAMES = ("vocabulary", "corpus.shards", "corpus.finish", "base", "chat", "scores", "more")


def code(root: Path, digest: str, **files: str) -> Code:
    for name, text in files.items():
        (root / f"{name}.py").parent.mkdir(parents=True, exist_ok=True)
        (root / f"{name}.py").write_text(text)
    names = tuple(f"{name}.py" for name in files)
    return Code(root, names, digest * 16, "c" * 40, "", ())


def script(name: str, digest: str, limit: str = "1:00:00", image: str = "one") -> RenderedJob:
    stage = name.partition(".")[0]
    text = f"""\
#SBATCH --job-name=run.{name}
#SBATCH --time={limit}
export PYTHONPATH=/runs/run/code/{digest * 16}
srun --container-image={image} python /runs/run/{stage}
"""
    return RenderedJob(name, stage, text, ())


def sent(run: Path, jobs: list[RenderedJob], made: Code) -> None:
    folder = run / "slurm" / "0001"
    folder.mkdir(parents=True)
    for job in jobs:
        (folder / job.file).write_text(job.text)
    record = {"time": "", "cluster": "lab", "file": "p.yaml", "overrides": [], "only": []}
    record |= {"cwd": "", "code": made.record(), "folder": "0001", "jobs": []}
    (folder / "submission.json").write_text(json.dumps(record))
    made.pack(run)


def test_nothing_is_told_of_a_first_submission_or_of_the_same_again(tmp_path: Path) -> None:
    made = code(tmp_path / "checkout", "a", one="1")
    jobs = [script(name, "a") for name in NAMES]
    run = tmp_path / "run"
    assert changes(run, jobs, made) == ""
    sent(run, jobs, made)
    assert changes(run, jobs, made) == ""


def test_a_digest_that_stands_in_every_script_is_told_as_the_files_behind_it(
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    old = code(tmp_path / "checkout", "a", one="1", two="2", gone="3")
    sent(run, [script(name, "a") for name in NAMES], old)
    (tmp_path / "checkout" / "gone.py").unlink()
    new = code(tmp_path / "checkout", "b", one="1", two="changed", three="new")
    found = changes(run, [script(name, "b") for name in NAMES], new)
    assert found == "code: commit cccccccccccc; changed: two.py, three.py, gone.py (gone)"


def test_a_change_of_many_jobs_is_told_once(tmp_path: Path) -> None:
    run = tmp_path / "run"
    made = code(tmp_path / "checkout", "a", one="1")
    sent(run, [script(name, "a") for name in NAMES], made)
    jobs = [script(n, "a", "2:00:00" if n == "base" else "1:00:00", "two") for n in NAMES]
    assert changes(run, [*jobs, script("last", "a")], made).splitlines() == [
        "new: last",
        "vocabulary, corpus.shards, corpus.finish, base, chat and 2 more (7 jobs):",
        "  -srun --container-image=one python /runs/run/vocabulary",
        "  +srun --container-image=two python /runs/run/vocabulary",
        "base:",
        "  -#SBATCH --time=1:00:00",
        "  +#SBATCH --time=2:00:00",
    ]
