"""The stage: every document accounted for, the same bytes however the work is spread."""

from __future__ import annotations

import hashlib
import json
import logging
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from toolkit.artifacts import Artifact
from toolkit.context import StageContext
from toolkit.data.clean.config import CleanConfig
from toolkit.data.clean.run import run
from toolkit.data.clean.store import read_stored
from toolkit.data.documents import DocumentReader
from toolkit.data.inputs import documents_of
from toolkit.data.sources import expand
from toolkit.errors import DataError, ToolkitError
from toolkit.stage import FINISH

Make = Callable[..., StageContext]
PROSE = "It was the best of times and the worst of times, and all that we have is to be with them. "


def write_rows(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def corpus(folder: Path, documents: int = 120) -> list[str]:
    """Two files of good, bad, equal and nearly equal documents."""
    rng = random.Random(5)
    words = [f"word{n}" for n in range(400)]
    rows: list[dict[str, Any]] = []
    for number in range(documents):
        text = " ".join(rng.choice(words) for _ in range(60 + number % 9))
        if number % 10 == 3:
            text = "short"
        if number % 10 == 4:
            text = "again and again " * 40
        if number % 10 == 5:
            text = rows[number - 3]["text"]
        if number % 10 == 6:
            text = rows[number - 4]["text"] + " more"
        if number % 10 == 7:
            text += " write to jane@example.org"
        if number % 10 == 8:
            text = "  \n"
        rows.append({"id": f"doc{number}", "text": text, "url": f"https://x.example/{number}"})
    half = documents // 2
    folder.mkdir(exist_ok=True)
    return [
        write_rows(folder / "a.jsonl", rows[:half]),
        write_rows(folder / "b.jsonl", rows[half:]),
    ]


FULL: dict[str, Any] = {
    "filters": [
        {"filter": "length", "min_words": 5},
        {"filter": "gopher-repetition"},
        {"filter": "url", "extra_urls": ["https://x.example/0"]},
    ],
    "pii": {},
    "exact_dedup": {},
    "near_dedup": {},
    "keep_removed": True,
    "shard_bytes": 9000,
}


def clean(context: StageContext, sources: list[str], **settings: Any) -> Artifact:
    alone = {"resources": {"cpus_per_task": 1}, "sources": sources}
    found = run(CleanConfig.model_validate({**alone, **settings}), context)
    assert found is not None
    return found


def contents(artifact: Artifact) -> dict[str, str]:
    return {entry.path: entry.sha256 for entry in artifact.files}


def stored(artifact: Artifact, folder: str = "documents") -> list[Any]:
    return [one for path in sorted(artifact.path(folder).iterdir()) for one in read_stored(path)]


@pytest.mark.parametrize("form", ["parquet", "jsonl.zst"])
def test_every_document_is_accounted_for(stage_context: Make, tmp_path: Path, form: str) -> None:
    sources = corpus(tmp_path / "in")
    artifact = clean(stage_context("c", "clean"), sources, **FULL, output_format=form)
    info = artifact.info
    assert info["counts"] == {
        "read": 120,
        "written": 59,
        "removed": 49,
        "empty": 12,
        "quarantined": 0,
        "duplicate_ids": 0,
        "characters_read": info["counts"]["characters_read"],
        "characters_written": sum(len(one.text) for one in stored(artifact)),
    }
    assert info["drops"] == {
        "length/too_few_words": 12,
        "gopher-repetition/top_2_gram": 12,
        "exact_duplicate": 12,
        "near_duplicate": 12,
        "url/url": 1,
    }
    assert info["changed"] == {"pii": 12}
    assert info["pii"] == {"email": 12}
    assert [(row["name"], row["read"]) for row in info["per_source"]] == [(s, 60) for s in sources]
    assert sum(row["written"] for row in info["per_source"]) == 59
    kept, removed = stored(artifact), stored(artifact, "removed")
    assert Counter(one.reason for one in removed) == info["drops"]
    ids = {one.metadata["id"] for one in (*kept, *removed)}
    assert len(ids) == len(kept) + len(removed) == 108
    numbers = [int(one.metadata["id"].removeprefix("doc")) for one in kept]
    assert numbers == sorted(numbers)
    assert all(one.metadata["url"].endswith(f"/{n}") for one, n in zip(kept, numbers, strict=True))
    assert [one.text[-7:] for one, n in zip(kept, numbers, strict=True) if n % 10 == 7] == (
        ["<EMAIL>"] * 12
    )
    assert not list(artifact.folder.parent.glob("work/[fw]*"))


def by_phases(folder: Path, config: CleanConfig, ranks: int) -> Artifact:
    """Every phase on every rank, as a cluster does it."""
    folder.mkdir(parents=True)
    for phase in config.phases():
        for rank in reversed(range(ranks)):
            context = StageContext("c", "clean", folder, "test", rank=rank, world_size=ranks)
            context.phase = phase
            assert run(config, context) is None
    context = StageContext("c", "clean", folder, "test")
    context.phase = FINISH
    artifact = run(config, context)
    assert artifact is not None
    return artifact


@pytest.mark.slow
def test_ranks_and_processes_change_no_byte(tmp_path: Path) -> None:
    sources = corpus(tmp_path / "in")
    (tmp_path / "eval.jsonl").write_text(json.dumps({"text": PROSE}))
    settings = {**FULL, "sources": sources}
    settings["decontaminate"] = {"evaluations": [str(tmp_path / "eval.jsonl")]}
    config = CleanConfig.model_validate(settings)
    assert config.phases()[0] == "evaluations" and config.phases()[-1] == "write"
    folder = tmp_path / "alone"
    folder.mkdir()
    alone = run(config, StageContext("c", "clean", folder, "test"))
    assert alone is not None
    two = config.model_copy(
        update={"resources": config.resources.model_copy(update={"cpus_per_task": 2})}
    )
    folder = tmp_path / "processes"
    folder.mkdir()
    processes = run(two, StageContext("c", "clean", folder, "test"))
    assert processes is not None
    spread = [by_phases(tmp_path / f"ranks{n}", config, n) for n in (1, 3)]
    assert len(contents(alone)) > 4
    for other in (processes, *spread):
        assert contents(other) == contents(alone)
        assert dict(other.info) == dict(alone.info)


def test_a_rerun_does_only_what_is_left(
    stage_context: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = corpus(tmp_path / "in")
    whole = clean(stage_context("whole", "clean"), sources, **FULL)
    context = stage_context("killed", "clean")
    calls: list[str] = []
    from toolkit.data.clean import shard

    real = shard._clean

    def dies(reader: Any, pipeline: Any, recipe: Any, output: Any, *rest: Any) -> None:
        calls.append(output.folder.name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        real(reader, pipeline, recipe, output, *rest)

    monkeypatch.setattr(shard, "_clean", dies)
    with pytest.raises(KeyboardInterrupt):
        clean(context, sources, **FULL)
    again = clean(context, sources, **FULL)
    shards = len(set(calls))
    assert shards > 3 and len(calls) == shards + 1
    assert contents(again) == contents(whole)


def test_without_dedup_the_first_pass_is_the_result(stage_context: Make, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "a.jsonl", [{"text": PROSE}, {"text": PROSE, "id": 7}])
    artifact = clean(stage_context("c", "clean"), [source])
    assert [one.metadata["id"] for one in stored(artifact)] == [f"{source}:1", "7"]
    assert artifact.info["counts"]["written"] == 2
    assert not artifact.path("removed").exists()
    assert pq.read_schema(artifact.path("documents/00000.parquet")).names == [
        "text",
        "id",
        "metadata",
    ]


def test_what_one_cleans_another_may_clean_again(stage_context: Make, tmp_path: Path) -> None:
    row = {"id": "x", "text": PROSE, "url": "https://x.example/", "meta": {"n": 1}}
    pytest.importorskip("py3langid", reason="it tells languages")
    source = write_rows(tmp_path / "a.jsonl", [row])
    language = {"filter": "language", "languages": ["en"]}
    first = clean(stage_context("first", "clean"), [source], filters=[language])
    context = stage_context("second", "clean", first=first.folder)
    block = {"filter": "url", "extra_domains": ["y.example"]}
    second = clean(context, ["first"], filters=[block], output_format="jsonl.zst")
    (one,) = stored(second)
    assert one.metadata["url"] == "https://x.example/" and one.metadata["meta"] == {"n": 1}
    assert one.metadata["language"] == "en" and one.metadata["id"] == "x"
    assert first.info["languages"] == {"en": 1}
    reader = DocumentReader(expand(documents_of(second.folder)))
    assert [document.text for document in reader] == [PROSE]


def test_bad_records_are_refused_or_set_aside(stage_context: Make, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{"text": PROSE}, {"txt": "a"}, {"text": None}, {"text": 3}]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows) + '{"text": "cut\n', "utf-8")
    expected = r"(?s)a\.jsonl:2: there is no key 'text'.*did you mean 'txt'.*on_error: quarantine"
    with pytest.raises(DataError, match=expected):
        clean(stage_context("strict", "clean"), [str(path)])
    artifact = clean(stage_context("c", "clean"), [str(path)], on_error="quarantine")
    assert artifact.info["counts"]["quarantined"] == 4
    lines = artifact.path("quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line)["where"].rpartition(":")[2] for line in lines] == ["2", "3", "4", "5"]


def test_nested_keys_and_ids(stage_context: Make, tmp_path: Path) -> None:
    rows = [{"doc": {"body": PROSE, "lang": "en"}, "key": "k1", "metadata": "not JSON"}]
    source = write_rows(tmp_path / "a.jsonl", rows)
    artifact = clean(stage_context("c", "clean"), [source], text_key="doc.body", id_key="key")
    (one,) = stored(artifact)
    assert one.metadata == {"id": "k1", "doc": {"lang": "en"}, "metadata": "not JSON"}


def test_no_key_of_a_record_is_lost(stage_context: Make, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"text": PROSE, "key": "k1", "id": 7, "original_id": "x"},
        {"text": f"{PROSE} b", "key": "k2", "lang": "en", "metadata": {"lang": "fr"}},
        {"text": f"{PROSE} c", "key": ["a", "list"]},
    ]
    source = write_rows(tmp_path / "a.jsonl", rows)
    found = stored(clean(stage_context("c", "clean"), [source], id_key="key"))
    assert [one.metadata for one in found] == [
        {"id": "k1", "original_id": "x", "original_original_id": 7},
        {"id": "k2", "lang": "en", "metadata": {"lang": "fr"}},
        {"id": f"{source}:3", "key": ["a", "list"]},
    ]


def test_two_documents_of_one_id(
    stage_context: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"id": n % 4, "text": f"{PROSE} {n}"} for n in range(6)]
    sources = [
        write_rows(tmp_path / "a.jsonl", rows[:3]),
        write_rows(tmp_path / "b.jsonl", rows[3:]),
    ]
    with caplog.at_level(logging.WARNING):
        artifact = clean(stage_context("c", "clean"), sources)
    assert artifact.info["counts"]["duplicate_ids"] == 2
    assert "2 documents have an id that an earlier one has" in caplog.text
    with pytest.raises(
        DataError, match=r"a\.jsonl:[12] \(id [01]\) and .*b\.jsonl:[23] \(id [01]\)"
    ):
        clean(stage_context("strict", "clean"), sources, duplicate_ids="error")


