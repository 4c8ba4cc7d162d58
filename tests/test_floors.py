"""Arrows point down, and what is meant to be small or quick stays so."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src" / "posttrain").rglob("*.py"))
# lowest first; a floor may import itself and those before it
FLOORS = [
    "core",
    "assets",
    "methods",
    "data",
    "engine",
    "scoring",
    "environments",
    "evals",
    "redteam",
    "gates",
    "report",
    "stages",
    "pipeline",
    "feedback",
    "serve",
    "studio",
    "scale",
    "cli",
]
LINES, FUNCTION_LINES = 600, 90


def name_of(path: Path) -> str:
    """src/posttrain/core/__init__.py → posttrain.core"""
    return ".".join(path.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in SOURCES}


def floor_of(module: str) -> str:
    return [*module.split("."), ""][1]


@cache
def imports(module: str) -> frozenset[str]:
    """Everything a module imports, anywhere in it: in functions, under TYPE_CHECKING, and by name
    in a string.
    """
    found: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno} imports relatively"
            assert node.module is not None
            if node.module == "posttrain" and [alias.name for alias in node.names] == [
                "__version__"
            ]:
                continue  # a constant that stands above everything
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            found.update(name if name in MODULES else node.module for name in inside)
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and re.fullmatch(r"posttrain(\.\w+)+", node.value)
        ):
            found.add(node.value)
    return frozenset(found)


def arrows() -> Iterator[tuple[str, str]]:
    for module in MODULES:
        yield from (
            (module, other)
            for other in sorted(imports(module))
            if other.split(".")[0] == "posttrain"
        )


def test_every_module_stands_on_a_known_floor() -> None:
    known = {*FLOORS, "", "__main__"}
    assert {module for module in MODULES if floor_of(module) not in known} == set()


def test_every_import_of_posttrain_exists() -> None:
    assert {(a, b) for a, b in arrows() if b not in MODULES} == set()


def test_arrows_point_down() -> None:
    up = [
        f"{a} imports {b}"
        for a, b in arrows()
        if floor_of(a) in FLOORS
        and not (floor_of(b) in FLOORS and FLOORS.index(floor_of(b)) <= FLOORS.index(floor_of(a)))
    ]
    assert not up, f"arrows that point up: {up}"


def test_no_circles_within_a_floor() -> None:
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " → ".join([*path[path.index(module) :], module])
        if module not in done:
            for other in sorted(imports(module) & MODULES.keys()):
                if floor_of(other) in FLOORS:
                    visit(other, (*path, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


PRINTERS = {"posttrain.core.console", "posttrain.core.terminal"}
PRINTING = {  # modules of rich that print, or read markup
    f"rich.{name}" for name in ("console", "markup", "progress", "prompt", "table", "traceback")
}


def prints(module: str) -> Iterator[str]:
    """Where a module prints past the escape of `core.terminal`."""
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in ("print", "rich.print") or re.fullmatch(
                r"sys\.(__)?std(out|err)(__)?(\.buffer)?\.write(lines)?", called
            ):
                yield f"{module}:{node.lineno} calls {called}"
        if isinstance(node, ast.Attribute) and ast.unparse(node).endswith(".file.write"):
            yield f"{module}:{node.lineno} writes to a console's file"


def test_everything_printed_goes_through_one_escape() -> None:
    others = [module for module in MODULES if module not in PRINTERS]
    assert [where for module in others for where in prints(module)] == []
    assert [(module, sorted(imports(module) & PRINTING)) for module in others] == [
        (module, []) for module in others
    ]
    assert [*prints("posttrain.core.console"), *prints("posttrain.core.terminal")] != []


@pytest.mark.parametrize(
    ("floor", "allowed"),
    [
        # torch for annotations only: see the tests below
        ("core", {"posttrain.core", "numpy", "pydantic", "rich", "torch"}),
        ("methods", {"posttrain.core", "posttrain.methods", "numpy", "pydantic", "torch"}),
    ],
)
def test_the_lower_floors_import_little(floor: str, allowed: set[str]) -> None:
    strange = {
        f"{module} imports {other}"
        for module in MODULES
        if floor_of(module) == floor
        for other in imports(module)
        if other.split(".")[0] not in sys.stdlib_module_names
        and not {other, other.split(".")[0], ".".join(other.split(".")[:2])} & allowed
    }
    assert strange == set()


@pytest.mark.parametrize(
    "path",
    [*SOURCES, *sorted((ROOT / "examples").glob("*.py")), ROOT / "docs" / "generate.py"],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= LINES
    long = [
        f"{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and node.end_lineno is not None
        and node.end_lineno - node.lineno >= FUNCTION_LINES
    ]
    assert not long
    assert ast.get_docstring(ast.parse(text)), "a module says in one line what it is"


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (None, 0),
        ([], 0),
        (["--help"], 0),
        (["--version"], 0),
        (["sft", "--help"], 0),
        (["sft", "--epoch", "1"], 2),
        (["sft", "--epochs", "zero", "--model", "m", "--data", "d", "--out", "o"], 2),
        (["sfd"], 2),
    ],
    ids=str,
)
def test_help_and_wrong_input_answer_without_torch(
    argv: list[str] | None, code: int, tmp_path: Path
) -> None:
    call = (
        "import posttrain"
        if argv is None
        else "\n".join(
            [
                "from posttrain.cli.main import main",
                "try:",
                f"    code = main({argv!r})",
                "except SystemExit as error:",
                "    code = error.code",
            ]
        )
    )
    script = (
        f"import sys\ncode = 0\n{call}\n"
        + "print('HEAVY', sorted({'torch', 'transformers', 'peft'} & set(sys.modules)), 'CODE', "
        "code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert done.stdout.splitlines()[-1] == f"HEAVY [] CODE {code}", done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []  # nothing was made on the way
