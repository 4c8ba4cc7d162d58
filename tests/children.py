"""Child processes that have default signals and never outlive their test."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Iterator
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def child(argv: list[str], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """Start a child; it is killed at the end, if it is still there.

    A shell starts background jobs with SIGINT ignored, and children would inherit that: a child
    that is asked to stop would go on.

    Args:
        argv: the command.
        options: of `subprocess.Popen`.
    """
    before = {signum: signal.signal(signum, signal.SIG_DFL) for signum in SIGNALS}
    try:
        process = subprocess.Popen(argv, **options)
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    with process:  # waits, and closes the pipes
        try:
            yield process
        finally:
            process.kill()
