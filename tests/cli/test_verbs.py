"""What a verb makes of errors that are not its own."""

import errno

import pytest
import typer

from toolkit.cli.verbs import verb


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "from", None, "to"), "to: No space"),
        (OSError(errno.ENOENT, "No such file or directory", "from", None, "to"), "from: No such"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space"),
    ],
)
def test_a_disk_that_is_full_is_that_of_the_file_written(
    error: OSError, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    @verb
    def failing() -> None:
        raise error

    with pytest.raises(typer.Exit) as caught:
        failing()
    assert caught.value.exit_code == 1
    assert capsys.readouterr().err.startswith(told)