def test_evaluation_data_is_left_out(stage_context: Make, tmp_path: Path) -> None:
    item = " ".join(f"unusual{n}" for n in range(20))
    rows = [{"text": PROSE}, {"text": f"{PROSE} {item} {PROSE}"}]
    evaluation = write_rows(tmp_path / "eval.jsonl", [{"question": item}])
    artifact = clean(
        stage_context("c", "clean"),
        [write_rows(tmp_path / "a.jsonl", rows)],
        decontaminate={"evaluations": [evaluation]},
        keep_removed=True,
    )
    assert artifact.info["drops"] == {"contaminated": 1}
    assert artifact.info["decontamination"][evaluation]["contaminated"] == 1
    (gone,) = stored(artifact, "removed")
    assert gone.detail.startswith("contaminated: shares 'unusual0 unusual1")


def test_nothing_left_is_an_error_that_says_why(stage_context: Make, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "a.jsonl", [{"text": "short"}, {"text": " "}])
    with pytest.raises(
        DataError, match=r"no document is left of 2: 1 were empty, 0 bad; most were"
    ) as error:
        clean(stage_context("c", "clean"), [source], filters=[{"filter": "gopher-quality"}])
    assert "gopher-quality/gopher_short_doc (1)" in str(error.value)


def test_a_source_that_changes_is_noticed(stage_context: Make, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "a.jsonl", [{"text": PROSE}] * 3)
    context = stage_context("c", "clean")
    config = CleanConfig(sources=[source])
    context.phase = "filter"
    assert run(config, context) is None
    write_rows(tmp_path / "a.jsonl", [{"text": PROSE}] * 4)
    context.phase = FINISH
    with pytest.raises(DataError, match="the sources changed since this stage began"):
        run(config, context)


