"""References in settings, whatever the settings are called."""

from toolkit.data.clean.config import CleanConfig
from toolkit.stage import references


def test_a_setting_called_keys_hides_no_reference() -> None:
    config = CleanConfig.model_validate(
        {"sources": ["a"], "decontaminate": {"evaluations": ["b"], "keys": ["question"]}}
    )
    assert [(path, value) for path, value, _ in references(config)] == [
        (("sources", 0), "a"),
        (("decontaminate", "evaluations", 0), "b"),
    ]
