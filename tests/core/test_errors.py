"""Errors a user can act on."""

from __future__ import annotations

import pytest

from posttrain.core.errors import ConfigError, PosttrainError, nearest
from posttrain.core.extras import require


def test_an_error_says_where_what_and_cure() -> None:
    assert (
        str(ConfigError("it is wrong", cure="mend it", where="a.jsonl:3"))
        == "a.jsonl:3: it is wrong\n  cure: mend it"
    )
    assert str(ConfigError("it is wrong", cure="mend it")) == "it is wrong\n  cure: mend it"


def test_nearest_names_one_or_lists_all() -> None:
    assert nearest("lerning_rate", ["learning_rate", "epochs"]) == "did you mean 'learning_rate'?"
    assert nearest("zzz", {"b": 1, "a": 2}) == "known: a, b"


def test_a_missing_package_names_the_command_that_installs_it() -> None:
    with pytest.raises(PosttrainError) as caught:
        require("no_such_package.inner", extra="lora", purpose="--lora")
    assert (
        caught.value.what
        == "--lora needs the package 'no_such_package.inner', which is not installed"
    )
    assert caught.value.cure == "pip install 'posttrain[lora]'"
    assert require("json.decoder", extra="x", purpose="y").JSONDecodeError is not None


def test_a_package_that_is_itself_broken_is_not_called_missing(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_package.py").write_text("import something_it_lacks\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="something_it_lacks"):
        require("broken_package", extra="x", purpose="y")
