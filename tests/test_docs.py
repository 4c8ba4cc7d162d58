"""The documents: made pages are up to date, links lead somewhere, and commands in them exist."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import posttrain
from posttrain.cli.main import commands
from posttrain.core import errors
from posttrain.core.settings import options as options_of
from posttrain.data.settings import COLUMNS, Source
from posttrain.stages.index import entries
from posttrain.stages.registry import find
from tests import making

ROOT = Path(__file__).parents[1]
PAGES = [
    *sorted((ROOT / "docs").rglob("*.md")),
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")),
]
# an absolute path: pages hold on every machine, so only devices have one
ABSOLUTE = re.compile(r"(?:^|[\s`'\"(=\[])(/(?!dev/)\w[\w.-]*/)")
UNFINISHED = re.compile(r"\bTODO\b|\bFIXME\b|coming soon|as of this writing", re.IGNORECASE)


def short(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def options(command: str) -> set[str]:
    """Every option of a command, as its own parser knows them."""
    return {o for action in generate().parser_of(command)._actions for o in action.option_strings}


def generate() -> Any:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def anchors(page: Path) -> set[str]:
    """The names that links into a page may end with."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_reference_is_up_to_date() -> None:
    module = generate()
    assert [path.name for path in module.PAGES] == ["cli.md", "recipes.md", "coming-from.md"]
    for path, page in module.PAGES.items():
        assert path.read_text() == page(), f"{short(path)} is out of date: make docs"
    assert module.main(["--check"]) == 0


def test_the_reference_has_every_option_of_every_command() -> None:
    page = (ROOT / "docs" / "reference" / "cli.md").read_text()
    assert all(f"## posttrain {name}\n" in page for name in commands())
    sections = dict(
        zip(commands(), re.split(r"^## posttrain .*$", page, flags=re.MULTILINE)[1:], strict=True)
    )
    assert len(options("sft")) > 30
    for name, section in sections.items():
        known = options(name) - {"-h", "--help"}
        assert [o for o in known if not re.search(rf"^\|.*`{o}\b", section, re.MULTILINE)] == []


def test_the_recipe_reference_has_every_option_of_every_stage() -> None:
    page = (ROOT / "docs" / "reference" / "recipes.md").read_text()
    sections = dict(re.findall(r"^## stage: (\w+)\n(.*?)(?=^## )", page, re.MULTILINE | re.DOTALL))
    assert list(sections) == list(entries())
    for name in entries():
        found = re.findall(
            r"^\| `(\w+)` \| ([^|]+) \| ([^|]*) \| [^|]{8,} \|$", sections[name], re.MULTILINE
        )
        known = list(options_of(find(name).settings).values())
        assert [option for option, _, _ in found] == [leaf.name for leaf in known]
        for (option, _, default), leaf in zip(found, known, strict=True):
            expected = (
                None
                if leaf.switch or leaf.field.is_required()
                else leaf.field.get_default(call_default_factory=True)
            )
            if expected in (None, "", (), {}):
                assert default.strip() == (
                    "required" if leaf.field.is_required() and not leaf.switch else ""
                ), option
            elif isinstance(expected, str):
                assert default == f"`{expected}`", option
            else:
                assert json.loads(default.strip("`")) == json.loads(json.dumps(expected)), option
    data = page.split("## Data")[1].split("## ")[0]
    assert re.findall(r"^\| `(\w+)` ", data, re.MULTILINE) == [
        f for f in Source.model_fields if f not in ("path", "columns")
    ]
    assert all(f"`{name}`" in data for name in COLUMNS)


def test_pages_that_the_source_names_exist() -> None:
    """An error that points at a page points at one that is there."""
    named = {
        page
        for path in (ROOT / "src").rglob("*.py")
        for page in re.findall(r"docs/[\w/.-]+\.md", path.read_text())
    }
    assert "docs/reference/recipes.md" in named
    assert [page for page in named if not (ROOT / page).is_file()] == []


