"""The embedded samples: deterministic, split without leaks, made without importing anything."""

import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from toolkit.data.samples import HELD_OUT, SAMPLES, first_sentence, read_sample
from toolkit.data.stdlib import documented
from toolkit.errors import DataError

DIGEST = """
import hashlib, json, sys
from toolkit.data.samples import HELD_OUT, SAMPLES, read_sample
before = set(sys.modules)
digest = hashlib.sha256()
for name in SAMPLES:
    for part in ("", HELD_OUT):
        for row in read_sample(name + part):
            digest.update(json.dumps(row).encode())
print(json.dumps([digest.hexdigest(), sorted(set(sys.modules) - before)]))
"""


@cache
def rows(name: str) -> list[dict[str, str]]:
    return list(read_sample(name))


def in_a_process(code: str, **environment: str) -> str:
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(root), **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return done.stdout


def test_every_process_makes_the_same_samples_and_imports_none_of_what_they_describe() -> None:
    first, loaded = json.loads(in_a_process(DIGEST, PYTHONHASHSEED="1"))
    second, _ = json.loads(in_a_process(DIGEST, PYTHONHASHSEED="2"))
    assert first == second
    assert not {"antigravity", "this", "idlelib", "turtle", "tkinter"} & set(loaded)
    assert len(loaded) < 40


def test_there_is_enough_to_train_on() -> None:
    text = sum(len(row["text"].encode()) for row in rows("python-docs"))
    assert text > 1_500_000
    assert len(rows("python-questions")) > 3_000
    assert len(rows("python-preferences")) > 2_000
    assert len(rows("python-preferences" + HELD_OUT)) > 250


@pytest.mark.parametrize("name", SAMPLES)
def test_about_a_tenth_is_held_out(name: str) -> None:
    held, training = len(rows(name + HELD_OUT)), len(rows(name))
    assert 0.07 < held / (held + training) < 0.13


def test_no_docstring_and_no_answer_is_on_both_sides() -> None:
    def bodies(part: str) -> set[str]:
        return {row["text"].partition("\n\n")[2].strip() for row in rows("python-docs" + part)}

    def beginnings(part: str) -> set[str]:
        texts = {first_sentence(body) for body in bodies(part)}
        for row in rows("python-questions" + part):
            texts.add(row["output"])
        for row in rows("python-preferences" + part):
            texts |= {row["chosen"], row["rejected"]}
        return {text.rstrip(".").lower() for text in texts}

    assert not bodies("") & bodies(HELD_OUT)
    assert not beginnings("") & beginnings(HELD_OUT)


def test_no_document_of_one_side_contains_a_question_of_the_other() -> None:
    training = {row["text"].splitlines()[0].split(" ", 1)[1] for row in rows("python-docs")}
    held = {row["input"] for row in rows("python-questions" + HELD_OUT)}
    same_heading = held & training  # a property's getter and setter, or an overload
    assert len(same_heading) < len(held) / 20


@pytest.mark.parametrize("part", ["", HELD_OUT])
def test_a_preference_is_a_question_with_its_answer_and_another_objects(part: str) -> None:
    answers: dict[str, set[str]] = {}
    asked_of: dict[str, set[str]] = {}
    for row in rows("python-questions" + part):
        prompt = f"{row['instruction']}\n\n{row['input']}"
        answers.setdefault(prompt, set()).add(row["output"])
        asked_of.setdefault(row["output"], set()).add(row["instruction"])
    things = {f"What does this Python {kind} do?" for kind in ("class", "module")}
    for row in rows("python-preferences" + part):
        assert row["chosen"] in answers[row["prompt"]]
        assert row["rejected"] not in answers[row["prompt"]]
        assert 1 / 1.3 < len(row["chosen"]) / len(row["rejected"]) < 1.3
        about_thing = row["prompt"].partition("\n\n")[0] in things
        assert any((q in things) != about_thing for q in asked_of[row["rejected"]])


def test_answers_are_short_sentences() -> None:
    for row in rows("python-questions"):
        assert re.fullmatch(r"[A-Za-z].{12,158}[.!?]", row["output"])


def test_a_part_is_like_the_whole() -> None:
    firsts = [row["input"][0].lower() for row in rows("python-questions")[:300]]
    assert len(set(firsts)) > 15, "the order is alphabetical"


def test_signatures_leave_out_self_and_are_short() -> None:
    found = {item.name: item for item in documented()}
    assert found["textwrap.TextWrapper.wrap"].heading == "textwrap.TextWrapper.wrap(text)"
    assert found["textwrap.dedent"].kind == "function"
    assert found["json.loads"].arguments.startswith("(s, cls, object_hook")  # too long with values
    assert found["str.join"].heading == "str.join(iterable, /)"
    assert found["shutil"].arguments == ""
    assert max(len(item.arguments) for item in documented()) <= 102


def test_an_unknown_sample_names_those_there_are() -> None:
    with pytest.raises(DataError, match=r"python-dogs.*\n.*python-docs\[/held-out\]"):
        read_sample("sample:python-dogs")
