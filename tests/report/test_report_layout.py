from toolkit.report.layout import draw_layout


def ranks(**sizes: int):
    layout = {f"{name}_parallel_size": size for name, size in sizes.items()}
    world = 1
    for size in sizes.values():
        world *= size
    return draw_layout("base", {"world_size": world, **layout}, {})


def test_ranks_are_where_megatron_puts_them() -> None:
    """As parallel_state's own example: tensor ranks are neighbours, pipeline stages far apart."""
    layout = ranks(tensor_model=2, pipeline_model=4, data=2)
    assert [copy.rows for copy in layout.copies] == [
        ((0, 4, 8, 12), (1, 5, 9, 13)),
        ((2, 6, 10, 14), (3, 7, 11, 15)),
    ]
    assert layout.row_labels == ("t0", "t1")


def test_every_rank_is_drawn_once_with_context_parallelism_too() -> None:
    layout = ranks(tensor_model=2, context=2, pipeline_model=2, data=2)
    drawn = [rank for copy in layout.copies for row in copy.rows for rank in row]
    assert sorted(drawn) == list(range(16))
    assert layout.row_labels == ("c0 t0", "c0 t1", "c1 t0", "c1 t1")


def test_many_copies_are_counted_and_not_drawn() -> None:
    layout = ranks(tensor_model=8, data=128)
    assert len(layout.copies) == 8
    assert layout.hidden == 120


def test_the_batch_arithmetic_is_shown_where_it_is_known() -> None:
    layout = draw_layout(
        "base",
        {"world_size": 2, "data_parallel_size": 2, "num_microbatches": 2},
        {"micro_batch_size": 4, "global_batch_size": 16, "seq_length": 128},
    )
    assert layout.facts == (
        ("Micro batch × data parallel × microbatches", "4 × 2 × 2 = 16 sequences"),
        ("Tokens per step", "2,048"),
    )
    assert draw_layout("base", {}, {}) is None


def test_copies_that_share_their_weights_are_told_from_whole_ones() -> None:
    sizes = {"world_size": 2, "data_parallel_size": 2}
    for name in ("use_megatron_fsdp", "use_torch_fsdp2"):
        assert draw_layout("base", sizes, {"parallel": {name: True}}).sharded
        assert not draw_layout("base", sizes, {"parallel": {name: False}}).sharded
    assert not draw_layout("base", sizes, {}).sharded
