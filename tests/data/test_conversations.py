import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from toolkit.data.conversations import Tally, read_conversations, read_preferences
from toolkit.errors import DataError

ASKED = {"role": "user", "content": "Hi"}
SAID = {"role": "assistant", "content": "Hello."}


def write(path: Path, rows: Iterable[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def one(tmp_path: Path, row: Any, **options: Any) -> Any:
    (found,) = read_conversations([write(tmp_path / "rows.jsonl", [row])], **options)
    return found


def pair(tmp_path: Path, row: Any, **options: Any) -> Any:
    (found,) = read_preferences([write(tmp_path / "pairs.jsonl", [row])], **options)
    return found


def refused(tmp_path: Path, row: Any, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        one(tmp_path, row, **options)
    assert caught.value.where == str(tmp_path / "rows.jsonl:1")
    return str(caught.value)


def refused_pair(tmp_path: Path, row: Any, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        pair(tmp_path, row, **options)
    assert caught.value.where == str(tmp_path / "pairs.jsonl:1")
    return str(caught.value)


SAME = [
    {"messages": [ASKED, SAID]},
    {"messages": [ASKED, {"role": "assistant", "content": [{"type": "text", "text": "Hello."}]}]},
    {"messages": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]},
    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]},
    {"conversations": [{"from": "user", "value": "Hi"}, {"from": "assistant", "value": "Hello."}]},
    {"instruction": "Hi", "output": "Hello."},
    {"instruction": "Hi", "input": "", "output": "Hello."},
    {"instruction": "Hi", "input": None, "output": "Hello."},
    {"instruction": "Hi", "instances": [{"input": "", "output": "Hello."}]},
    {"prompt": "Hi", "completion": "Hello."},
    {"prompt": [ASKED], "completion": [SAID]},
]


@pytest.mark.parametrize("row", SAME, ids=lambda row: json.dumps(row)[:60])
def test_every_format_is_recognised_and_means_the_same(tmp_path: Path, row: Any) -> None:
    found = one(tmp_path, row)
    assert found.messages == (ASKED, SAID)
    assert found.text is None
    assert found.where == str(tmp_path / "rows.jsonl:1")


def test_alpaca_puts_the_input_under_the_instruction(tmp_path: Path) -> None:
    found = one(tmp_path, {"instruction": "Add.", "input": "1 2", "output": "3"})
    assert found.messages[0] == {"role": "user", "content": "Add.\n\n1 2"}


def test_alpaca_history_comes_first_and_is_not_lost(tmp_path: Path) -> None:
    row = {"instruction": "And you?", "output": "Fine.", "history": [["Hi", "Hello."]]}
    found = one(tmp_path, row)
    assert [turn["content"] for turn in found.messages] == ["Hi", "Hello.", "And you?", "Fine."]


def test_a_system_key_becomes_the_first_turn(tmp_path: Path) -> None:
    for row in ({"messages": [ASKED, SAID]}, {"instruction": "Hi", "output": "Hello."}):
        found = one(tmp_path, row | {"system": "Be brief."})
        assert found.messages[0] == {"role": "system", "content": "Be brief."}
        assert found.messages[1:] == (ASKED, SAID)


def test_text_rows_have_no_turns(tmp_path: Path) -> None:
    found = one(tmp_path, {"text": "Once upon a time."})
    assert (found.messages, found.text) == ((), "Once upon a time.")


def test_nested_instances_give_a_conversation_each(tmp_path: Path) -> None:
    row = {
        "instruction": "Double.",
        "instances": [{"input": "1", "output": "2"}, {"input": "2", "output": "4"}],
    }
    tally = Tally()
    found = list(read_conversations([write(tmp_path / "rows.jsonl", [row])], tally=tally))
    assert [c.messages[1]["content"] for c in found] == ["2", "4"]
    assert tally.read == 1


def test_columns_map_other_keys(tmp_path: Path) -> None:
    found = one(
        tmp_path,
        {"question": "Hi", "answer": "Hello.", "prompt": "not this"},
        columns={"prompt": "question", "completion": "answer"},
    )
    assert found.messages == (ASKED, SAID)


def test_a_missing_column_is_named_with_those_there(tmp_path: Path) -> None:
    text = refused(tmp_path, {"q": "Hi", "answer": "x"}, columns={"prompt": "question"})
    assert "'question'" in text
    assert "'q', 'answer'" in text


def test_unrecognised_rows_name_keys_and_formats(tmp_path: Path) -> None:
    text = refused(tmp_path, {"question": "Hi", "answer": "Hello."})
    assert "'question', 'answer'" in text
    assert "instruction + output" in text
    assert "columns" in text


def test_a_named_format_is_required_of_every_row(tmp_path: Path) -> None:
    text = refused(tmp_path, {"messages": [ASKED, SAID]}, format="alpaca")
    assert "alpaca needs instruction and output" in text


def test_unknown_format_and_field_are_refused_before_reading(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="unknown format 'chat'"):
        read_conversations(["nowhere"], format="chat")
    with pytest.raises(DataError, match="unknown field 'question'"):
        read_conversations(["nowhere"], columns={"question": "q"})


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ({"messages": [{"role": "tool", "content": "x"}, SAID]}, ["messages[0]", "'tool'", "user"]),
        ({"messages": [SAID, ASKED]}, ["turn 1", "assistant's", "user's"]),
        ({"messages": [ASKED, ASKED, SAID]}, ["turn 2", "user's", "assistant's"]),
        ({"messages": [ASKED, {"role": "system", "content": "x"}, SAID]}, ["turn 2", "system's"]),
        ({"messages": []}, ["empty list"]),
        ({"messages": "Hi"}, ["str"]),
        ({"messages": ["Hi"]}, ["messages[0]", "not an object"]),
        ({"messages": [{"role": "user", "text": "Hi"}]}, ["'role', 'text'", "role and content"]),
        ({"messages": [ASKED, {"role": "assistant", "content": None}]}, ["NoneType", "string"]),
        ({"messages": [ASKED, SAID | {"tool_calls": [{"id": 1}]}]}, ["tool"]),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}, SAID]}, ["'image'"]),
        (
            {"messages": [{"role": "system", "content": "a"}, ASKED, SAID], "system": "b"},
            ["system"],
        ),
        ({"instruction": "Hi", "output": 3}, ["'output'", "int"]),
        ({"instruction": "Hi", "instances": {"output": "x"}}, ["'instances'"]),
        ({"instruction": "Hi", "instances": [{"answer": "x"}]}, ["instances[0]", "'answer'"]),
        ({"instruction": "Hi", "output": "x", "history": ["Hi"]}, ["history[0]"]),
        ({"prompt": "Hi", "completion": [ASKED]}, ["turn 2", "user's"]),
    ],
    ids=lambda value: json.dumps(value)[:50],
)
def test_malformed_rows_say_where_and_what(tmp_path: Path, row: Any, parts: list[str]) -> None:
    text = refused(tmp_path, row)
    for part in parts:
        assert part in text


