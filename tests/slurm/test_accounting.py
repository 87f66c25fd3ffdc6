"""What sacct knows of a run's jobs when squeue has forgotten them."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from jobs import slurm, stages, status, toolkit, until
from lab import lab

from toolkit.launch.submissions import sent_jobs

pytestmark = pytest.mark.slurm
PIPELINE = """\
name: ends
stages:
  well: {kind: train-tokenizer, sources: [a.jsonl], vocab_size: 300}
  lost: {kind: train-tokenizer, sources: [a.jsonl], vocab_size: 301}
  ended: {kind: train-tokenizer, sources: [a.jsonl], vocab_size: 302}
  broken: {kind: train-tokenizer, sources: [a.jsonl], vocab_size: 303}
  behind: {kind: tokenize, sources: [a.jsonl], tokenizer: broken, resources: {nodes: 2}}
"""
PYTHON = """\
#!/bin/bash
# a worker that ends as its stage is named
case $3 in
*/lost | */ended) exec sleep 600 ;;
*/broken) echo "no python here" >&2; exit 77 ;;
esac
exec {python} "$@"
"""


@pytest.fixture(scope="module", autouse=True)
def accounting() -> Iterator[Path]:
    with lab("-a", conf="MinJobAge=2") as folder:
        yield folder


def test_what_became_of_jobs_is_known_after_squeue_has_forgotten_them(folder: Path) -> None:
    (folder / "p.yaml").write_text(PIPELINE)
    python = folder / "python"
    python.write_text(PYTHON.format(python=sys.executable))
    python.chmod(0o755)
    with (folder / "c.yaml").open("a") as stream:
        stream.write(f"python: {python}\nrequeue: false\n")
    toolkit("submit", "p.yaml", "--cluster", "c.yaml")
    run = folder / "runs" / "ends"
    ids = {name: job["id"] for name, job in sent_jobs(run).items()}
    until(lambda: all(stages(run)[n]["state"] == "running" for n in ("lost", "ended")), "both", 60)
    node = str(stages(run)["lost"]["nodes"])
    slurm("scancel", ids["ended"])
    until(lambda: stages(run)["well"]["state"] == "complete", "the good one", 60)
    slurm("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
    until(lambda: not slurm("squeue", "-h"), "the end of all jobs", 60)
    until(lambda: not slurm("squeue", "-h", "--states=all"), "squeue's forgetting", 60)
    until(lambda: not any(row["lost"] for row in stages(run).values()), "sacct's lag", 30)

    rows = stages(run)
    assert [(row["state"], row["slurm"]) for row in rows.values()] == [
        ("complete", "COMPLETED"),
        ("failed", "NODE_FAIL"),
        ("interrupted", "CANCELLED"),
        ("failed", "FAILED"),
        ("interrupted", "CANCELLED"),
    ]
    assert rows["lost"]["nodes"] == node and rows["lost"]["elapsed_seconds"]
    shown = status(run, COLUMNS="120")
    assert "Slurm ended it: NODE_FAIL" in shown and "exclude" in shown
    assert "FAILED on node" in shown
    toolkit("resubmit", str(run))
    again = {name for name, job in sent_jobs(run).items() if job["id"] != ids[name]}
    assert again == set(ids) - {"well"}
    toolkit("cancel", str(run))