@pytest.mark.parametrize("page", PAGES, ids=short)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        found = (page.parent / name).resolve() if name else page
        if not found.exists() or (anchor and anchor not in anchors(found)):
            broken.append(target)
    assert broken == []


def test_every_page_is_reachable_from_the_index() -> None:
    seen: set[Path] = set()
    open_pages = [ROOT / "docs" / "index.md"]
    while open_pages:
        page = open_pages.pop()
        if page in seen:
            continue
        seen.add(page)
        links = re.findall(r"\]\(([^)\s#]+\.md)[^)]*\)", page.read_text())
        open_pages += [
            p
            for link in links
            if (p := (page.parent / link).resolve()).is_relative_to(ROOT / "docs") and p.exists()
        ]
    assert sorted(short(p) for p in (ROOT / "docs").rglob("*.md") if p not in seen) == []


@pytest.mark.parametrize(
    "page",
    [
        *PAGES,
        ROOT / "Makefile",
        ROOT / "constraints.txt",
        *sorted((ROOT / "examples").glob("*.py")),
    ],
    ids=short,
)
def test_nothing_is_of_one_machine_or_unfinished(page: Path) -> None:
    found = []
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if ABSOLUTE.search(line) or UNFINISHED.search(line):
            found.append(f"{number}: {line}")
    assert found == []


@pytest.mark.parametrize(
    ("line", "machine"),
    [
        ("models are in /home/ann/models", True),
        ("`/srv/models`, read", True),
        ('--out "/data/x/"', True),
        ("write it to a file, not to /dev/stdin", False),
        ("runs/first/model and docs/how-to/x.md", False),
        ("[here](../how-to/x.md), https://example.org/a/b", False),
        ("`/system TEXT` and `//etc is a folder`", False),
    ],
)
def test_what_an_absolute_path_is(line: str, machine: bool) -> None:
    assert bool(ABSOLUTE.search(line)) == machine


@pytest.mark.parametrize("page", PAGES, ids=short)
def test_commands_in_the_documents_exist(page: Path) -> None:
    """Every `make target`, every `posttrain command` and every option that follows it."""
    text = page.read_text()
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:^ {4}|`)make ([a-z]+)", text, re.MULTILINE)) <= targets
    for line in re.sub(r"\\\n", " ", text).splitlines():
        if command := re.match(r"(?: {4})?posttrain (\w+(?: [a-z]+)?) ", line):
            name = command[1] if command[1] in commands() else command[1].split()[0]
            assert name in {*commands(), "COMMAND"}, line
            assert name == "COMMAND" or set(re.findall(r" (--[\w-]+)", line)) <= options(name), line


def test_the_readme_says_how_to_begin() -> None:
    text = (ROOT / "README.md").read_text()
    assert "make quickstart" in text and "make test" in text
    tree = text.split("## The source, floor by floor")[1].split("```")[1]
    source, floors = ROOT / "src" / "posttrain", []
    for line in tree.splitlines():
        if floor := re.match(r"  (\w+)/", line):
            floors.append(floor[1])
        elif file := re.match(r"    (\w+\.py)", line):
            assert (source / floors[-1] / file[1]).is_file(), line
    assert sorted(floors) == sorted(p.parent.name for p in source.glob("*/__init__.py"))


def test_paths_and_names_of_the_source_exist() -> None:
    """What a page names in `code` as a module, a file or an attribute of posttrain is there."""
    for page in PAGES:
        for dotted in re.findall(r"`(posttrain(?:\.\w+)+)`", page.read_text()):
            parts = dotted.split(".")
            for depth in range(len(parts), 0, -1):
                module = ROOT / "src" / Path(*parts[:depth])
                if module.with_suffix(".py").is_file() or module.is_dir():
                    break
            source = (
                module / "__init__.py" if module.is_dir() else module.with_suffix(".py")
            ).read_text()
            rest = parts[depth:]
            assert not rest or re.search(
                rf"^(def|class) {rest[0]}\b|^{rest[0]}\b|\"{rest[0]}\"", source, re.MULTILINE
            ), dotted
    papers = (ROOT / "docs" / "papers.md").read_text()
    for path, name in re.findall(r"`(\w+/\w+\.py)`(?: `(\w+)`)?", papers):
        source = next(
            p for p in (ROOT / "src" / "posttrain" / path, ROOT / path) if p.is_file()
        ).read_text()
        assert not name or re.search(rf"^(def|class) {name}\b", source, re.MULTILINE), (path, name)


