"""YAML with places: YAML 1.2 scalars, duplicate keys, overlays and overrides."""

from pathlib import Path

import pytest

from toolkit.errors import ConfigError
from toolkit.pipeline.source import (
    COMMAND_LINE,
    apply_override,
    fill_in,
    overlay,
    parse_override,
    parse_yaml,
    plain,
    read_yaml,
)

FILE = Path("x.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1E5", 1e5),
        ("1.", 1.0),
        (".5", 0.5),
        ("-.inf", float("-inf")),
        ("12", 12),
        ("0x1f", 31),
        ("0o17", 15),
        ("012", 12),
        ("no", "no"),
        ("on", "on"),
        ("12:30", "12:30"),
        ("2026-01-01", "2026-01-01"),
        ("true", True),
        ("~", None),
        ("'1e-5'", "1e-5"),
        ("1_000", "1_000"),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    found = parse_yaml(f"key: {text}\n", FILE).data["key"]
    assert found == value
    assert type(found) is type(value)


def test_every_key_has_its_line() -> None:
    source = parse_yaml("a:\n  b:\n    - 1\n    - c: 2\n", FILE)
    assert source.places["a", "b"].line == 2
    assert source.places["a", "b", 1, "c"].line == 4
    assert source.place(("a", "b", 9, "z")).line == 2


def test_a_key_that_stands_twice_is_refused_with_both_lines() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_yaml("a: 1\nb: 2\na: 3\n", FILE)
    (problem,) = caught.value.problems
    assert (problem.key, problem.line) == ("a", 3)
    assert "first on line 1" in problem.message


def test_all_duplicates_are_reported_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_yaml("a: 1\na: 3\nb: {c: 1, c: 2}\n", FILE)
    assert [p.key for p in caught.value.problems] == ["a", "b.c"]


def test_bad_syntax_names_the_line() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_yaml("a: 1\nb: [1, 2\nc: 3\n", FILE)
    assert caught.value.problems[0].line in (2, 3)


def test_tabs_and_unknown_tags_are_refused() -> None:
    for text in ("a:\n\tb: 1\n", "a: !!python/object:os.system x\n", "a: !secret x\n"):
        with pytest.raises(ConfigError):
            parse_yaml(text, FILE)


def test_anchors_and_merge_keys_work() -> None:
    source = parse_yaml("base: &b {x: 1, y: 2}\nother:\n  <<: *b\n  y: 3\n", FILE)
    assert source.data["other"] == {"x": 1, "y": 3}


def test_an_alias_that_holds_itself_is_refused() -> None:
    with pytest.raises(ConfigError, match="alias holds itself"):
        parse_yaml("a: &x\n  b: *x\n", FILE)


def test_missing_and_undecodable_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_yaml(tmp_path / "none.yaml")
    bad = tmp_path / "bad.yaml"
    bad.write_bytes(b"a: 1\nb: \xff\n")
    with pytest.raises(ConfigError) as caught:
        read_yaml(bad)
    assert caught.value.problems[0].line == 2


def test_overlay_merges_mappings_and_replaces_the_rest() -> None:
    base = parse_yaml("a: {x: 1, y: 2}\nl: [1, 2, 3]\n", Path("base.yaml"))
    over = parse_yaml("\n\na: {y: 5}\nl: [9]\n", Path("over.yaml"))
    merged = overlay(base, over)
    assert merged.data == {"a": {"x": 1, "y": 5}, "l": [9]}
    assert merged.places["a", "x"].file == Path("base.yaml")
    assert merged.places["a", "y"].file == Path("over.yaml")
    assert ("l", 2) not in merged.places


def test_fill_in_keeps_what_is_there() -> None:
    source = parse_yaml("m: {a: 1}\n", FILE)
    fill_in(source, ("m",), parse_yaml("a: 5\nb: 6\n", Path("preset.yaml")))
    assert source.data == {"m": {"a": 1, "b": 6}}
    assert source.places["m", "b"].file == Path("preset.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 1e-3), ("50", 50), ("[a, b]", ["a", "b"]), ("{x: 1}", {"x": 1}), ("", None)],
)
def test_override_values_are_yaml(text: str, value: object) -> None:
    assert parse_override(f"stages.base.x={text}") == (("stages", "base", "x"), value)


def test_override_sets_lists_and_makes_mappings() -> None:
    source = parse_yaml("s: {m: [a, b]}\n", FILE)
    apply_override(source, "s.m.1=c")
    apply_override(source, "s.new.deep=3")
    assert source.data == {"s": {"m": ["a", "c"], "new": {"deep": 3}}}
    assert source.places["s", "m", 1].file == COMMAND_LINE


@pytest.mark.parametrize("text", ["nonsense", "=3", "s.m.7=1", "s.x.y=1", "s.m.1=[a"])
def test_bad_overrides_are_refused(text: str) -> None:
    source = parse_yaml("s: {m: [a, b], x: 5}\n", FILE)
    with pytest.raises(ConfigError):
        apply_override(source, text)


def test_a_plain_path_is_absolute_keeps_links_and_never_means_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "real" / "below").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real/below")
    monkeypatch.chdir(tmp_path / "real")
    assert plain(Path("p.yaml")) == tmp_path / "real" / "p.yaml"
    assert plain(Path("../real/below/../*.txt")) == tmp_path / "real" / "*.txt"
    assert plain(Path("../link/p.yaml")) == tmp_path / "link" / "p.yaml"
    behind = tmp_path / "link" / ".." / "p.yaml"  # in real, and not beside it
    assert plain(behind) == behind
