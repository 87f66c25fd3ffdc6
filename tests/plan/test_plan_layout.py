"""Every rule of layouts from both sides: refused for the right reason alone, and repaired."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest
import yaml
from all_cases import CASES
from layout_cases import TP, Case, settings

from toolkit.errors import ConfigError
from toolkit.plan.layout import RULES, is_valid, violations
from toolkit.plan.stages import load_checked


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_wrong_run_is_refused_for_the_right_reason(case: Case) -> None:
    found = list(violations(case.wrong_run))
    assert {v.rule for v in found} == {case.rule}
    assert any(v.key == case.key and case.says in v.message for v in found), found
    assert not is_valid(case.wrong_run)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_repaired_run_is_accepted(case: Case) -> None:
    assert list(violations(case.right_run)) == []


def test_there_are_cases_for_every_rule() -> None:
    tried = {case.rule for case in CASES}
    assert tried == {rule.name for rule in RULES}
    assert len(CASES) >= 60


def test_every_rule_says_what_it_follows() -> None:
    for rule in RULES:
        assert rule.source
        assert inspect.getdoc(rule.check)
    names = [rule.name for rule in RULES]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_setting_that_is_named_exists(case: Case) -> None:
    """A dotted key of a stage's settings, so that the message has a line."""
    whole = case.wrong_config.model_dump()
    for part in case.key.split("."):
        assert part in whole, case.key
        whole = whole[part]


def test_all_violations_come_at_once_with_their_lines(tmp_path: Path) -> None:
    """As ``toolkit check`` shows them: file, line, key, and the rule behind it."""
    wrong = {
        TP: 3,
        "parallel.pipeline_model_parallel_size": 5,
        "seq_length": 128,
        "fp8_param": True,
    }
    (tmp_path / "text.bin").touch()
    (tmp_path / "text.idx").touch()
    stage = {"kind": "pretrain", **settings(wrong), "data": str(tmp_path / "text")}
    file = tmp_path / "wrong.yaml"
    file.write_text(yaml.safe_dump({"name": "wrong", "stages": {"base": stage}}, sort_keys=False))
    with pytest.raises(ConfigError) as caught:
        load_checked(file)
    lines = file.read_text().splitlines()
    keys = []
    for problem in caught.value.problems:
        assert problem.file == file
        assert problem.line is not None
        keys.append(problem.key.removeprefix("stages.base."))
        assert lines[problem.line - 1].strip().startswith(f"{keys[-1].rpartition('.')[2]}:")
        assert problem.hint is not None and problem.hint.startswith("rule ")
    assert keys.count(TP) == 3  # heads, query groups, MLP
    assert {"parallel.pipeline_model_parallel_size", "seq_length", "fp8_param"} <= set(keys)


def test_rules_are_small_functions() -> None:
    for rule in RULES:
        tree = ast.parse(inspect.getsource(rule.check))
        assert isinstance(tree.body[0], ast.FunctionDef)
        assert len(inspect.getsourcelines(rule.check)[0]) <= 36, rule.name
