"""The tests' own children: signals they were not given, and a test that fails."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from tests.children import SIGNALS, child


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_child_has_default_signals_where_the_tests_ignore_them(signum: signal.Signals) -> None:
    before = signal.signal(signum, signal.SIG_IGN)
    try:
        argv = [sys.executable, "-c", "import time; print('ready', flush=True); time.sleep(60)"]
        with child(argv, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
            process.send_signal(signum)
            assert process.wait(30) != 0
        assert signal.getsignal(signum) == signal.SIG_IGN
    finally:
        signal.signal(signum, before)


def test_a_child_does_not_outlive_a_test_that_fails() -> None:
    argv = [sys.executable, "-c", "import time; time.sleep(60)"]
    with pytest.raises(ZeroDivisionError), child(argv) as process:
        raise ZeroDivisionError
    assert process.returncode == -signal.SIGKILL
