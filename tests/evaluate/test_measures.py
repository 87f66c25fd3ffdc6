"""Perplexity, answer loss and preferences against computations that share no code with them."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from toolkit.data.conversations import Conversation, Preference
from toolkit.errors import DataError, StageError, ToolkitError
from toolkit.evaluate.answers import answer_loss, preferences
from toolkit.evaluate.chat import Dialogues
from toolkit.evaluate.config import AnswerLossConfig, PerplexityConfig, PreferencesConfig
from toolkit.evaluate.perplexity import perplexity, read_texts, start_token
from toolkit.evaluate.scoring import Windows
from toolkit.evaluate.subject import Subject

PLAIN_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
    "{% if m.role == 'assistant' %}<|endoftext|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TALK = [
    {"role": "user", "content": "the fox"},
    {"role": "assistant", "content": "jumps over"},
    {"role": "user", "content": "the dog"},
    {"role": "assistant", "content": "naïve café"},
]


def subject(model, tokenizer, context: int = 32) -> Subject:
    return Subject(
        name="tiny",
        model=model,
        tokenizer=tokenizer,
        windows=Windows(context, context // 2),
        seed=1,
        locate=Path,
        tick=lambda share: None,
        chat_template=tokenizer.chat_template,
    )


class Rigged(nn.Module):
    """Gives each token a fixed probability, whatever comes before it."""

    device = torch.device("cpu")

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.fixed = logits

    def forward(self, input_ids, **ignored):
        return SimpleNamespace(logits=self.fixed.expand(*input_ids.shape, -1))


def likes(tokenizer, good: str, bad: str) -> Rigged:
    """A model that finds the tokens of ``good`` likely and those of ``bad`` unlikely."""
    logits = torch.zeros(len(tokenizer))
    logits[tokenizer(good)["input_ids"]] = 2.0
    logits[tokenizer(bad)["input_ids"]] = -2.0
    return Rigged(logits)


def figure(scored, name: str):
    return next(f for f in scored.figures if f.kind.name == name)


def test_perplexity_equals_hugging_faces_own_loss(model, tokenizer, write_rows) -> None:
    texts = ["the quick brown fox", "naïve café owners watch 日本", "over the lazy dog"]
    path = write_rows("texts.jsonl", *({"text": t} for t in texts), {"text": "  \n"})
    found = perplexity(subject(model, tokenizer), PerplexityConfig(sources=[str(path)]), str(path))[
        0
    ]
    total, tokens = 0.0, 0
    for text in texts:
        ids = torch.tensor([[0, *tokenizer(text)["input_ids"]]])
        count = ids.shape[1] - 1
        total += model(ids, labels=ids).loss.item() * count
        tokens += count
    size = sum(len(text.encode()) for text in texts)
    assert figure(found, "perplexity").value == pytest.approx(math.exp(total / tokens), rel=1e-5)
    assert figure(found, "perplexity").n == tokens
    bits = total / math.log(2) / size
    assert figure(found, "bits_per_byte").value == pytest.approx(bits, rel=1e-5)
    assert found.counts["documents"] == 3
    assert found.counts["empty"] == 1
    assert found.counts["bytes"] == size


def test_a_uniform_model_has_the_vocabulary_as_perplexity(tokenizer, write_rows) -> None:
    path = write_rows("texts.jsonl", {"text": "the quick brown fox " * 30})
    uniform = subject(Rigged(torch.zeros(len(tokenizer))), tokenizer)
    found = perplexity(uniform, PerplexityConfig(sources=[str(path)]), str(path))[0]
    assert figure(found, "perplexity").value == pytest.approx(len(tokenizer), rel=1e-5)


def test_a_special_tokens_name_in_a_text_is_text(tokenizer, write_rows) -> None:
    path = write_rows("texts.jsonl", {"text": "a <|endoftext|> b"})
    uniform = subject(Rigged(torch.zeros(len(tokenizer))), tokenizer)
    found = perplexity(uniform, PerplexityConfig(sources=[str(path)]), str(path))[0]
    assert found.counts["tokens"] > len(tokenizer("a <|endoftext|> b")["input_ids"])


def test_limits_are_the_same_for_every_tokenizer(write_rows) -> None:
    path = write_rows("texts.jsonl", *({"text": f"document {i} has words"} for i in range(9)))

    def read(**limits):
        return read_texts(str(path), PerplexityConfig(sources=[str(path)], **limits))

    assert len(read(max_documents=4).documents) == 4
    assert read(max_documents=4).cut
    assert not read().cut
    cut = read(max_bytes=34)
    assert cut.documents == ["document 0 has words", "document 1"]


def test_a_record_without_the_text_is_named(tokenizer, write_rows) -> None:
    path = write_rows("texts.jsonl", {"text": "a"}, {"body": "b"})
    with pytest.raises(DataError, match=r"texts\.jsonl:2: the text 'text' is missing"):
        read_texts(str(path), PerplexityConfig(sources=[str(path)]))


def test_weights_that_are_not_finite_are_refused(tokenizer, write_rows) -> None:
    path = write_rows("texts.jsonl", {"text": "the fox"})
    broken = subject(Rigged(torch.full((len(tokenizer),), math.nan)), tokenizer)
    with pytest.raises(StageError, match="tiny gives a loss that is not finite"):
        perplexity(broken, PerplexityConfig(sources=[str(path)]), str(path))


def test_the_separator_begins_a_text_rather_than_the_end_of_a_turn(tokenizer) -> None:
    chat = SimpleNamespace(
        bos_token_id=None, eos_token_id=7, get_vocab=lambda: {"<|endoftext|>": 3}
    )
    assert start_token(chat) == 3
    assert start_token(SimpleNamespace(bos_token_id=1, eos_token_id=7)) == 1
    none = SimpleNamespace(
        bos_token_id=None, eos_token_id=None, get_vocab=dict, name_or_path="there"
    )
    with pytest.raises(ToolkitError, match="no bos_token"):
        start_token(none)


def counted(tokenizer, tokens) -> str:
    return tokenizer.decode([i for i, mark in zip(tokens.ids, tokens.scored, strict=True) if mark])


@pytest.mark.parametrize("template", [None, PLAIN_TEMPLATE])
def test_exactly_the_assistants_tokens_count(tokenizer, template) -> None:
    """Also where the template has no generation marks, and the turns are found by their text."""
    dialogues = Dialogues(tokenizer, template or tokenizer.chat_template)
    tokens = dialogues.conversation(Conversation(tuple(TALK), "chat.jsonl:1"))
    both = "jumps over<|endoftext|>naïve café<|endoftext|>"
    assert counted(tokenizer, tokens) == both
    whole = tokenizer.decode(tokens.ids)
    assert whole.startswith("<|user|>the fox<|assistant|>jumps over<|endoftext|><|user|>")
    pair = Preference(tuple(TALK[:3]), "naïve café", "lazy", "pairs.jsonl:1")
    chosen, rejected = dialogues.pair(pair)
    assert tokenizer.decode(chosen.ids).startswith(whole[:40])
    assert counted(tokenizer, chosen) == "naïve café<|endoftext|>"
    assert counted(tokenizer, rejected) == "lazy<|endoftext|>"


def test_without_any_template_prompt_and_answer_are_joined(tokenizer) -> None:
    row = Conversation(tuple(TALK[:2]), "chat.jsonl:1")
    tokens = Dialogues(tokenizer, None).conversation(row)
    assert tokenizer.decode(tokens.ids) == "the foxjumps over<|endoftext|>"
    assert counted(tokenizer, tokens) == "jumps over<|endoftext|>"


def test_a_template_that_hides_the_turns_is_refused(tokenizer) -> None:
    reversed_turns = "{% for m in messages | reverse %}{{ m.content }}{% endfor %}"
    with pytest.raises(ToolkitError, match="can't be told"):
        Dialogues(tokenizer, reversed_turns).conversation(Conversation(tuple(TALK), "a:1"))


def test_answer_loss_equals_hugging_faces_loss_with_masked_labels(
    model, tokenizer, write_rows
) -> None:
    path = write_rows(
        "chat.jsonl", {"messages": TALK}, {"instruction": "the", "output": "quick brown"}
    )
    config = AnswerLossConfig(data=[str(path)])
    found = answer_loss(subject(model, tokenizer), config, str(path))[0]
    total, tokens = 0.0, 0
    for messages in (TALK, [{"role": "user", "content": "the"},
                            {"role": "assistant", "content": "quick brown"}]):  # fmt: skip
        row = tokenizer.apply_chat_template(
            messages, return_dict=True, return_assistant_tokens_mask=True
        )
        ids, mask = torch.tensor([row["input_ids"]]), torch.tensor([row["assistant_masks"]])
        labels = ids.masked_fill(mask == 0, -100)
        total += model(ids, labels=labels).loss.item() * mask.sum().item()
        tokens += mask.sum().item()
    assert figure(found, "answer_loss").value == pytest.approx(total / tokens, rel=1e-5)
    assert found.counts["answer_tokens"] == tokens
    assert found.counts["conversations"] == 2


def test_preferences_on_a_model_whose_likes_are_known(tokenizer, write_rows) -> None:
    good, bad = "quick brown fox", "lazy dog owners"
    pairs = [(good, bad), (good, bad), (bad, good)]
    path = write_rows(
        "pairs.jsonl", *({"prompt": "the", "chosen": c, "rejected": r} for c, r in pairs)
    )
    config = PreferencesConfig(data=[str(path)])
    found = preferences(subject(likes(tokenizer, good, bad), tokenizer), config, str(path))[0]
    assert figure(found, "accuracy").value == pytest.approx(2 / 3)
    assert figure(found, "accuracy").n == 3
    assert figure(found, "accuracy").kind.headline
    other = preferences(subject(likes(tokenizer, bad, good), tokenizer), config, str(path))[0]
    assert figure(other, "accuracy").value == pytest.approx(1 / 3)
    assert figure(other, "margin").value < 0 < figure(found, "margin").value


def test_length_counts_against_an_answer_only_in_the_sum(tokenizer, write_rows) -> None:
    path = write_rows("pairs.jsonl", {"prompt": "the", "chosen": "fox " * 12, "rejected": "watch"})
    scored = preferences(
        subject(likes(tokenizer, "fox fox", "watch"), tokenizer),
        PreferencesConfig(data=[str(path)]),
        str(path),
    )[0]
    assert figure(scored, "accuracy").value == 0.0
    assert figure(scored, "accuracy_per_token").value == 1.0


def test_ties_count_as_wrong_and_are_counted(tokenizer, write_rows) -> None:
    path = write_rows("pairs.jsonl", {"prompt": "the", "chosen": "ab", "rejected": "ba"})
    uniform = subject(Rigged(torch.zeros(len(tokenizer))), tokenizer)
    scored = preferences(uniform, PreferencesConfig(data=[str(path)]), str(path))[0]
    assert figure(scored, "accuracy").value == 0.0
    assert scored.counts["ties"] == 1


def test_texts_are_no_conversations(model, tokenizer, write_rows) -> None:
    path = write_rows("chat.jsonl", {"text": "the fox"})
    with pytest.raises(DataError, match=r"chat\.jsonl:1: a plain text"):
        answer_loss(subject(model, tokenizer), AnswerLossConfig(data=[str(path)]), str(path))
    path.write_text(json.dumps({"messages": TALK}) + "\n{broken\n")
    with pytest.raises(DataError, match=r"chat\.jsonl:2"):
        answer_loss(subject(model, tokenizer), AnswerLossConfig(data=[str(path)]), str(path))
