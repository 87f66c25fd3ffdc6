"""What a run decides for each stage: skip, start, resume, or refuse with the keys that changed."""

from pathlib import Path

import pytest

from toolkit.artifacts import MANIFEST
from toolkit.errors import BusyError, ConfigError, ToolkitError
from toolkit.pipeline.loading import load_pipeline
from toolkit.pipeline.run import Run, plan_run, read_run, write_run
from toolkit.pipeline.state import StageState, input_digests, locked, operational, write_state
from toolkit.posttrain.config import SftConfig

TEXT = """\
name: test
stages:
  vocabulary: {kind: train-tokenizer, sources: [FILE], vocab_size: 512}
  corpus: {kind: tokenize, sources: [FILE], tokenizer: vocabulary}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "a.txt").write_text("some text\n")
    path = tmp_path / "p.yaml"
    path.write_text(TEXT.replace("FILE", "a.txt"))
    return path


def plan(file: Path, *overrides: str, **options: object) -> Run:
    return plan_run(load_pipeline(file, overrides), file.parent / "run", **options)  # type: ignore[arg-type]


def finish(run: Run, *names: str) -> None:
    for task in run.tasks:
        if task.name in names:
            (task.folder / "artifact").mkdir(parents=True)
            (task.folder / "artifact" / MANIFEST).write_text("{}")


def begin(run: Run) -> None:
    for task in run.tasks:
        task.folder.mkdir(parents=True, exist_ok=True)
        task.file.write(task.folder)


def actions(run: Run) -> dict[str, str]:
    return {task.name: task.action for task in run.tasks}


def test_start_resume_skip(file: Path) -> None:
    run = plan(file)
    assert actions(run) == {"vocabulary": "start", "corpus": "start"}
    begin(run)
    finish(run, "vocabulary")
    assert actions(plan(file)) == {"vocabulary": "skip", "corpus": "resume"}


def test_a_file_is_the_same_wherever_it_is_named_from(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(file.parent)
    begin(plan_run(load_pipeline(Path("p.yaml")), file.parent / "run"))
    (file.parent / "below").mkdir()
    monkeypatch.chdir("below")
    again = plan_run(load_pipeline(Path("../p.yaml")), file.parent / "run")
    assert set(actions(again).values()) == {"resume"}


def test_an_input_that_was_made_again_makes_what_follows_stale(file: Path) -> None:
    chain = "  blended: {kind: split, data: corpus}\n"
    file.write_text(file.read_text() + chain)
    run = plan(file)
    begin(run)
    finish(run, "vocabulary", "corpus", "blended")
    for task in run.tasks:
        digests = input_digests(task.folder, task.file)
        write_state(task.folder, StageState("complete", task.file.fingerprint, inputs=digests))
    assert set(actions(plan(file)).values()) == {"skip"}
    (run.folder / "vocabulary" / "artifact" / MANIFEST).write_text('{"created": "later"}')
    with pytest.raises(
        ToolkitError, match=r"(?s)corpus:\n *inputs\.vocabulary: was made again"
    ) as e:
        plan(file)
    assert "blended:\n    follows from the stages above" in str(e.value)
    again = plan(file, fresh=True)
    assert actions(again) == {"vocabulary": "skip", "corpus": "start", "blended": "start"}
    assert not (run.folder / "blended").exists()


def test_a_changed_setting_is_refused_with_its_values_and_reaches_downstream(file: Path) -> None:
    begin(plan(file))
    with pytest.raises(ToolkitError) as caught:
        plan(file, "stages.vocabulary.vocab_size=600")
    assert "vocab_size: 512 -> 600" in caught.value.message
    assert "corpus" in caught.value.message
    assert "follows from the stages above" in caught.value.message
    assert "--fresh" in str(caught.value.hint)


def test_changed_data_is_refused(file: Path) -> None:
    begin(plan(file))
    (file.parent / "a.txt").write_text("other text of another length\n")
    with pytest.raises(ToolkitError, match=r"inputs\..*a\.txt"):
        plan(file)


def test_operational_settings_change_nothing(file: Path) -> None:
    begin(plan(file))
    run = plan(file, "stages.corpus.resources.cpus_per_task=2")
    assert actions(run) == {"vocabulary": "resume", "corpus": "resume"}


def test_fresh_moves_aside_only_what_changed(file: Path) -> None:
    run = plan(file)
    begin(run)
    finish(run, "vocabulary", "corpus")
    run = plan(file, "stages.corpus.append_eod=false", fresh=True)
    assert actions(run) == {"vocabulary": "skip", "corpus": "start"}
    (moved,) = (file.parent / "run" / ".old").iterdir()
    assert moved.name.startswith("corpus-")
    assert (moved / "artifact" / MANIFEST).exists()


def test_fresh_with_only_begins_that_stage_anew(file: Path) -> None:
    run = plan(file)
    begin(run)
    finish(run, "vocabulary", "corpus")
    run = plan(file, fresh=True, only=["corpus"])
    assert actions(run) == {"corpus": "start"}
    assert not (file.parent / "run" / "corpus").exists()


def test_only_needs_what_it_takes(file: Path) -> None:
    with pytest.raises(ToolkitError, match="needs 'vocabulary', which is pending"):
        plan(file, only=["corpus"])
    with pytest.raises(ConfigError, match="did you mean 'corpus'"):
        plan(file, only=["corpsu"])


def test_a_refused_run_moves_nothing(file: Path) -> None:
    begin(plan(file))
    before = sorted(p.name for p in (file.parent / "run").iterdir())
    with pytest.raises(ToolkitError):
        plan(file, "stages.vocabulary.vocab_size=600")
    assert sorted(p.name for p in (file.parent / "run").iterdir()) == before


def test_the_order_of_stages_is_kept_for_later_readers(file: Path) -> None:
    run = plan(file)
    run.folder.mkdir()
    write_run(load_pipeline(file), run)
    assert list(read_run(run.folder)) == ["vocabulary", "corpus"]
    with pytest.raises(ToolkitError, match="not a run's folder"):
        read_run(file.parent)


def test_an_unreadable_stage_file_is_moved_aside_by_fresh(file: Path) -> None:
    begin(plan(file))
    (file.parent / "run" / "corpus" / "stage.yaml").write_text("a: [")
    with pytest.raises(ToolkitError, match="not a readable stage file"):
        plan(file)
    assert actions(plan(file, fresh=True))["corpus"] == "start"


def test_fresh_waits_for_a_worker_that_still_writes(file: Path) -> None:
    begin(plan(file))
    with locked(file.parent / "run" / "corpus", "stage"), pytest.raises(BusyError):
        plan(file, "stages.corpus.append_eod=false", fresh=True)


def test_sample_data_of_another_python_is_other_data(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = "stages.corpus.sources=[sample:python-docs]"
    begin(plan(file, samples))
    monkeypatch.setattr("toolkit.pipeline.run.SAMPLES_OF", "python-3.99.0")
    with pytest.raises(ToolkitError, match=r"sample:python-docs: python-.* -> python-3\.99"):
        plan(file, samples)


def test_ranks_are_part_of_fine_tuning() -> None:
    config = SftConfig.model_validate({"kind": "sft", "model": "x", "data": ["y"]})
    left_out = operational(config)
    assert "resources" not in left_out
    assert "resources.cpus_per_task" in left_out
