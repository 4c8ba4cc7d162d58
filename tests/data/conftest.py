"""The sweep over many chat templates, made once."""

from __future__ import annotations

from typing import Any

import pytest
import transformers.utils.chat_template_utils as theirs

from tests.data.chats import FOLDER, Pinned, docs


@pytest.fixture(scope="session")
def swept() -> Any:
    """Every template with every conversation of the reference page."""
    if not FOLDER.is_dir():
        pytest.skip(f"there is no folder of chat templates {FOLDER}")
    return docs().rows(FOLDER)


@pytest.fixture(scope="session")
def taken(swept: Any) -> list[tuple[Any, str, Any]]:
    """(template, conversation, verdict) of all that is not refused."""
    return [
        (row, name, one)
        for row in swept
        for name, one in row.verdicts.items()
        if one.word != "refused"
    ]


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Today, for transformers, is the day that we pin."""
    monkeypatch.setattr(theirs, "datetime", Pinned)