def test_malformed_rows_are_dropped_and_counted_if_asked(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{"messages": [ASKED, SAID]}, {"messages": []}])
    with path.open("a", encoding="utf-8") as stream:
        stream.write('{"messages": [\n')
    tally = Tally()
    assert len(list(read_conversations([path], on_error="drop", tally=tally))) == 1
    assert tally.read == 3
    assert tally.dropped == {"malformed": 2}
    assert [where.split(":")[1] for where in tally.examples["malformed"]] == ["2", "3"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"instruction": "Hi", "output": " \n"}, "without text"),
        ({"prompt": "", "completion": "x"}, "without text"),
        ({"messages": [ASKED]}, "no turn of the assistant"),
        ({"text": "  "}, "empty text"),
    ],
)
def test_rows_with_nothing_to_learn_are_dropped_and_named(
    tmp_path: Path, row: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "rows.jsonl", [row, {"messages": [ASKED, SAID]}])
    tally = Tally()
    assert len(list(read_conversations([path], tally=tally))) == 1
    ((found, count),) = tally.dropped.items()
    assert reason in found
    assert count == 1
    assert tally.examples[found] == [f"{path}:1"]
    list(read_conversations([path]))
    assert f"1 of 2 rows dropped: {found} ({path}:1)" in caplog.text


PAIRS = [
    {"prompt": "Hi", "chosen": "Hello.", "rejected": "Go."},
    {"prompt": "Hi", "chosen": [SAID], "rejected": [{"role": "assistant", "content": "Go."}]},
    {"prompt": [ASKED], "chosen": "Hello.", "rejected": "Go."},
    {"prompt": "\n\nHuman: Hi\n\nAssistant:", "chosen": " Hello.", "rejected": "Go."},
    {"chosen": [ASKED, SAID], "rejected": [ASKED, {"role": "assistant", "content": "Go."}]},
    {
        "prompt": "Hi",
        "chosen": [ASKED, SAID],
        "rejected": [ASKED, {"role": "assistant", "content": "Go."}],
    },
    {
        "chosen": "\n\nHuman: Hi\n\nAssistant: Hello.",
        "rejected": "\n\nHuman: Hi\n\nAssistant: Go.",
    },
]


@pytest.mark.parametrize("row", PAIRS, ids=lambda row: json.dumps(row)[:60])
def test_every_preference_format_means_the_same(tmp_path: Path, row: Any) -> None:
    found = pair(tmp_path, row)
    assert found.prompt == (ASKED,)
    assert (found.chosen.strip(), found.rejected) == ("Hello.", "Go.")