def test_every_paper_the_source_cites_is_listed() -> None:
    listed = (ROOT / "docs" / "papers.md").read_text()
    source = "\n".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    cited = set(re.findall(r"arXiv[ :](\d{4}\.\d{4,5})", source))
    assert {"2508.05629", "2310.05914"} <= cited
    assert {number for number in cited if number not in listed} == set()


def test_every_error_class_is_listed() -> None:
    page = (ROOT / "docs" / "reference" / "errors-and-exit-codes.md").read_text()
    classes = [
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.PosttrainError)
    ]
    assert {"PosttrainError", "DataError"} <= set(classes)
    assert [name for name in classes if f"`{name}`" not in page] == []


def test_python_examples_are_python_and_json_examples_are_json() -> None:
    for page in PAGES:
        for language, block in re.findall(
            r"```(python|json)\n(.*?)```", page.read_text(), re.DOTALL
        ):
            if language == "python":
                compile(block, short(page), "exec")
            else:
                assert all(isinstance(json.loads(line), dict) for line in block.splitlines())


def test_the_picture_is_xml_with_a_title() -> None:
    import xml.etree.ElementTree as ET

    root = ET.parse(ROOT / "docs" / "shape.svg").getroot()
    title = root.find("{http://www.w3.org/2000/svg}title")
    assert title is not None and title.text == "The shape of posttrain"


def test_the_continuous_integration_script_is_sound() -> None:
    path = ROOT / ".ci" / "run"
    assert path.stat().st_mode & 0o111
    assert "set -euo pipefail" in path.read_text()
    assert subprocess.run(["bash", "-n", str(path)], check=False).returncode == 0


def test_the_licence_is_complete_and_the_version_one() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License\n                           Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text and "APPENDIX: How to apply" in text
    assert re.fullmatch(r"\d+\.\d+\.\d+", posttrain.__version__)


def test_constraints_fit_what_is_declared() -> None:
    pins = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    )
    declared = re.findall(r'"([a-z_-]+)>=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert {"torch", "transformers", "peft", "trl", "pytest"} <= {name for name, _ in declared}
    for name, least in declared:
        if name == "hatchling":  # builds the package, in an environment of its own
            continue
        assert tuple(map(int, pins[name].split("."))) >= tuple(map(int, least.split("."))), name


def test_the_way_of_a_row_runs_through_the_modules_that_the_page_names(tmp_path: Path) -> None:
    page = (ROOT / "docs/explanation/the-way-of-a-row.md").read_text()
    table = "".join(line for line in page.splitlines(True) if line.startswith("| `"))
    named = re.findall(r"`(\w+/[\w/]+\.py)`", table)
    package = Path(posttrain.__file__).parent
    ran: set[str] = set()

    def note(frame: FrameType, event: str, argument: object) -> None:
        ran.add(frame.f_code.co_filename)

    data = tmp_path / "data.jsonl"
    ask = {"role": "user", "content": "ask"}
    making.write(data, [{"messages": [ask, {"role": "assistant", "content": "answer"}]}])
    base = making.model(tmp_path / "base")
    sys.setprofile(note)
    try:
        posttrain.sft(model=str(base), data=str(data), out=tmp_path / "run", steps=1, device="cpu")
    finally:
        sys.setprofile(None)
    assert len(named) > 15
    assert [name for name in named if str(package / name) not in ran] == []