def test_what_a_filter_lacks_is_said_before_the_work(stage_context: Make, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "a.jsonl", [{"text": PROSE}])
    context = stage_context("c", "clean")
    with pytest.raises(ToolkitError, match="can't be imported"):
        clean(context, [source], filters=[{"filter": "function", "function": "nowhere:f"}])
    assert not (context.folder / "work" / "filter").exists()


def test_safe_harbor_speaks_of_its_limits(
    stage_context: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = write_rows(tmp_path / "a.jsonl", [{"text": "Seen by Dr. Jane Roe on 3/4/2024."}])
    with caplog.at_level(logging.INFO):
        artifact = clean(stage_context("c", "clean"), [source], pii={"preset": "hipaa-safe-harbor"})
    assert stored(artifact)[0].text == "Seen by Dr. <NAME> on <DATE:2024>."
    assert "names in free text" in artifact.info["pii_limits"]
    assert "rules find no names in free text" in caplog.text


def test_a_large_document_and_odd_texts(stage_context: Make, tmp_path: Path) -> None:
    texts = ["x" * 3_000_000, "\ufeffcafÃ©\r\n", "日本語のテキスト", f"🙂 {PROSE}"]
    source = write_rows(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    filters = [{"filter": "gopher-repetition"}, {"filter": "fineweb-quality", "name": "web"}]
    artifact = clean(stage_context("c", "clean"), [source], filters=filters[:1])
    assert [len(one.text) for one in stored(artifact)] == [3_000_000, 5, 8, 2 + len(PROSE)]
    digest = hashlib.sha256("café\n".encode()).digest()
    assert hashlib.sha256(stored(artifact)[1].text.encode()).digest() == digest


def test_two_filters_of_one_name_are_refused() -> None:
    twice = [{"filter": "regex", "regex_exp": "a"}, {"filter": "regex", "regex_exp": "b"}]
    with pytest.raises(ValidationError, match="two filters are called 'regex'"):
        CleanConfig.model_validate({"sources": ["a"], "filters": twice})
    twice[1]["name"] = "other"
    CleanConfig.model_validate({"sources": ["a"], "filters": twice})


@pytest.mark.parametrize(
    ("one", "message"),
    [
        ({"filter": "gopher"}, "'gopher-quality'"),
        ({"filter": "regex", "regex_exp": "("}, "regex_exp is no regular expression"),
        ({"filter": "length"}, "set at least one of min_characters"),
        (
            {"filter": "length", "min_words": 3, "max_words": 2},
            "min_words 3 is more than max_words 2",
        ),
        ({"filter": "c4-quality", "min_sentences": 3}, "min_sentences"),
    ],
)
def test_filters_that_make_no_sense_are_refused(one: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CleanConfig.model_validate({"sources": ["a"], "filters": [one]})


@pytest.mark.parametrize(
    ("metadata", "beside"),
    [
        ("scrub", {"by": "<EMAIL>", "more": ["<EMAIL>", 3]}),
        ("keep", {"by": "jane@example.org", "more": ["jane@example.org", 3]}),
        ("drop", {}),
    ],
)
def test_personal_data_is_left_neither_beside_texts_nor_aside(
    stage_context: Make, tmp_path: Path, metadata: str, beside: dict[str, Any]
) -> None:
    more = {"by": "jane@example.org", "more": ["jane@example.org", 3]}
    rows = [
        {"id": "stays", "text": PROSE + "to jane@example.org", **more},
        {"id": "goes", "text": "to jane@example.org", **more},
    ]
    artifact = clean(
        stage_context("c", "clean"),
        [write_rows(tmp_path / "a.jsonl", rows)],
        filters=[{"filter": "length", "min_words": 9}],
        pii={"metadata": metadata},
        keep_removed=True,
    )
    (stays,), (goes,) = stored(artifact), stored(artifact, "removed")
    assert stays.text == PROSE + "to <EMAIL>" and goes.text == "to <EMAIL>"
    assert stays.metadata == {"id": "stays", **beside}
    assert goes.metadata == {"id": "goes", **beside}


def test_a_function_that_fails_is_told_with_its_document_and_line(
    stage_context: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "some_filters.py").write_text(
        "def fails(text, metadata):\n    return 1 / 0\n\n"
        "def takes(text, metadata):\n    return metadata.pop('id') == 'a'\n\nnothing = 3\n"
    )
    (tmp_path / "broken_filters.py").write_text("def (")
    source = write_rows(tmp_path / "a.jsonl", [{"id": "a", "text": PROSE}])

    def run_with(function: str, number: int = 0) -> Artifact:
        chosen = [{"filter": "function", "function": function}]
        return clean(stage_context(f"c{number}", "clean"), [source], filters=chosen)

    with pytest.raises(ToolkitError, match=r"a\.jsonl:1 \(id a\)") as caught:
        run_with("some_filters:fails")
    assert "some_filters:fails" in str(caught.value)
    assert "some_filters.py:2" in str(caught.value)
    assert run_with("some_filters:takes", 1).info["counts"]["written"] == 1
    with pytest.raises(ToolkitError, match="not a function"):
        run_with("some_filters:nothing", 2)
    with pytest.raises(ToolkitError, match="can't be imported: SyntaxError"):
        run_with("broken_filters:fails", 3)
