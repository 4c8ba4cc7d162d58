"""What every benchmark's result file begins with: when, with which command, on what, with which
versions. No torch here.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"


def header(*packages: str) -> dict[str, Any]:
    """The facts a number depends on, besides the number's own script."""
    return {
        "date": str(date.today()),
        "command": " ".join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]]),
        "hardware": hardware(),
        "load_before": os.getloadavg()[0],
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in packages},
        },
    }


def hardware() -> dict[str, Any]:
    """The machine, in words and numbers; what the system does not say is left out."""
    facts: dict[str, Any] = {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "system": platform.system(),
    }
    for key, file, field in (
        ("cpu", Path("/proc/cpuinfo"), "model name"),
        ("memory", Path("/proc/meminfo"), "MemTotal"),
    ):
        lines = file.read_text().splitlines() if file.is_file() else []
        found = [line.split(":", 1)[1].strip() for line in lines if line.startswith(field)]
        facts.update({key: found[0]} if found else {})
    return facts


def trees(path: str, tokenizer: Any, template: str, max_length: int) -> list[Any]:
    """The rows of a file as trees, prompt and completion being plain text."""
    from pydantic import TypeAdapter

    from posttrain.data.chat import Chat
    from posttrain.data.prepare import Preparation, prepare
    from posttrain.data.settings import Sourced
    from posttrain.data.store import Trees

    source = TypeAdapter(Sourced).validate_python(path)
    with tempfile.TemporaryDirectory() as name:
        prepare(
            source, Preparation(Chat(tokenizer, prompt_template=template), max_length), Path(name)
        )
        found = Trees(Path(name))
        return [found[i] for i in range(len(found))]


def refuse_busy(most: float) -> None:
    """Stop where something else is running."""
    if (load := os.getloadavg()[0]) > most:
        raise SystemExit(
            f"The one-minute load average is {load:.2f}. Something else is running, and a time "
            f"taken beside it says nothing about either. Wait until it is below {most}, then run "
            "this again."
        )


def fresh(script: Path, work: Path, name: str, **job: Any) -> dict[str, Any]:
    """Run one job of a script (`--child JOB`) in a new process, offline, and return the result that
    it writes.
    """
    job = {"name": name, "work": str(work), "result": str(work / "result.json"), **job}
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONWARNINGS": "ignore",
    }
    if job.get("tiny"):
        environment["OMP_NUM_THREADS"] = "1"
    done = subprocess.run(
        [sys.executable, str(script), "--child", json.dumps(job)],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stdout[-3000:]}")
    return json.loads((work / "result.json").read_text())


def durations(ends: list[float]) -> list[float]:
    """Seconds from each end to the next, never 0: a virtual machine's clock may stand still for the
    length of a tiny step.
    """
    return [max(b - a, 1e-9) for a, b in itertools.pairwise(ends)]


def write(result: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    print(f"written to {os.path.relpath(path)}")