def test_transcripts_split_only_where_turns_begin(tmp_path: Path) -> None:
    said = "Human: is a word.\nAssistant: too. Say Human: or\nHuman: as you like."
    start = f"\n\nHuman: What is Human: for?\n\nAssistant: {said}\n\nHuman: Thanks\n\nAssistant: "
    found = pair(tmp_path, {"chosen": start + "Sure.", "rejected": start + "No."})
    assert [turn["content"] for turn in found.prompt] == ["What is Human: for?", said, "Thanks"]
    assert [turn["role"] for turn in found.prompt] == ["user", "assistant", "user"]
    assert (found.chosen, found.rejected) == ("Sure.", "No.")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "Hi", "chosen": "Same.", "rejected": "Same. "}, "the same"),
        ({"prompt": "Hi", "chosen": "", "rejected": "Go."}, "empty answer"),
        ({"chosen": [ASKED, SAID], "rejected": [ASKED, SAID]}, "the same"),
        (
            {"chosen": [ASKED, SAID], "rejected": [{"role": "user", "content": "Ho"}, SAID]},
            "before their last turn",
        ),
        (
            {
                "chosen": "\n\nHuman: Hi\n\nAssistant: a\n\nAssistant: b",
                "rejected": "\n\nHuman: Hi\n\nAssistant: c",
            },
            "twice in a row",
        ),
        (
            {"chosen": "\n\nHuman: Hi\n\nAssistant:", "rejected": "\n\nHuman: Hi\n\nAssistant: c"},
            "empty answer",
        ),
        ({"chosen": "\n\nHuman: Hi", "rejected": "\n\nHuman: Ho"}, "end with the assistant"),
    ],
)
def test_pairs_with_nothing_to_learn_are_dropped_and_named(
    tmp_path: Path, row: Any, reason: str
) -> None:
    tally = Tally()
    path = write(tmp_path / "pairs.jsonl", [row, PAIRS[0]])
    assert len(list(read_preferences([path], tally=tally))) == 1
    ((found, _),) = tally.dropped.items()
    assert reason in found


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ({"prompt": "Hi", "better": "a", "worse": "b"}, ["'prompt', 'better', 'worse'", "columns"]),
        ({"chosen": "a", "rejected": "b"}, ["without a prompt"]),
        ({"prompt": "Hi", "chosen": "a", "rejected": 3}, ["'rejected'", "int"]),
        ({"prompt": [ASKED, SAID], "chosen": "a", "rejected": "b"}, ["turn 3", "assistant's"]),
        ({"prompt": "Hi", "chosen": [ASKED], "rejected": [SAID]}, ["'chosen'", "user"]),
        (
            PAIRS[4] | {"prompt": "Other"},
            ["not the last question"],
        ),
        (PAIRS[-1] | {"prompt": "Hi"}, ["whole transcripts", "format: transcripts"]),
    ],
    ids=lambda value: json.dumps(value)[:50],
)
def test_malformed_pairs_say_where_and_what(tmp_path: Path, row: Any, parts: list[str]) -> None:
    text = refused_pair(tmp_path, row)
    for part in parts:
        assert part in text


def test_the_samples_are_read_whole() -> None:
    for name in ("sample:python-questions", "sample:python-questions/held-out"):
        tally = Tally()
        rows = list(read_conversations([name], tally=tally))
        assert len(rows) == tally.read == tally.formats["alpaca"]
        assert not tally.dropped
    pairs = list(read_preferences(["sample:python-preferences/held-out"]))
    assert len(pairs) > 100


def test_real_files(shared_data: Path) -> None:
    tally = Tally()
    columns = {"prompt": "question", "completion": "answer"}
    path = shared_data / "gsm8k_train.jsonl"
    rows = list(read_conversations([path], columns=columns, tally=tally))
    assert len(rows) == 7473
    assert rows[0].messages[1]["content"].endswith("#### 72")
    tasks = list(read_conversations([shared_data / "self_instruct_seed_tasks.jsonl"]))
    assert len(tasks) == 175

    tally = Tally()
    pairs = list(read_preferences([shared_data / "hh_harmless_500.jsonl.gz"], tally=tally))
    assert tally.read == 500
    assert (len(pairs), tally.dropped) == (499, {"an empty answer": 1})
    whole = "".join(t["content"] for p in pairs for t in p.prompt)
    assert "\n\nHuman:" not in whole
    with gzip.open(shared_data / "hh_harmless_500.jsonl.gz", "rt", encoding="utf-8") as lines:
        first = json.loads(next(lines))
    assert first["chosen"].endswith(pairs[0].chosen)
    assert first["rejected"].endswith(pairs[0].rejected)
