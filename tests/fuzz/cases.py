"""The cases of the fuzz, drawn by a seed: damaged state, hostile options and recipes, and disks,
streams and clocks that fail.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from posttrain.core.settings import Leaf, leaves
from posttrain.core.trackers import TRACKERS
from tests.fuzz import damage
from tests.fuzz.bench import BASIC, RUNS, argv_of
from tests.fuzz.forks import Case
from tests.test_options import every_settings

DIGITS = "9" * 5000
# fmt: off
NUMBERS = (
    "-1", "0", "-0", "1", "2", "1.5", "1e-400", "5e-324", "1e308", "1e400", "-1e400", "nan", "inf",
    "-inf", "10**18", "0x10", "1_000", "½", "٣", "1e18", "1000000000000000000", str(2**63 - 1),
    str(2**63), str(2**64), "99999999999999999999999", DIGITS, "-" + DIGITS, "1" + "0" * 400,
)
TEXTS = (
    "", " ", "\n", "x", "x" * 5000, "é" * 300, "/".join(["d"] * 3000), "a\0b", "\udcff", "\ud800",
    "-", "--", ".", "=", "=1", "a=", "a=b=c", ",", ":", "a:b", "x.py:y", "reward:", "reward:x",
    "%s%n", "{", "{}", "{0}", "{prompt}", "{prompt", "{{ 1/0 }}", "[bold]", "[/bold]", "\x1b[2J",
    "*", "[", "?", "[z-a]", "(", "null", "true", "[]", "[1", '{"a": 1e999}', "base", "rows.jsonl",
    "out/x", "nowhere/x", "rows.jsonl/x", "a/b/c.jsonl", ".jsonl", "x.JSONL", "small.yaml",
    "a=" + "[" * 100_000, "a=" + DIGITS, "a=NaN", "a={}", "embed=1e400", "train=nan", "train=1",
)
SOURCES = (
    "rows.jsonl,limit=1e400", "rows.jsonl,limit=-1", "rows.jsonl,limit=" + DIGITS,
    "rows.jsonl,limit=10000000000000000000000", "rows.jsonl,weight=nan", "rows.jsonl,weight=1e308",
    "rows.jsonl,share=1", "rows.jsonl,epochs=1e308", "rows.jsonl,epochs=1e18", "rows.jsonl,x=y",
    "rows.jsonl,prompt=nothing", "rows.jsonl,split=", "rows.jsonl,subset=x", "rows.jsonl,,,",
    "text.jsonl", "pairs.jsonl", "base", "base/config.json", "base/model.safetensors", "*.jsonl",
    "base/tokenizer.json", "odd/*.jsonl", "odd", "no/set", "nothing.jsonl", "x.parquet",
    "exact=rows.jsonl", "x=y",
)
# where the number itself is the work: a large one that fits is meant
ENDLESS = ("steps", "epochs", "max_tokens", "n")
YAML = (
    *(text for text in TEXTS if len(text) < 100), *NUMBERS,
    "&x [*x]", "&x {a: *x}", "*y", "[" * 10_000, "{a: " * 5000, "'", '"',
    "!!int x", "!!float x", "!!binary x", "!!binary aGk=", "!!set {a}", "!!timestamp x",
    "!!omap [a]", "!!python/object/apply:os.getcwd []", "2024-99-99", "1:99:99",
    '"\\0"', '"\\ud800"', '"\\x1b[2J"', ".inf", ".nan", "~", "{}", "[[]]", "{a: {b: c}}",
    "[1, [2]]", "${HOME}", "${NOPE}", "${", "0o7", "010", "<<: *x", "? [a] : b", "\t", "|\n  x",
    "@x", "`x`", "%x", "{path: rows.jsonl, limit: 1e400}", "{path: 5}", "{paht: x}",
    "{path: [rows.jsonl]}", "sft", "check",
)
# fmt: on


def cases(
    number: int, seed: int, bench: Path, runs: tuple[str, ...] = tuple(RUNS)
) -> Iterator[Case]:
    """Some cases; the same for the same seed and the same bench.

    Args:
        runs: those that the bench has.
    """
    kinds = (_state, _state, _state, _option, _option, _recipe, _trouble)
    for i in range(number):
        random = Random(f"{seed} {i}")
        case = random.choice(kinds)(random, bench, runs)
        yield replace(case, name=f"{seed}/{i} {case.name}")


# ---------------------------------------------------------------------------------- damaged state


@cache
def _files(bench: Path, run: str) -> list[str]:
    return damage.files(bench / run) if (bench / run).is_dir() else [""]


def _state(random: Random, bench: Path, runs: tuple[str, ...]) -> Case:
    """A file that a run, or a model, left is damaged; a command reads it."""
    run = random.choice([*runs, "base"])
    if run == "clean.jsonl":
        name = random.choice((run, "clean.summary.json", "clean.manifest.json"))
    else:
        name = f"{run}/{random.choice(_files(bench, run))}"
    kind = random.choice(list(damage.KINDS)) if random.random() < 0.4 else damage.choose(random)

    def do(folder: Path) -> None:
        damage.KINDS[kind](folder / name, random)

    return Case(f"{name}, {kind}", _reader(random, run, name), (run,), do)


def _reader(random: Random, run: str, name: str) -> list[str]:
    """A command that reads a file of a run."""
    models = {"runs/sft": "runs/sft/model", "runs/small": "runs/small/sft/model", "base": "base"}
    if run == "base" or (run in models and "/model/" in name and random.random() < 0.7):
        ways = [["eval", "--model", models[run], *BASIC["eval"][2:], "--out", "out"]]
        ways.append(["sft", "--model", models[run], *BASIC["sft"][2:], "--out", "out"])
        ways.append(["chat", "--model", models[run], *BASIC["chat"][2:]])
        ways.append(["reward-model", "--model", models[run], *BASIC["reward-model"][2:]])
        ways[-1] += ["--out", "out"]
        ways.append(["data", "inspect", "--model", models[run], "--data", "rows.jsonl"])
        return random.choice(ways)
    shows = [["show", run], ["runs", "runs"]]
    if run == "runs/small":
        artifact = "/".join(name.split("/")[:4])
        shows += [["plan", "small.yaml", "--out", run], ["show", artifact]]
    return random.choice(shows) if random.random() < 0.3 else RUNS[run]


# -------------------------------------------------------------------------------- hostile options


def _option(random: Random, bench: Path, runs: tuple[str, ...]) -> Case:
    """One or two options of a command have hostile values."""
    command = random.choice(list(BASIC))
    argv = argv_of(command)
    for _ in range(random.choice((1, 1, 2))):
        leaf = random.choice(list(leaves(every_settings()[command])))
        argv = _replaced(argv, leaf.option, _values(leaf, random))
    if random.random() < 0.05:
        argv.insert(random.randrange(len(argv) + 1), random.choice(TEXTS))
    return Case("options", argv)


def _replaced(argv: list[str], option: str, values: list[str]) -> list[str]:
    """The command with the option, in the place of what it had."""
    if option not in argv:
        return [*argv, option, *values]
    at = argv.index(option)
    end = next((i for i in range(at + 1, len(argv)) if argv[i].startswith("--")), len(argv))
    return [*argv[:at], option, *values, *argv[end:]]


def _values(leaf: Leaf, random: Random) -> list[str]:
    """What is written behind an option; nothing behind those that take nothing."""
    if leaf.switch or leaf.field.annotation is bool:
        return []
    of_source = "Source" in str(leaf.field.annotation)
    pool = [*NUMBERS, *TEXTS, *(SOURCES * 3 if of_source else SOURCES)]
    if leaf.name == "track":
        pool = [text for text in pool if text not in TRACKERS]
    chosen = [
        random.choice(pool) for _ in range(random.choice((1, 1, 1, 2)) if leaf.several else 1)
    ]
    return ["1" if leaf.name in ENDLESS and _is_long(text) else text for text in chosen]


def _is_long(text: str) -> bool:
    try:
        return 100 < float(text) <= 2**63  # from there on it is refused
    except ValueError:
        return False


# -------------------------------------------------------------------------------- hostile recipes


def _recipe(random: Random, bench: Path, runs: tuple[str, ...]) -> Case:
    """A recipe with hostile values, or with damaged text."""
    text = (bench / "small.yaml").read_text()
    sets: list[str] = []
    for _ in range(random.choice((1, 1, 2))):
        value = random.choice(YAML)
        match random.randrange(5):
            case 0:
                sets.append(f"{random.choice(('sft', 'check', 'x', ''))}.{_name(random)}={value}")
            case 1:
                at = random.randrange(len(text))
                text = (
                    text[:at] + random.choice((value, "\t", ":", "-", "}", "'", "\0")) + text[at:]
                )
            case 2:
                text = text.replace("steps: 1", f"{_name(random)}: {value}", 1)
            case 3:
                old = random.choice(
                    ("1e-3", "small", "rows.jsonl", "base", "cpu", "sft", "1", "eval")
                )
                text = text.replace(old, value, 1)
            case _:
                text += f"  more: {value}\n"
    argv = ["plan" if random.random() < 0.8 else "run", "recipe.yaml"]
    argv += ["--out", "out"] if random.random() < 0.8 else []
    argv += ["--set", *sets] if sets else []
    content = text.encode("utf-8", "surrogatepass")
    # a count of steps that is meant would run for ever
    if argv[0] == "run":
        argv += ["--set", "sft.steps=1", "sft.epochs=1", "check.max_tokens=1"]
    return Case("recipe", argv, damage=lambda folder: _write(folder / "recipe.yaml", content))


def _name(random: Random) -> str:
    """An option of a training stage."""
    every = [leaf.name for leaf in leaves(every_settings()["sft"])]
    return random.choice([*every, "stage", "nope", "", "a b", "\ud800"])


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


# ------------------------------------------------------------------- disks, streams and clocks


def _raises(number: int, *, folders: bool = False) -> Callable[..., None]:
    """A call of the system that fails; with `folders`, of folders alone."""

    def fail(handle: Any, *rest: Any) -> None:
        number_of = handle if isinstance(handle, int) else handle.fileno()
        if not folders or stat.S_ISDIR(os.fstat(number_of).st_mode):
            raise OSError(number, os.strerror(number))

    return fail


def _patched(place: Any, name: str, value: Any) -> Callable[[], None]:
    return lambda: setattr(place, name, value)


def _closed(*numbers: int) -> Callable[[], None]:
    def close() -> None:
        for number in numbers:
            os.close(number)
            setattr(sys, ("stdin", "stdout", "stderr")[number], None)

    return close


def _to(number: int, target: str) -> Callable[[], None]:
    """A standard stream that goes to a device, or to a reader that is gone."""

    def connect() -> None:
        if target == "gone":
            reader, writer = os.pipe()
            os.close(reader)
        else:
            writer = os.open(target, os.O_WRONLY)
        os.dup2(writer, number)
        name = ("stdin", "stdout", "stderr")[number]
        setattr(sys, name, open(number, "w", closefd=False))  # noqa: SIM115 - as long as it lives

    return connect


def _clock(step: float) -> Callable[[], None]:
    """Clocks that stand still, or go backwards."""

    def turn() -> None:
        now = [time.time()]

        def read() -> float:
            now[0] += step
            return now[0]

        for name in ("time", "monotonic", "perf_counter"):
            setattr(time, name, read)

    return turn


LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EIO, errno.EBADF)
FLUSHES = (errno.EINVAL, errno.EIO, errno.EOPNOTSUPP, errno.ENOSPC, errno.EDQUOT, errno.EROFS)
TROUBLE: dict[str, tuple[Callable[[], None], bool]] = {
    **{f"flock {n}": (_patched(fcntl, "flock", _raises(n)), False) for n in LOCKS},
    **{f"fsync {n}": (_patched(os, "fsync", _raises(n)), False) for n in FLUSHES},
    **{
        f"fsync of folders {n}": (_patched(os, "fsync", _raises(n, folders=True)), False)
        for n in FLUSHES
    },
    "stdout closed": (_closed(1), False),
    "stderr closed": (_closed(2), True),
    "all closed": (_closed(0, 1, 2), True),
    "stdin closed": (_closed(0), False),
    "stdout full": (_to(1, "/dev/full"), False),
    "stderr full": (_to(2, "/dev/full"), True),
    "stdout gone": (_to(1, "gone"), False),
    "stderr gone": (_to(2, "gone"), True),
    "clocks that stand": (_clock(0.0), False),
    "clocks that go backwards": (_clock(-1.0), False),
    "clocks that leap": (_clock(1e6), False),
}


def _trouble(random: Random, bench: Path, runs: tuple[str, ...]) -> Case:
    """The disk, a stream or the clock fails."""
    name = random.choice(list(TROUBLE))
    prepare, silent = TROUBLE[name]
    plain = [["--help"], ["sft", "--help"], ["--version"], ["schema"], ["runs", "runs"], ["nope"]]
    plain += [["plan", "small.yaml", "--json"], ["run", "small.yaml", "--json", "--out", "out"]]
    argv = random.choice([*plain, *map(argv_of, BASIC), *(RUNS[run] for run in runs)])
    found = tuple(run for run in ("runs", *runs) if run in argv[1:])
    return Case(name, argv, found, prepare=prepare, silent=silent)
