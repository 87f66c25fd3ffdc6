from typing import Any

import pytest
from tiny_llama import EOS, SPECIAL, make_tokenizer

from toolkit.data.chat_formats import Conversation, convert
from toolkit.data.chat_preferences import Preference
from toolkit.data.chat_tokens import IGNORED, ChatTokenizer, Tokens
from toolkit.data.chat_turns import UnusableError, message
from toolkit.errors import DataError

TOKENIZER = make_tokenizer()
CHAT = ChatTokenizer(TOKENIZER, TOKENIZER.chat_template)
TURNS = (
    message("system", "Be brief."),
    message("user", "What is the colour of the sky?"),
    message("assistant", "The sky is blue."),
    message("user", "Name a number."),
    message("assistant", "one two three"),
)
SAID = TURNS[2]["content"]


def trained(tokens: Tokens) -> str:
    """The text in the loss: the token after each position that has a label."""
    assert all(a in (b, IGNORED) for a, b in zip(tokens.labels, tokens.input_ids, strict=True))
    return TOKENIZER.decode([label for label in tokens.labels if label != IGNORED])


def talk(*turns: Any) -> Conversation:
    return Conversation(turns or TURNS, "rows.jsonl:1")


def test_exactly_the_assistants_text_and_its_end_is_trained() -> None:
    tokens = CHAT.conversation(talk())
    assert trained(tokens) == f"The sky is blue.{EOS}one two three{EOS}"
    assert tokens.ends == [0, 0]
    assert tokens.trained == sum(label != IGNORED for label in tokens.labels)
    assert CHAT.marked_text(tokens) == (
        "<|system|>Be brief.<|user|>What is the colour of the sky?<|assistant|>"
        f"[[The sky is blue.{EOS}]]<|user|>Name a number.<|assistant|>[[one two three{EOS}]]"
    )


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [dict(TURNS[1]), dict(TURNS[2])]},
        {"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": SAID}]},
        {"instruction": "x", "input": "y", "output": SAID},
        {"instruction": "x", "instances": [{"input": "y", "output": SAID}]},
        {"prompt": "x", "completion": SAID},
    ],
    ids=lambda row: "+".join(row),
)
def test_the_mask_is_right_for_every_format(row: dict[str, Any]) -> None:
    name = {"messages": "messages", "conversations": "sharegpt", "prompt": "prompt-completion"}
    kind = name.get(next(iter(row)), "self-instruct" if "instances" in row else "alpaca")
    (found,) = convert(row, kind, "rows.jsonl:1")
    assert trained(CHAT.conversation(found)) == f"The sky is blue.{EOS}"


@pytest.mark.parametrize("answer", [" leading", "\n\nlines\n", "  ", "a<b", "日本\n", "{% x %}"])
def test_blanks_and_odd_characters_keep_the_mask_exact(answer: str) -> None:
    tokens = CHAT.conversation(talk(message("user", "x\n"), message("assistant", answer)))
    assert trained(tokens) == answer + EOS


def test_a_tokenizer_that_trims_offsets_masks_as_well() -> None:
    trimming = make_tokenizer()
    trimming.backend_tokenizer.post_processor.trim_offsets = True
    chat = ChatTokenizer(trimming, trimming.chat_template)
    tokens = chat.conversation(talk(message("user", "x"), message("assistant", " The sky")))
    assert trained(tokens) == f" The sky{EOS}"


def test_text_is_trained_whole_and_ended_once() -> None:
    for text in ("The sky is blue.", f"The sky is blue.{EOS}"):
        tokens = CHAT.conversation(Conversation((), "a.txt:1", text=text))
        assert trained(tokens) == f"The sky is blue.{EOS}"
        assert tokens.labels == tokens.input_ids


def test_without_a_template_prompt_and_answer_are_joined_as_they_are() -> None:
    chat = ChatTokenizer(TOKENIZER, None)
    row = talk(message("user", "Name a number."), message("assistant", " one two"))
    tokens = chat.conversation(row)
    assert TOKENIZER.decode(tokens.input_ids) == f"Name a number. one two{EOS}"
    assert trained(tokens) == f" one two{EOS}"
    with pytest.raises(DataError, match="more than a prompt and an answer"):
        chat.conversation(talk())


