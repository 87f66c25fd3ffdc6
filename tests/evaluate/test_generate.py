import pytest
import torch

from toolkit.errors import ToolkitError
from toolkit.evaluate.generate import Sampling, complete, encode_prompt, end_tokens, generate


def greedy(model, prompt: list[int], count: int) -> list[int]:
    ids = list(prompt)
    for _ in range(count):
        ids.append(model(torch.tensor([ids])).logits[0, -1].argmax().item())
    return ids[len(prompt) :]


@pytest.fixture
def ending(model, tokenizer):
    """A prompt, and what follows it greedily up to a token that occurs there for the first time."""
    for first in range(10, 250):
        following = greedy(model, [0, first], 8)
        if len(set(following[:4])) == 4 and not {0, *following[:4]} & set(following[4:]):
            return [0, first], following
    pytest.fail("the tiny model repeats itself after every prompt")


def test_generation_takes_the_likeliest_token_and_stops_at_eos(model, tokenizer, ending) -> None:
    prompt, following = ending
    free = complete(model, tokenizer, prompt, Sampling(max_new_tokens=8))
    assert free.text == tokenizer.decode(following)
    assert (free.tokens, free.finish) == (8, "length")
    model.generation_config.eos_token_id = [0, following[3]]
    try:
        ended = complete(model, tokenizer, prompt, Sampling(max_new_tokens=8))
        assert end_tokens(model, tokenizer) == sorted({0, following[3]})
    finally:
        model.generation_config.eos_token_id = 0
    assert (ended.tokens, ended.finish) == (4, "stop")
    assert ended.text == tokenizer.decode(following[:3])


def test_the_tokenizers_eos_ends_a_text_and_is_not_shown(model, tokenizer, ending) -> None:
    prompt, following = ending
    pieces: list[str] = []
    before = tokenizer.eos_token
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(following[2])
    try:
        ended = complete(model, tokenizer, prompt, Sampling(max_new_tokens=8), pieces.append)
    finally:
        tokenizer.eos_token = before
    assert (ended.tokens, ended.finish) == (3, "stop")
    assert ended.text == "".join(pieces) == tokenizer.decode(following[:2])


def test_sampling_repeats_with_its_seed_and_leaves_the_global_state_alone(model, tokenizer) -> None:
    def sample(seed: int) -> str:
        return complete(model, tokenizer, [0, 40], Sampling(12, 1.0, 0.95, seed)).text

    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    texts = [sample(seed) for seed in (1, 1, 2, 3, 4)]
    assert torch.equal(torch.rand(3), expected)
    assert texts[0] == texts[1]
    assert len(set(texts)) > 1


def test_the_context_limits_a_text(model, tokenizer) -> None:
    out = complete(model, tokenizer, list(range(10, 40)), Sampling(max_new_tokens=50))
    assert out.tokens <= 2
    with pytest.raises(ToolkitError, match="the prompt has 32 tokens, and the model's context"):
        complete(model, tokenizer, list(range(10, 42)), Sampling())


def test_a_prompt_is_a_turn_only_where_chat_is_asked_for(tokenizer) -> None:
    turn = encode_prompt(tokenizer, "the fox", tokenizer.chat_template)
    assert tokenizer.decode(turn) == "<|user|>the fox<|assistant|>"
    plain = encode_prompt(tokenizer, "the fox", None)
    assert tokenizer.decode(plain) == "<|endoftext|>the fox"


def test_models_are_read_from_folders_and_text_is_streamed(model, tokenizer, save) -> None:
    folder = save("tiny", model)
    pieces: list[str] = []
    texts = list(generate(folder, ["the fox", "a dog"], max_new_tokens=24, on_text=pieces.append))
    assert len(texts) == 2
    assert "".join(pieces) == "".join(texts)
    assert len(pieces) > 2
    again = list(generate(folder, ["a dog", "the fox"], max_new_tokens=24))
    assert again == texts[::-1]


def test_chat_without_a_template_is_refused(model, tokenizer, save) -> None:
    folder = save("tiny", model)
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ToolkitError, match="no chat template"):
        list(generate(folder, ["hello"], chat=True))
