"""Optional packages: imported when first needed, with a sentence and the one command that installs
them.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from posttrain.core.errors import PosttrainError


def require(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import `module`, or raise with the install command of the extra that brings it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != module.split(".")[0]:
            raise
        raise PosttrainError(
            f"{purpose} needs the package {module!r}, which is not installed",
            cure=f"pip install 'posttrain[{extra}]'",
        ) from None