def test_cutting_is_counted_and_a_cut_turn_has_no_end() -> None:
    whole = CHAT.conversation(talk())
    length = len(whole.input_ids) - 2
    cut = ChatTokenizer(TOKENIZER, TOKENIZER.chat_template, length).conversation(talk())
    assert cut.input_ids == whole.input_ids[:length]
    assert cut.labels == whole.labels[:length]
    assert (cut.cut, cut.ends) == (2, [0, None])


def test_a_row_without_an_answer_left_is_unusable() -> None:
    with pytest.raises(UnusableError, match="within max_length"):
        ChatTokenizer(TOKENIZER, TOKENIZER.chat_template, 8).conversation(talk())


def test_a_template_that_marks_too_little_is_refused_with_the_row() -> None:
    last_only = (
        "{%- for m in messages -%}{%- if loop.last -%}"
        "{%- generation -%}{{ m['content'] }}{%- endgeneration -%}"
        "{%- else -%}{{ m['content'] }}{%- endif -%}{%- endfor -%}"
    )
    with pytest.raises(DataError, match=r"rows.jsonl:1: .* marks 1 of the assistant's 2 turns"):
        ChatTokenizer(TOKENIZER, last_only).conversation(talk())


def test_an_end_token_outside_the_marks_is_noticed() -> None:
    outside = (
        "{%- for m in messages -%}{%- if m['role'] == 'assistant' -%}"
        "{%- generation -%}{{ m['content'] }}{%- endgeneration -%}{{ eos_token }}"
        "{%- else -%}{{ '<|user|>' ~ m['content'] }}{%- endif -%}{%- endfor -%}"
    )
    tokens = ChatTokenizer(TOKENIZER, outside).conversation(talk())
    assert tokens.ends == [None, None]


def test_a_line_break_behind_the_end_token_is_no_end() -> None:
    chatml = (
        "{%- for m in messages -%}{{- '<|im_start|>' ~ m['role'] ~ '\\n' -}}"
        "{%- if m['role'] == 'assistant' -%}{%- generation -%}"
        "{{- m['content'] ~ '<|im_end|>\\n' -}}{%- endgeneration -%}"
        "{%- else -%}{{- m['content'] ~ '<|im_end|>\\n' -}}{%- endif -%}{%- endfor -%}"
    )
    tokens = ChatTokenizer(TOKENIZER, chatml).conversation(talk())
    assert tokens.ends == [SPECIAL.index("<|im_end|>")] * 2


def test_a_template_that_raises_names_the_row() -> None:
    with pytest.raises(DataError, match=r"rows.jsonl:1: .*refuses this: no system"):
        ChatTokenizer(TOKENIZER, "{{ raise_exception('no system') }}").conversation(talk())


def test_what_generation_will_see_is_what_was_trained_after() -> None:
    generated, trained_after = CHAT.prompt_as_generated(TURNS)
    assert trained_after == generated
    assert TOKENIZER.decode(generated).endswith("<|user|>Name a number.<|assistant|>")
    other = TOKENIZER.chat_template.replace("'<|assistant|>' -}}{%- endif", "'x' -}}{%- endif")
    generated, trained_after = ChatTokenizer(TOKENIZER, other).prompt_as_generated(TURNS)
    assert trained_after != generated


PAIR = Preference((message("user", "Name a number."),), "one two three", "one four", "p.jsonl:1")


def test_a_pair_shares_its_prompt_and_ends_both_answers() -> None:
    pair = CHAT.preference(PAIR)
    assert TOKENIZER.decode(pair.prompt_ids) == "<|user|>Name a number.<|assistant|>"
    assert TOKENIZER.decode(pair.chosen_ids) == f"one two three{EOS}"
    assert TOKENIZER.decode(pair.rejected_ids) == f"one four{EOS}"
    assert (pair.ends, pair.cut) == ([0, 0], 0)


def test_pairs_are_cut_at_the_answers_ends() -> None:
    whole = CHAT.preference(PAIR)
    length = len(whole.prompt_ids) + len(whole.chosen_ids) - 1
    pair = ChatTokenizer(TOKENIZER, TOKENIZER.chat_template, length).preference(PAIR)
    assert pair.chosen_ids == whole.chosen_ids[:-1]
    assert pair.ends[0] is None
    assert pair.cut >= 1
    for length, reason in ((len(whole.prompt_ids), "fills"), (len(whole.prompt_ids) + 1, "same")):
        with pytest.raises(UnusableError, match=reason):
            ChatTokenizer(TOKENIZER, TOKENIZER.chat_template, length).preference(PAIR)
