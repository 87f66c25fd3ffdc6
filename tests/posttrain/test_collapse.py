import pytest

from toolkit.errors import StageError
from toolkit.posttrain.collapse import WINDOW, CollapseAlarm


def metrics(chosen: float, margin: float) -> dict[str, float]:
    return {"rewards/chosen": chosen, "rewards/margins": margin}


def alarm(stop: bool = False) -> CollapseAlarm:
    """Of answers of 10 tokens with beta 0.1: a reward of -1 is a fall of 1 nat per token."""
    return CollapseAlarm(beta=0.1, answer_tokens=10, threshold=0.55, stop=stop)


def test_it_goes_off_once_when_chosen_falls_and_the_margin_grows(
    caplog: pytest.LogCaptureFixture,
) -> None:
    watch = alarm()
    for step in range(1, 20):
        watch(step, metrics(-0.1 * step, 0.2 * step))
    assert watch.collapse is not None
    # The mean of steps 4 to 8 is the first beyond 0.55.
    assert watch.collapse.step == 8
    assert watch.collapse.fall == pytest.approx(0.6)
    assert watch.collapse.margin == pytest.approx(1.2)
    assert watch.as_info()["largest_fall"] == pytest.approx(1.7)
    assert caplog.text.count("become unlikely") == 1
    assert "loss_type: [sigmoid, sft]" in caplog.text


@pytest.mark.parametrize(
    "values",
    [
        [metrics(0.5, 1.0)] * 10,  # the chosen answers rise
        [metrics(-0.4, 1.0)] * 10,  # they fall, but less than the threshold
        [metrics(-2.0, -0.1)] * 10,  # no margin: the model just got worse
        [metrics(0.0, 0.0)] * 4 + [metrics(-2.0, 1.0)] + [metrics(0.0, 0.1)] * 4,  # one odd batch
        [metrics(-2.0, 1.0)] * (WINDOW - 1),  # too little seen
        [{"validation_rewards/chosen": -9.0}] * 10,
    ],
)
def test_it_stays_quiet(values: list[dict[str, float]]) -> None:
    watch = alarm(stop=True)
    for step, value in enumerate(values):
        watch(step, value)
    assert watch.as_info()["collapsed"] is False


def test_it_ends_the_training_if_asked() -> None:
    watch = alarm(stop=True)
    with pytest.raises(StageError, match=r"fell by 1\.00 nats per token") as caught:
        for step in range(WINDOW):
            watch(step, metrics(-1.0, 2.0))
    assert "sft" in str(caught.value.hint)
