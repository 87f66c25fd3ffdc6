import math

from toolkit.report.charts import BUCKETS, Chart, downsample, draw, series
from toolkit.report.curves import curves

LOSS = Chart("Loss", (("loss", "training"), ("validation_loss", "held out")), log=True)


def test_a_long_series_keeps_its_ends_and_its_spikes() -> None:
    points = [(float(i), math.sin(i / 900)) for i in range(20_000)]
    points[7_777] = (7_777.0, 50.0)
    points[12_345] = (12_345.0, -50.0)
    kept = downsample(points)
    assert len(kept) <= 2 * BUCKETS + 2
    assert kept[0] == points[0]
    assert kept[-1] == points[-1]
    assert {(7_777.0, 50.0), (12_345.0, -50.0)} <= set(kept)
    assert [x for x, _ in kept] == sorted(x for x, _ in kept)
    assert downsample(points[:100]) == points[:100]


def test_values_that_are_not_finite_break_the_line_and_are_shown() -> None:
    rows = [{"step": i, "loss": None if i == 3 else 2.0 - i / 10} for i in range(6)]
    drawing = draw(LOSS, rows)
    (line,) = drawing.lines
    assert line.path.count("M") == 2
    assert len(line.missing) == 1
    assert "1 values not finite" in drawing.summary


def test_rows_logged_again_after_a_resume_count_once() -> None:
    rows = [{"step": s, "loss": v} for s, v in ((1, 5.0), (2, 4.0), (3, 9.0), (3, 3.0), (4, 2.5))]
    assert series(rows, "loss") == [(1.0, 5.0), (2.0, 4.0), (3.0, 3.0), (4.0, 2.5)]


def test_an_axis_is_logarithmic_only_where_the_values_ask_for_it() -> None:
    steep = [{"step": i, "loss": 10.0 ** (3 - i)} for i in range(4)]
    assert draw(LOSS, steep).log
    assert not draw(LOSS, [{"step": i, "loss": 4.0 - i} for i in range(3)]).log
    assert not draw(LOSS, [*steep, {"step": 9, "loss": 0.0}]).log


def test_lines_stay_on_the_canvas_and_share_its_axis() -> None:
    rows = [{"step": i, "loss": 8 / i, "validation_loss": 9 / i} for i in range(1, 9)]
    drawing = draw(LOSS, rows)
    for line in drawing.lines:
        for x, y, _, _ in line.points:
            assert drawing.left <= x <= drawing.right
            assert drawing.top <= y <= drawing.bottom
    first, second = (line.points[0] for line in drawing.lines)
    assert first[0] == second[0]
    assert first[1] > second[1], "9 is drawn above 8"
    assert second[2:] == ("1", "9.00")


def test_nothing_is_drawn_from_nothing() -> None:
    assert draw(LOSS, []) is None
    assert draw(LOSS, [{"step": 1, "loss": 2.0}]) is None
    assert draw(LOSS, [{"step": 1, "loss": None}, {"step": 2, "loss": None}]) is None
    assert curves("a", "sft", [{"step": 1, "epoch": 1.0}, {"step": 2, "epoch": 2.0}]) is None


def test_every_number_that_was_logged_gets_a_curve() -> None:
    rows = [
        {"step": s, "loss": 1.0, "kl": 0.1 * s, "eval_kl": 0.2, "eval_runtime": 3.0, "epoch": s}
        for s in range(5)
    ]
    found = curves("a", "ppo", rows)
    assert [d.title for d in (*found.shown, *found.folded)] == ["Loss", "kl"]
    assert [line.label for line in found.shown[1].lines] == ["training", "held out"]
