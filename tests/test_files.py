"""A file is there whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from fewstep.files import replacing


def test_the_old_content_stays_until_the_new_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text("old")
    with replacing(file) as other:
        other.write_text("new")
        assert file.read_text() == "old"
        assert other.name.startswith(".a.json.")
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert file.read_text() == "new"


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_error_leaves_nothing_of_it(tmp_path: Path, error: type[BaseException]) -> None:
    file = tmp_path / "a.json"
    file.write_text("old")

    def torn() -> None:
        with replacing(file) as other:
            other.write_text("n")
            raise error

    with pytest.raises(error):
        torn()
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert file.read_text() == "old"


def test_two_writers_do_not_meet(tmp_path: Path) -> None:
    file = tmp_path / "a"
    with replacing(file) as one, replacing(file) as two:
        one.write_text("1")
        two.write_text("2")
    assert file.read_text() == "1"  # the last to end
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
