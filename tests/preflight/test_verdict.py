from toolkit.preflight.config import Preflight
from toolkit.preflight.report import Finding, Report, read_report
from toolkit.preflight.verdict import absent, judge

SETTINGS = Preflight()


def report(rank: int, node: str, *failed: str, **more: object) -> Report:
    findings = tuple(Finding(check, f"{check} is bad", failed=True) for check in failed)
    return Report(rank, 0, node, findings, looked=True, **more)  # type: ignore[arg-type]


def test_a_report_comes_back_from_its_line() -> None:
    one = report(3, "n1", "disk", versions={"torch": "2.6"}, gpu="GPU-1")
    assert "\n" not in one.text() and '"node": "n1"' in one.text()
    assert read_report(one.text()) == one


def test_nothing_wrong_is_fit() -> None:
    assert judge([report(0, "a"), report(1, "b")], {"a": 0.0, "b": 0.01}, SETTINGS).fit


def test_the_node_of_a_failed_check_is_named_once() -> None:
    verdict = judge([report(0, "a"), report(1, "b", "disk"), report(2, "b", "disk")], {}, SETTINGS)
    assert verdict.unfit == {"b": ["disk: disk is bad"]} and not verdict.common


def test_what_every_node_fails_is_no_node_s_fault() -> None:
    verdict = judge([report(0, "a", "disk"), report(1, "b", "disk", "ECC")], {}, SETTINGS)
    assert verdict.common == ["disk, on every node: disk is bad"]
    assert verdict.unfit == {"b": ["ECC: ECC is bad"]} and not verdict.fit


def test_a_single_node_that_fails_is_named() -> None:
    assert judge([report(0, "a", "ECC")], {"a": 0.0}, SETTINGS).unfit == {"a": ["ECC: ECC is bad"]}


def test_versions_that_differ_name_the_odd_one_and_of_two_both() -> None:
    have = [report(i, n, versions={"driver": v}) for i, (n, v) in enumerate(["a1", "b2", "c1"])]
    (reason,) = judge(have, {}, SETTINGS).unfit["b"]
    assert reason == "versions: driver is 2, on most nodes 1"
    two = judge(have[:2], {}, SETTINGS).unfit
    assert set(two) == {"a", "b"} and "which of the two nodes" in two["a"][0]
    lacking = judge([*have, report(3, "d"), report(4, "e", versions={"driver": "1"})], {}, SETTINGS)
    assert lacking.unfit["d"] == ["versions: driver is none, on most nodes 1"]
    mixed = judge([*have, report(3, "d", versions={"driver": "2"})], {}, SETTINGS)
    assert mixed.common == ["versions: driver is 1 on 2 nodes, 2 on 2 nodes"] and not mixed.unfit


def test_what_only_the_first_rank_of_a_node_knows_is_compared() -> None:
    first = [report(2 * i, node, versions={"driver": str(i)}) for i, node in enumerate("ab")]
    second = [report(2 * i + 1, node, versions={}) for i, node in enumerate("ab")]
    assert set(judge([*first, *second], {}, SETTINGS).unfit) == {"a", "b"}


def test_a_clock_that_is_off_is_named_even_when_it_is_rank_0_s() -> None:
    reports = [report(i, node) for i, node in enumerate("abc")]
    slow = judge(reports, {"a": 0.0, "b": 0.1, "c": -9.0}, SETTINGS).unfit
    assert list(slow) == ["c"] and "-9.00 s off" in slow["c"][0]
    assert list(judge(reports, {"a": 0.0, "b": 60.0, "c": 60.1}, SETTINGS).unfit) == ["a"]
    assert set(judge(reports[:2], {"a": 0.0, "b": 60.0}, SETTINGS).unfit) == {"a", "b"}
    assert judge(reports, {"a": 0, "b": 99}, Preflight(max_clock_skew=None)).fit


def test_two_ranks_on_one_gpu_are_found() -> None:
    have = [report(0, "a", gpu="G1"), report(1, "a", gpu="G1"), report(2, "b", gpu="G1")]
    assert judge(have, {}, SETTINGS).unfit == {"a": ["GPUs: ranks 0 and 1 share G1"]}


def test_a_node_without_a_word_is_named() -> None:
    words = [report(0, "a"), report(1, "b")]
    found = absent({0: "a", 1: "b"}, words, ["a", "b", "c"])
    assert list(found) == ["c"] and found["c"].startswith("start: no rank of it has begun")


def test_a_rank_that_hangs_while_it_looks_is_named() -> None:
    words = [report(0, "a"), Report(1, 0, "b")]
    assert absent({0: "a"}, words, ["a", "b"]) == {"b": "look: rank 1 began, and came to no end"}


def test_a_node_that_can_t_reach_rank_0_is_named() -> None:
    words = [report(i, node) for i, node in enumerate("abcd")]
    found = absent({0: "a", 1: "b", 3: "d"}, words, list("abcd"))
    assert found == {"c": "rendezvous: rank 2 could not reach a"}


def test_rank_0_s_node_is_named_where_most_can_t_reach_it() -> None:
    words = [report(i, node) for i, node in enumerate("abcd")]
    assert list(absent({0: "a", 3: "d"}, words, list("abcd"))) == ["a"]


def test_of_two_nodes_that_don_t_meet_both_are_named() -> None:
    found = absent({0: "a"}, [report(0, "a"), report(1, "b")], ["a", "b"])
    assert set(found) == {"a", "b"} and "which of the two nodes" in found["a"]
