"""Stand-ins for Slurm's commands: they note what they are told, and answer from two files."""

import os
import stat
from pathlib import Path

import pytest

PIPELINE = """\
name: two
stages:
  vocabulary: {kind: train-tokenizer, sources: [a.txt], vocab_size: 300}
  corpus:
    kind: tokenize
    sources: [a.txt]
    tokenizer: vocabulary
    resources: {nodes: 2, ntasks_per_node: 1}
"""
CLUSTER = """\
scheduler: slurm
node: {cpus: 4, memory: 8G}
time_limit: "1:00:00"
"""
COMMANDS = {
    "sbatch": """\
for word in "$@"; do script=$word; done
case "$*" in *--test-only*) exit 0 ;; esac
number=$((101 + $(grep -c ^sbatch calls)))
echo "sbatch $*" >> calls
cp "$script" "sent/$number.sh"
if [[ -e refused ]] && grep -q -f refused "$script"; then
    echo "sbatch: error: no more jobs for you" >&2; exit 1
fi
echo "$number PENDING" >> queue
case "$*" in *--parsable*) echo $number ;; *) echo "Submitted batch job $number" ;; esac
""",
    "scancel": 'echo "scancel $*" >> calls; sed -i "s/ [A-Z]*$/ CANCELLED/" queue\n',
    "squeue": """\
[[ ! -e silent ]] || { echo "squeue: error: Unable to contact slurm controller" >&2; exit 1; }
while read -r id state; do echo "$id|$state|None||0:00|1:00:00|N/A|"; done < queue
""",
    "sacct": "exit 1\n",
    "srun": "exit 0\n",
}


def lay_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pipeline of three jobs, a profile, and Slurm's commands, in the folder to work in.

    ``queue`` has a line for each job (``101 PENDING``); ``calls`` what was called; ``sent`` the
    scripts; ``refused`` is a word of the script that sbatch refuses; with ``silent`` squeue fails.
    """
    for name in ("bin", "sent"):
        (folder / name).mkdir()
    for name in ("calls", "queue"):
        (folder / name).touch()
    for name, text in COMMANDS.items():
        (folder / "bin" / name).write_text(f"#!/bin/bash\ncd {folder}\n{text}")
        (folder / "bin" / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
    (folder / "p.yaml").write_text(PIPELINE)
    (folder / "c.yaml").write_text(CLUSTER)
    (folder / "a.txt").write_text("many words\n" * 100)
    monkeypatch.chdir(folder)
    return folder
