"""The tests' own CreateProcess under Wine: what it asks again, and what not."""

import pytest
import wine_processes
from wine_processes import ATTEMPTS_MAX, ERROR_INTERNAL_ERROR, asking_again

ERROR_FILE_NOT_FOUND = 2


@pytest.fixture(autouse=True)
def refused(monkeypatch):
    """Not the list of this run."""
    monkeypatch.setattr(wine_processes, "refused", [])
    return wine_processes.refused


def failing(*codes):
    """A CreateProcess that fails with each of the codes, and works then."""
    codes = list(codes)

    def create(_application, command_line):
        if codes:
            raise denial(codes.pop(0))
        return f"started {command_line}"

    return create


def denial(code):
    exc = OSError(0, "denied")
    exc.winerror = code  # Off Windows the constructor does not know it.
    return exc


def test_a_process_that_wine_could_not_start_is_started_at_last(refused):
    create = asking_again(failing(*[ERROR_INTERNAL_ERROR] * (ATTEMPTS_MAX - 1)))
    assert create(None, "python") == "started python"
    assert refused == ["python"] * (ATTEMPTS_MAX - 1)


def test_an_error_that_stays_is_told():
    with pytest.raises(OSError, match="denied"):
        asking_again(failing(*[ERROR_INTERNAL_ERROR] * ATTEMPTS_MAX))(None, "python")


def test_any_other_error_is_told_at_once(refused):
    with pytest.raises(OSError, match="denied"):
        asking_again(failing(ERROR_FILE_NOT_FOUND))(None, "python")
    assert refused == []
