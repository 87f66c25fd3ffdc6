"""Submitting, with stand-ins for Slurm's commands: what is sent, recorded, and taken back.

tests/slurm does the same with a real Slurm; here are the refusals that one can't be made to give.
"""

import json
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from toolkit.cli import app
from toolkit.launch.submissions import read_submissions

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
SBATCH = """\
#!/bin/bash
echo "sbatch $*" >> "$CALLS"
echo "${!SBATCH_@}" >> "$CALLS.environment"
for word in "$@"; do script=$word; done
case "$*" in *--test-only*) exit 0 ;; esac
case "$script" in
*"${REFUSED:-nothing}") echo "sbatch: error: no more jobs for you" >&2; exit 1 ;;
esac
echo $((100 + $(grep -c parsable "$CALLS"))) | tee -a "$QUEUE"
"""
SCANCEL = """\
#!/bin/bash
echo "scancel $*" >> "$CALLS"
: > "$QUEUE"
"""
SQUEUE = """\
#!/bin/bash
while read -r id; do echo "$id|PENDING|Dependency||0:00|1:00:00|N/A|"; done < "$QUEUE"
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COLUMNS", "160")
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in (("sbatch", SBATCH), ("scancel", SCANCEL), ("squeue", SQUEUE)):
        (commands / name).write_text(text)
        (commands / name).chmod(stat.S_IRWXU)
    for name in ("calls", "queue"):
        (tmp_path / name).touch()
        monkeypatch.setenv(name.upper(), str(tmp_path / name))
    (commands / "sacct").symlink_to("/bin/false")
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    (tmp_path / "p.yaml").write_text(PIPELINE)
    (tmp_path / "c.yaml").write_text(CLUSTER)
    (tmp_path / "a.txt").write_text("many words\n" * 100)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def toolkit(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, words)
    return done.exit_code, done.output


SUBMIT = ("submit", "p.yaml", "--cluster", "c.yaml")


def sent(folder: Path) -> list[str]:
    lines = (folder / "calls").read_text().splitlines()
    return [line.replace(f"{folder}/", "") for line in lines if "--test-only" not in line]


def test_every_job_is_sent_behind_what_it_needs_and_recorded(folder: Path) -> None:
    code, output = toolkit(*SUBMIT)
    assert code == 0, output
    after = "sbatch --parsable --kill-on-invalid-dep=yes --dependency=afterok"
    assert sent(folder) == [
        "sbatch --parsable runs/two/slurm/0001/vocabulary.sh",
        f"{after}:101 runs/two/slurm/0001/corpus.shards.sh",
        f"{after}:102 runs/two/slurm/0001/corpus.finish.sh",
    ]
    tests = [li for li in (folder / "calls").read_text().splitlines() if "--test-only" in li]
    assert len(tests) == 2  # the first job and the last one ask for the same
    [submission] = read_submissions(folder / "runs/two")
    assert [job["id"] for job in submission.jobs] == ["101", "102", "103"]
    assert (folder / "runs/two/corpus/stage.yaml").is_file()
    assert submission.code is not None
    packed = folder / "runs/two/code" / submission.code["digest"]
    assert (packed / "toolkit/worker.py").is_file()
    assert json.loads((packed / "code.json").read_text())["commit"] == submission.code["commit"]


def test_what_render_writes_is_what_submit_sends(folder: Path) -> None:
    assert toolkit("render", "p.yaml", "--cluster", "c.yaml", "-o", "out")[0] == 0
    assert not (folder / "runs").exists()
    assert toolkit(*SUBMIT)[0] == 0
    rendered = {p.name: p.read_text() for p in (folder / "out").iterdir()}
    assert rendered == {
        p.name: p.read_text() for p in (folder / "runs/two/slurm/0001").glob("*.sh")
    }


def test_what_a_site_sets_for_sbatch_does_not_win_over_a_script(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("EXPORT", "TIMELIMIT", "ACCOUNT", "QOS"):
        monkeypatch.setenv(f"SBATCH_{name}", "1")
    (folder / "c.yaml").write_text(CLUSTER + "qos: high\n")
    assert toolkit(*SUBMIT)[0] == 0
    script = folder / "runs/two/slurm/0001/submit.sh"
    subprocess.run([str(script)], check=True, stdout=subprocess.DEVNULL)
    seen = (folder / "calls.environment").read_text().splitlines()
    assert len(seen) == 2 + 3 + 3 and set(seen) == {"SBATCH_ACCOUNT"}


@pytest.mark.parametrize("signal", ["INT", "TERM"])
def test_submit_sh_takes_all_back_when_it_is_stopped(folder: Path, signal: str) -> None:
    assert toolkit("render", *SUBMIT[1:], "-o", "out")[0] == 0
    done = subprocess.run(["bash", "out/submit.sh"], stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1 and "runs/two is not laid out" in done.stderr
    assert not sent(folder)
    (folder / "runs" / "two").mkdir(parents=True)
    (folder / "runs" / "two" / "pipeline.yaml").touch()
    with (folder / "bin" / "sbatch").open("a") as sbatch:
        sbatch.write(f"[[ $script != corpus.finish.sh ]] || kill -{signal} $(ps -o ppid= $PPID)\n")
    heard = ["env", "--default-signal=INT", "bash", "out/submit.sh"]  # a background job ignores it
    done = subprocess.run(heard, stdout=subprocess.DEVNULL, check=False)
    assert (done.returncode, sent(folder)[-1]) == (130, "scancel 101 102")


def test_what_the_cluster_alone_has_is_no_mistake_elsewhere(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    image = "container: {runtime: pyxis, image: /no/image.sqsh}\nsecrets: [NO_SUCH_KEY]\n"
    (folder / "c.yaml").write_text(CLUSTER + image)
    told = ("no such file: /no/image.sqsh", "NO_SUCH_KEY is not set here")
    for words in (SUBMIT, (*SUBMIT, "--dry-run"), ("check", *SUBMIT[1:])):
        code, output = toolkit(*words)
        assert code == 2 and all(text in output for text in told)
    code, output = toolkit("render", *SUBMIT[1:], "-o", "out")
    assert code == 0 and all(text in output for text in told)
    monkeypatch.setenv("PATH", "/usr/bin-without-slurm")
    code, output = toolkit("check", *SUBMIT[1:])
    assert code == 0 and all(text in output for text in told)


def test_a_dry_run_sends_and_writes_nothing(folder: Path) -> None:
    code, output = toolkit(*SUBMIT, "--dry-run")
    assert code == 0
    assert "corpus.shards" in output and "nothing was sent" in output
    assert sent(folder) == [] and not (folder / "runs").exists()


def test_a_refusal_half_way_takes_everything_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFUSED", "corpus.finish.sh")
    code, output = toolkit(*SUBMIT)
    assert code == 2
    assert "'corpus.finish' (3 of 3)" in output and "no more jobs for you" in output
    assert "nothing is queued" in output
    assert sent(folder)[-1] == "scancel --quiet 101 102"
    [submission] = read_submissions(folder / "runs/two")
    assert submission.withdrawn
    monkeypatch.delenv("REFUSED")
    assert toolkit(*SUBMIT)[0] == 0


def test_a_run_that_is_under_way_is_not_sent_twice(folder: Path) -> None:
    assert toolkit(*SUBMIT)[0] == 0
    code, output = toolkit(*SUBMIT)
    assert code == 2
    assert "vocabulary (101)" in output and "toolkit cancel" in output
    assert len(sent(folder)) == 3


def test_resubmit_sends_what_is_missing_behind_what_is_under_way(folder: Path) -> None:
    assert toolkit(*SUBMIT)[0] == 0
    (folder / "queue").write_text("101\n")  # the array and its last job are gone
    assert toolkit("resubmit", "runs/two")[0] == 0
    after = "sbatch --parsable --kill-on-invalid-dep=yes --dependency=afterok"
    assert sent(folder)[3:] == [
        f"{after}:101 runs/two/slurm/0002/corpus.shards.sh",
        f"{after}:104 runs/two/slurm/0002/corpus.finish.sh",
    ]


def test_a_run_that_slurm_works_on_is_not_run_here_too(folder: Path) -> None:
    assert toolkit(*SUBMIT)[0] == 0
    code, output = toolkit("run", "p.yaml")
    assert code == 2 and "this run has jobs under way: vocabulary (101)" in output
    assert not (folder / "runs" / "two" / "vocabulary" / "state.json").exists()


def test_resubmit_with_fresh_begins_anew_where_an_input_was_mended(folder: Path) -> None:
    assert toolkit(*SUBMIT)[0] == 0
    assert toolkit("cancel", "runs/two")[0] == 0
    (folder / "a.txt").write_text("mended\n")
    code, output = toolkit("resubmit", "runs/two")
    assert code == 2 and "--fresh" in output
    assert toolkit("resubmit", "runs/two", "--fresh")[0] == 0
    assert len(list((folder / "runs" / "two" / ".old").iterdir())) == 2


def test_resubmit_is_of_all_that_was_submitted(folder: Path) -> None:
    assert toolkit(*SUBMIT)[0] == 0
    (folder / "queue").write_text("")
    assert toolkit(*SUBMIT, "--only", "vocabulary")[0] == 0
    (folder / "queue").write_text("")
    assert toolkit("resubmit", "runs/two")[0] == 0
    assert [line.rpartition("/")[2] for line in sent(folder)[4:]] == [
        "vocabulary.sh",
        "corpus.shards.sh",
        "corpus.finish.sh",
    ]


def test_resubmit_goes_where_overrides_begin_and_says_if_that_is_gone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = folder / "away"
    for more in ((), ("seed=7",)):
        away.mkdir()
        monkeypatch.chdir(away)
        assert toolkit("submit", "../p.yaml", "--cluster", "../c.yaml", *more, "--fresh")[0] == 0
        (folder / "queue").write_text("")
        monkeypatch.chdir(folder)
        run = folder / "run"
        (away / "runs" / "two").rename(run)
        shutil.rmtree(away)
        code, output = toolkit("resubmit", str(run))
        assert code == (2 if more else 0), output
        shutil.rmtree(run)
        (folder / "queue").write_text("")
    assert f"submitted in {away}, which is not here, with seed=7" in output
    assert f"--run-dir {run}" in output


def test_what_differs_from_the_last_submission_is_shown(folder: Path) -> None:
    assert toolkit(*SUBMIT)[0] == 0
    (folder / "queue").write_text("")
    (folder / "c.yaml").write_text(CLUSTER.replace("1:00:00", "2:00:00"))
    code, output = toolkit(*SUBMIT, "--dry-run")
    assert code == 0
    assert "-#SBATCH --time=01:00:00" in output and "+#SBATCH --time=02:00:00" in output
    code, again = toolkit(*SUBMIT)
    assert code == 0
    assert "+#SBATCH --time=02:00:00" in again


def test_status_and_cancel(folder: Path) -> None:
    assert toolkit(*SUBMIT)[0] == 0
    code, output = toolkit("status", "runs/two")
    assert code == 0
    assert "PENDING (Dependency)" in output and "102" in output
    code, output = toolkit("cancel", "runs/two", "corpus")
    assert code == 0 and "corpus.shards, corpus.finish" in output
    assert sent(folder)[-1] == "scancel --quiet 102 103"
    assert "nothing waits or runs" in toolkit("cancel", "runs/two")[1]
    code, output = toolkit("cancel", "runs/two", "korpus")
    assert code == 2 and "did you mean 'corpus'" in output


def test_without_slurm_the_run_folder_s_word_is_shown(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert toolkit(*SUBMIT)[0] == 0
    monkeypatch.setenv("PATH", "/nowhere")
    code, output = toolkit("status", "runs/two")
    assert code == 0 and "pending" in output


def test_logs_say_what_there_is(folder: Path) -> None:
    assert toolkit(*SUBMIT)[0] == 0
    code, output = toolkit("logs", "runs/two", "corpus")
    assert code == 2 and "has written nothing yet" in output
    (folder / "runs/two/corpus/logs/rank-0.log").write_text("one\ntwo\n")
    assert toolkit("logs", "runs/two", "corpus", "-n", "1") == (0, "two\n")
    code, output = toolkit("logs", "runs/two", "corpus", "--rank", "7")
    assert code == 2 and "there are 0 to 0" in output
