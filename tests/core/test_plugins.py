"""Objects of users' own files."""

from __future__ import annotations

from pathlib import Path

import pytest

from posttrain.core.errors import ConfigError
from posttrain.core.plugins import is_plugin, load_plugin, plugin_file


def test_what_names_an_object_of_a_file() -> None:
    good = ("a.py:f", "some folder/a.py:f_1", "C:/a.py:f")
    assert all(map(is_plugin, good)) and plugin_file(good[1]) == Path("some folder/a.py")
    assert not any(map(is_plugin, ("a.py", "a.py:", "a.txt:f", "reward:a.py", "a.py:f=b", "exact")))


def test_a_file_is_run_once_and_again_where_it_has_changed(tmp_path: Path) -> None:
    """Whoever loads it, its objects are the same ones; dataclasses in it find their module."""
    path = tmp_path / "mine.py"
    lines = ("from dataclasses import dataclass", "@dataclass", "class Box:", "    n: 'int' = {}")
    source = "\n".join((*lines, "box = Box()\n"))
    path.write_text(source.format(1))
    box = load_plugin(f"{path}:box")
    assert load_plugin(f"{path}:box") is box and box.n == 1
    path.write_text(source.format(2))
    assert load_plugin(f"{path}:box").n == 2


@pytest.mark.parametrize(
    ("source", "line", "what"),
    [
        ("a = 1\nb = 1 / 0\n", 2, "ZeroDivisionError"),
        ("a = 1\n\ndef f(:\n", 3, "SyntaxError"),
        ("import no_such_module_at_all\n", 1, "ModuleNotFoundError"),
    ],
)
def test_a_file_that_cannot_be_run_is_named_with_its_line(
    source: str, line: int, what: str, tmp_path: Path
) -> None:
    path = tmp_path / "mine.py"
    path.write_text(source)
    with pytest.raises(ConfigError, match=what) as caught:
        load_plugin(f"{path}:f")
    assert caught.value.where == f"{path}:{line}"
