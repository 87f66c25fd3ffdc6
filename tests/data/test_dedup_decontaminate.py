"""Decontamination: what shares n-grams with evaluation items is found, and nothing else."""

import json
import logging
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.context import StageContext
from toolkit.data.dedup import decontaminate as module
from toolkit.data.dedup import evaluations
from toolkit.data.dedup.config import DecontaminateSettings
from toolkit.data.dedup.decontaminate import EvaluationIndex, load_index
from toolkit.data.dedup.evaluations import index_task, write_index
from toolkit.data.dedup.words import split_words
from toolkit.data.tasks import TaskOutput
from toolkit.errors import DataError

Build = Callable[..., EvaluationIndex]
SENTENCE = "the quick brown fox jumps over the lazy dog while seven old cats watch from afar"


def write(path: Path, *records: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def words(start: int, stop: int) -> str:
    return " ".join(f"word{n}" for n in range(start, stop))


def build_index(folder: Path, evaluations: Sequence[Path], **given: Any) -> EvaluationIndex:
    folder.mkdir(parents=True)
    ignore = [str(path) for path in given.pop("ignore", [])]
    wanted = DecontaminateSettings(evaluations=list(map(str, evaluations)), ignore=ignore, **given)
    context = StageContext("clean", "clean", folder, "test")
    write_index(index_task(wanted, context), TaskOutput(folder, lambda size, counts: None))
    return EvaluationIndex(folder)


@pytest.fixture
def build(tmp_path: Path) -> Build:
    def make(*evaluations: Path, **given: Any) -> EvaluationIndex:
        return build_index(tmp_path / f"index{len(list(tmp_path.iterdir()))}", evaluations, **given)

    return make


def test_a_shared_n_gram_is_found_and_named(build: Build, tmp_path: Path) -> None:
    path = write(tmp_path / "e.jsonl", {"text": "nothing of it here"}, {"text": SENTENCE})
    index = build(path)
    found = index.find(["unrelated", f"So: {SENTENCE.upper().replace(' ', ', ')}! And more.", ""])
    assert [f is None for f in found] == [True, False, True]
    assert found[1] is not None
    assert found[1].where == f"{path}:2"
    assert found[1].evaluation == str(path)
    assert found[1].ngram == " ".join(SENTENCE.split()[:13])
    assert found[1].items == (1,)
    assert found[1].matches == len(SENTENCE.split()) - 12
    assert found[1].reason == f"contaminated: shares {found[1].ngram!r} with {path}:2"


@pytest.mark.parametrize(("shared", "found"), [(12, False), (13, True)])
def test_n_words_in_a_row_are_needed(
    build: Build, tmp_path: Path, shared: int, found: bool
) -> None:
    index = build(write(tmp_path / "e.jsonl", {"text": words(0, 40)}))
    text = f"before {words(10, 10 + shared)} after"
    assert (index.find([text])[0] is not None) == found
    assert index.find([f"{words(0, 12)} break {words(12, 24)} break {words(24, 36)}"]) == [None]


def test_n_grams_do_not_reach_across_documents_or_items(build: Build, tmp_path: Path) -> None:
    path = write(tmp_path / "e.jsonl", {"text": words(0, 20)}, {"text": words(100, 120)})
    index = build(path)
    assert index.find([words(0, 7), words(7, 14)]) == [None, None]
    assert index.find([f"{words(13, 20)} {words(100, 107)}"]) == [None]


def test_question_and_answer_are_one_item(build: Build, tmp_path: Path) -> None:
    record = {"id": 7, "question": words(0, 10), "meta": {"answer": words(10, 20)}}
    path = write(tmp_path / "e.jsonl", record)
    across = words(4, 17)
    assert build(path).find([across])[0]
    assert build(path, keys=["question", "meta.answer"]).find([across])[0]
    assert build(path, keys=["question"]).find([across]) == [None]
    choices = write(
        tmp_path / "c.jsonl", {"q": words(0, 5), "choices": [words(5, 9), words(9, 14)]}
    )
    assert build(choices).find([words(0, 14)])[0]


def test_short_items_match_as_a_whole_and_very_short_ones_never(
    build: Build, tmp_path: Path
) -> None:
    texts = [words(0, 9), words(100, 107), "yes", ""]
    path = write(tmp_path / "e.jsonl", *({"text": text} for text in texts))
    index = build(path, min_matches=5)
    assert index.find([f"a {words(0, 9)} b"])[0]
    assert index.find([f"a {words(0, 8)} b", words(1, 9)]) == [None, None]
    assert index.find([words(100, 107), "yes", ""]) == [None] * 3
    assert index.report([0])[str(path)] == {
        "items": 4,
        "contaminated": 1,
        "too_short": 3,
        "examples": [f"{path}:1"],
    }


def test_a_number_of_matches_may_be_asked_for(build: Build, tmp_path: Path) -> None:
    index = build(write(tmp_path / "e.jsonl", {"text": words(0, 40)}), min_matches=3)
    assert index.find([words(0, 14), f"{words(0, 13)} x {words(0, 13)}"]) == [None, None]
    assert index.find([words(0, 15)])[0]
    assert index.find([f"{words(0, 14)} and {words(20, 33)}"])[0]


def test_n_grams_to_ignore(build: Build, tmp_path: Path) -> None:
    licence = words(0, 30)
    path = write(tmp_path / "e.jsonl", {"text": f"{licence} {words(100, 120)}"})
    (tmp_path / "licence.txt").write_text(licence)
    index = build(path, ignore=[tmp_path / "licence.txt"])
    assert index.find([licence]) == [None]
    assert index.find([words(100, 120)])[0]
    assert index.find([words(20, 30) + " " + words(100, 103)])[0]


def test_all_items_and_files_are_told(build: Build, tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", {"text": words(0, 20)}, {"text": words(5, 30)})
    second = write(tmp_path / "b.jsonl", {"text": words(8, 25)}, {"text": words(50, 70)})
    index = build(first, second)
    (found,) = index.find([words(8, 21)])
    assert found is not None
    assert found.items == (1, 2)
    assert found.evaluation == str(first)
    report = index.report(found.items)
    assert [report[str(path)]["contaminated"] for path in (first, second)] == [1, 1]
    assert report[str(second)]["examples"] == [f"{second}:1"]


def test_a_collision_of_hashes_removes_nothing(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def few(units: Any, n: int) -> Any:
        return right(units, n) % np.uint64(2) << np.uint64(63)

    right = module.ngram_hashes
    monkeypatch.setattr("toolkit.data.dedup.shingles.ngram_hashes", few)
    monkeypatch.setattr(module, "ngram_hashes", few)
    index = build(write(tmp_path / "e.jsonl", {"text": words(0, 30)}))
    assert index.find([words(200, 260)]) == [None]
    (found,) = index.find([words(10, 25)])
    assert found is not None
    assert found.ngram == words(10, 23)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(data=st.data())
def test_against_the_plain_way(data: st.DataObject, tmp_path_factory: Any) -> None:
    text = st.lists(st.sampled_from(["a", "b", "c", "É", "中"]), max_size=14).map(" ".join)
    items = data.draw(st.lists(text, min_size=1, max_size=6))
    texts = data.draw(st.lists(text, max_size=8))
    n = data.draw(st.integers(2, 4))
    least = data.draw(st.integers(1, n))
    folder = tmp_path_factory.mktemp("plain")
    path = write(folder / "e.jsonl", *({"text": item} for item in items))
    index = build_index(folder / "index", [path], ngram=n, min_words=least)

    def grams(text: str, size: int) -> set[tuple[str, ...]]:
        units = tuple(text.lower().split())
        return {units[i : i + size] for i in range(len(units) - size + 1)}

    def shares(text: str, item: str) -> bool:
        size = min(len(item.split()), n)
        return size >= least and bool(grams(text, size) & grams(item, size))

    for text, found in zip(texts, index.find(texts), strict=True):
        expected = tuple(i for i, item in enumerate(items) if shares(text, item))
        assert (found.items if found else ()) == expected


def test_gsm8k_leaks_are_found_and_its_training_part_is_clean(
    build: Build, shared_data: Path
) -> None:
    index = build(shared_data / "gsm8k_test.jsonl")
    rows = [json.loads(line) for line in (shared_data / "gsm8k_test.jsonl").open()]
    shakespeare = (shared_data / "tinyshakespeare.txt").read_text()
    rng = random.Random(1)
    chosen = rng.sample(range(len(rows)), 50)
    leaks = [f"{shakespeare[:2000]} {rows[n]['question']} {shakespeare[:500]}" for n in chosen]
    for number, found in zip(chosen, index.find(leaks), strict=True):
        assert found is not None
        assert number in found.items
    assert index.find([shakespeare]) == [None]
    train = [json.loads(line) for line in (shared_data / "gsm8k_train.jsonl").open()]
    found = index.find([f"{row['question']}\n{row['answer']}" for row in train])
    shared = [f for f in found if f is not None]
    assert len(shared) < 0.05 * len(train)
    tests = [split_words([f"{row['question']}\n{row['answer']}"]) for row in rows]
    for one in shared:
        item = tests[one.items[0]]
        assert f" {one.ngram} " in f" {item.text(0, len(item.starts))} "


def test_records_without_the_key(build: Build, tmp_path: Path) -> None:
    path = write(tmp_path / "e.jsonl", {"question": "a", "answer": 3})
    with pytest.raises(DataError, match=r"e\.jsonl:1: there is no key 'questions'.*'question'"):
        build(path, keys=["questions"])
    with pytest.raises(DataError, match=r"e\.jsonl:1: the value of 'answer' is '3', neither"):
        build(path, keys=["question", "answer"])


def test_items_that_are_all_too_short_are_told(
    build: Build, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, evaluations.__name__):
        index = build(write(tmp_path / "e.jsonl", {"text": "a b"}))
    assert "no evaluation item has 8 words" in caplog.text
    assert index.find(["a b", words(0, 99)]) == [None, None]


def test_settings_that_contradict() -> None:
    with pytest.raises(ValueError, match="min_words 14 must be at most ngram, which is 13"):
        DecontaminateSettings(evaluations=["a"], min_words=14)


def test_an_index_is_opened_once(build: Build, tmp_path: Path) -> None:
    build(write(tmp_path / "e.jsonl", {"text": SENTENCE}))
    folder = next(path for path in tmp_path.iterdir() if path.is_dir())
    assert load_index(folder) is load_index(folder)


def test_what_many_items_share_is_compared_once(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = words(0, 13)
    items = [{"text": f"{shared} item{n}"} for n in range(200)]
    index = build(write(tmp_path / "e.jsonl", *items))
    compared: list[int] = []
    plain = EvaluationIndex._text
    monkeypatch.setattr(
        EvaluationIndex, "_text", lambda s, row: compared.append(row) or plain(s, row)
    )
    (found,) = index.find([f"{shared} . " * 50])
    assert found is not None and found.items == tuple(range(200)) and found.matches == 1
    assert len(compared) < 3 * len(items)
