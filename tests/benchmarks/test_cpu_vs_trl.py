"""The CPU benchmark runs, compares like with like, and refuses a busy machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "cpu_vs_trl.py"


@pytest.mark.slow
def test_tiny_run_gives_both_the_same_batches_and_losses(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    done = subprocess.run(
        [sys.executable, SCRIPT, "--tiny", "--out", out],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(out.read_text())
    measured = {m["contestant"]: m for m in result["measurements"]}
    assert set(measured) == set(result["settings"]["contestants"])
    assert measured["posttrain"]["tokens"] == measured["trl default"]["tokens"], (
        "the same batches in the same order"
    )
    for m in measured.values():
        assert m["tokens_per_second"] == pytest.approx(sum(m["tokens"][1:]) / sum(m["seconds"][1:]))
        assert 0.05 < m["peak_gib"] < 4
    losses = result["comparison"]["loss"]
    assert losses["largest_difference"] < 1e-5
    assert losses["first"] - losses["last"] > 1e-3, "the steps must have changed the model"


def test_a_busy_machine_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    busy = (
        "import os, runpy, sys; os.getloadavg = lambda: (0.51, 0, 0); sys.argv = sys.argv[1:]; "
        f"sys.path.insert(0, {str(SCRIPT.parent)!r}); runpy.run_path(sys.argv[0], "
        "run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", busy, str(SCRIPT), "--out", str(out)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )
    assert done.returncode == 1
    assert "load average is 0.51" in done.stderr
    assert not out.exists()
