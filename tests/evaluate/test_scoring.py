import pytest
import torch

from toolkit.evaluate.scoring import Tokens, Windows, score


@pytest.mark.parametrize("length", [2, 3, 8, 9, 10, 13, 40, 41])
@pytest.mark.parametrize(("context", "stride"), [(8, 4), (8, 8), (8, 1), (5, 3), (2, 1)])
def test_windows_score_every_token_once_with_enough_context(length, context, stride) -> None:
    scored = []
    for start, first, end in Windows(context, stride).cut(length):
        assert end - start - 1 <= context
        assert start < first
        if start:
            assert first - start >= context - stride
        scored += range(first, end)
    assert scored == list(range(1, length))


def losses_one_by_one(model, ids: list[int], context: int, stride: int) -> list[float]:
    """The loss of each token, each from a forward pass of its own over its own context."""
    losses = []
    for target in range(1, len(ids)):
        beyond = max(0, -(-(target - context) // stride))
        last = min(context + beyond * stride, len(ids) - 1)
        start = max(0, last - context)
        logits = model(torch.tensor([ids[start:target]])).logits[0, -1]
        losses.append(-torch.log_softmax(logits, 0)[ids[target]].item())
    return losses


@pytest.mark.parametrize(("context", "stride"), [(32, 16), (16, 16), (8, 3)])
def test_losses_equal_those_of_single_forward_passes(model, context, stride) -> None:
    generator = torch.Generator().manual_seed(3)
    lengths = (5, 70, 33, 2, 17)
    sequences = [torch.randint(0, 290, (n,), generator=generator).tolist() for n in lengths]
    tokens = [Tokens(ids, [False] + [True] * (len(ids) - 1)) for ids in sequences]
    found = score(model, tokens, Windows(context, stride, batch_size=3))
    for ids, loss in zip(sequences, found, strict=True):
        expected = losses_one_by_one(model, ids, context, stride)
        assert loss.tokens == len(ids) - 1
        assert loss.total == pytest.approx(sum(expected), rel=1e-5)


def test_only_chosen_tokens_count(model) -> None:
    ids = list(range(20, 60))
    chosen = [3, 4, 30, 39]
    found = score(model, [Tokens(ids, [i in chosen for i in range(40)])], Windows(16, 8))[0]
    expected = losses_one_by_one(model, ids, 16, 8)
    assert found.tokens == 4
    assert found.total == pytest.approx(sum(expected[i - 1] for i in chosen), rel=1e-5)


def test_batches_change_nothing_and_progress_ends_at_one(model) -> None:
    tokens = [Tokens(list(range(5, 5 + n)), [False] + [True] * (n - 1)) for n in (30, 7, 12, 50)]
    shares: list[float] = []
    one = score(model, tokens, Windows(16, 8, batch_size=1))
    many = score(model, tokens, Windows(16, 8, batch_size=4), shares.append)
    assert [a.total for a in one] == pytest.approx([b.total for b in many], rel=1e-5)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
