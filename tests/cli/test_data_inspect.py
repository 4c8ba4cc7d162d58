"""`posttrain data inspect`: what is printed, the page, and what it says to wrong input."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from posttrain.cli import data_inspect
from posttrain.cli.main import main
from posttrain.core.console import Console
from posttrain.data.anatomy import LEGEND
from posttrain.stages.inspect import data_inspect as inspect_stage
from tests.making import END, model, write

SHARED = (Path(__file__).parents[2] / ".." / "shared" / "data").resolve()
HOSTILE = {
    "messages": [
        {"role": "system", "content": "</style><script>alert(1)</script>"},
        {"role": "user", "content": '" onmouseover="alert(2)" x=\'\x1b[2J'},
        {"role": "assistant", "content": "</span></pre><img src=x onerror=alert(3)>&amp;\nok"},
    ]
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model(tmp_path_factory.mktemp("model"), positions=512)


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def pair(prompt: str, completion: str) -> dict[str, str]:
    return {"prompt": prompt, "completion": completion}


def told(tiny: Path, *argv: str) -> list[str]:
    return ["data", "inspect", "--model", str(tiny), "--data", "a.jsonl", *argv]


class Page(HTMLParser):
    """What a browser would make of a page: its elements with their attributes, and the tokens'
    texts.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.tokens: list[tuple[str, str, str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "line", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("line", "rect"):
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-2:] == ["pre", "span"]:
            attributes = self.elements[-1][1]
            self.tokens.append(
                (str(attributes["class"]).split()[1], data, str(attributes["data-w"]))
            )


# ---------------------------------------------------------------------------------- what is printed


def test_without_colour_marks_stand_around_what_is_trained(
    tiny: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write(Path("a.jsonl"), [pair("ab\n", "c\nd"), pair("ab\n", "c\nd"), pair("x", "y" * 30)])
    assert (
        main(told(tiny, "--prompt-template", "{prompt}=", "--examples", "1", "--max-length", "12"))
        == 0
    )
    out, err = capfd.readouterr()
    assert err == ""
    assert out.startswith(
        "── a.jsonl:1 ──\nprompt: given\ncompletion: trained: 4 tokens\n8 tokens, 4 trained\n"
        f"a│b│⏎\n=⟦c│⏎\nd│{END}⟧\n\n⟦trained⟧, given; │ stands between tokens, ⏎ is a line break\n"
    )
    counts = dict(re.findall(r"^ +(\S.*?) {2,}(\S.*?) *$", out, re.MULTILINE))
    assert {
        name: counts[name]
        for name in ("rows", "format", "used", "sequences", "tokens", "trained tokens")
        # 8 + 8 + 12, of them 4 + 4 + 10
    } == {
        "rows": "3",
        "format": "prompt-completion",
        "used": "3 (100.0%)",
        "sequences": "3",
        "tokens": "28",
        "trained tokens": "18 (64.3%)",
    }
    assert counts["cut to 12 tokens"] == counts["duplicates of another row"] == "1 (33.3%)"
    assert "--max-length 12: 1 longer (33.3%)\n" in out
    assert "median 8, 90 % 33, 99 % 33, longest 33\n" in out
    assert "a step of 8 rows: 28 tokens in 1.00 forward passes of at most 4,096\n" in out
    assert f"{28 / 36:.1%} of the computed tokens would be data, 1.29 times the work\n" in out
    assert "\x1b" not in out


def test_cut_tokens_have_their_own_marks(tiny: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write(Path("a.jsonl"), [pair("x", "yzw")])
    assert main(told(tiny, "--prompt-template", "{prompt}=", "--max-length", "4")) == 0
    assert f"\nx│=⟦y│z⟧✂⟨w│{END}⟩\n" in capfd.readouterr().out


def test_in_a_terminal_colours_say_what_is_trained(tiny: Path) -> None:
    write(Path("a.jsonl"), [pair("ab", "cd")])
    outcome = inspect_stage(quiet=True, model=tiny, data="a.jsonl", prompt_template="{prompt}=")
    stream = io.StringIO()
    data_inspect.show_report(
        outcome.detail.report,
        Console(
            file=stream,
            force_terminal=True,
            color_system="truecolor",
            width=100,
            no_color=False,
            _environ={},
        ),
    )
    line = next(line for line in stream.getvalue().splitlines() if END in line)
    backgrounds = re.findall(r"\x1b\[([\d;]*)48;2;(\d+);(\d+);(\d+)m([^\x1b]+)", line)
    shades = {
        tuple(int(style.rpartition("#")[2][i : i + 2], 16) for i in (0, 2, 4)): kind
        for kind, both in data_inspect.STYLES.items()
        if "#" in both[0].partition(" on ")[2]
        for style in both
    }
    assert [(text, shades[int(r), int(g), int(b)]) for _, r, g, b, text in backgrounds] == [
        ("a", "given"),
        ("b", "given"),
        ("=", "template"),
        ("c", "trained"),
        ("d", "trained"),
        (END, "end"),
    ]
    # neighbours differ
    assert len({b[1:4] for b in backgrounds[:2]}) == len({b[1:4] for b in backgrounds[3:5]}) == 2
    assert "⟦" not in stream.getvalue() and data_inspect.STYLES.keys() == LEGEND.keys()


def test_several_sources_and_held_out_rows(tiny: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write(Path("a.jsonl"), [pair("ab", "cd")])
    write(Path("b.jsonl"), [{"text": "abc"}, {"text": "d"}])
    write(Path("c.jsonl"), [pair("e", "f")])
    assert main(told(tiny, "b.jsonl", "--validation", "c.jsonl", "--examples", "0")) == 0
    out = capfd.readouterr().out
    assert not out.startswith("──") and "⟦" not in out
    rows = [line.split() for line in out.splitlines() if ".jsonl" in line]
    assert rows == [
        ["a.jsonl", "prompt-completion", "1", "1", "32", "3", "0", "0"],
        ["b.jsonl", "text", "2", "2", "6", "4", "0", "0"],
        ["c.jsonl", "(held", "out)", "prompt-completion", "1", "1", "30", "2", "0", "0"],
    ]
    assert re.search(r"rows +3 ", out)


def test_quiet_prints_the_result_and_progress_goes_to_standard_error(
    tiny: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("posttrain.core.console.LINE_SECONDS", -1.0)  # every row is worth a line
    write(Path("a.jsonl"), [pair("ab", "cd")] * 3)
    assert main(told(tiny)) == 0
    loud, progress = capfd.readouterr()
    assert main(told(tiny, "--quiet")) == 0
    assert capfd.readouterr() == (loud, "")
    assert re.findall(r"read a.jsonl +(\d+%)", progress)[-1] == "100%"


# ----------------------------------------------------------------------------------------- the page


def test_the_page_is_whole_and_no_row_becomes_markup(
    tiny: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write(
        Path("a.jsonl"),
        [
            HOSTILE,
            {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "z"}]},
        ],
    )
    assert main(told(tiny, "--html", "deep/page.html", "--examples", "2")) == 0
    assert capfd.readouterr().out.endswith("page      deep/page.html\n")
    assert [p.name for p in Path("deep").iterdir()] == ["page.html"]
    text = Path("deep/page.html").read_text()
    page = Page(text)
    assert page.open == []
    assert {tag for tag, _ in page.elements} <= {
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "h1",
        "h2",
        "h3",
        "p",
        "div",
        "b",
        "small",
        "span",
        "article",
        "ul",
        "li",
        "pre",
        "table",
        "tr",
        "td",
        "th",
        "svg",
        "text",
        "rect",
        "line",
    }
    assert {name for _, attributes in page.elements for name in attributes} <= {
        "lang",
        "charset",
        "http-equiv",
        "content",
        "name",
        "class",
        "data-w",
        "viewbox",
        "role",
        "x",
        "y",
        "x1",
        "x2",
        "y1",
        "y2",
        "rx",
        "width",
        "height",
        "text-anchor",
    }
    assert (
        "http" not in text.replace("http-equiv", "")
        and "url(" not in text
        and "@import" not in text
    )
    assert "\x1b" not in text and "prefers-color-scheme: dark" in text
    assert {"default-src 'none'; style-src 'unsafe-inline'"} < {
        a.get("content") for _, a in page.elements
    }
    trained = "".join(words for kind, words, _ in page.tokens if kind in ("trained", "end"))
    assert trained == f"</span></pre><img src=x onerror=alert(3)>&amp;⏎\nok{END}z{END}"
    given = "".join(words for kind, words, _ in page.tokens if kind == "given")
    assert given == '</style><script>alert(1)</script>" onmouseover="alert(2)" x=\'␛[2Jq'
    assert [w for _, words, w in page.tokens if words == END] == [
        "id 0 · trained: ends message 3, assistant",
        "id 0 · trained: ends message 2, assistant",
    ]


def test_the_page_has_the_same_numbers(tiny: Path) -> None:
    write(Path("a.jsonl"), [pair("ab", "cd" * i) for i in range(1, 40)])
    write(Path("b.jsonl"), [pair("ab", "")])
    argv = told(tiny, "--html", "page.html", "--max-length", "60")
    assert main(argv) == 0
    page = Path("page.html").read_text()
    # row i has 29 + 2i + 1 tokens: 32, …, 60 up to i = 15, which add up to 690; the other 24 are
    # cut to 60: 1,440
    assert "--max-length 60: 24 longer (61.5%)" in page
    assert "n = 39 · median 70 · 90 % 102 · 99 % 108 · longest 108" in page.replace(",", "")
    assert re.search(r"<td>tokens</td><td class=n>2,130</td>", page)
    assert main(argv) == 0 and Path("page.html").read_text() == page


# ------------------------------------------------------------------------------------------ trouble


@pytest.mark.parametrize(
    ("rows", "argv", "what", "cure"),
    [
        (
            [pair("a", "b"), pair("a", "")],
            [],
            "a.jsonl:2: the text to learn is empty",
            "--on-bad-row reject",
        ),
        ([pair("a", "b"), "{]"], [], "a.jsonl:2: not JSON", "one JSON object a line"),
        (
            [{"asked": "What is it?", "chosen": "a", "rejected": "b"}],
            [],
            "a.jsonl:1: chosen and rejected have no prompt, and the column 'asked'",
            "FILE,prompt=asked",
        ),
        ([], [], "there are no rows in a.jsonl", "check the file"),
        ([pair("a", "b")], ["--rows", "last"], "rows = ", "which: first, spread"),
        ([pair("a", "b")], ["--rows", "0"], "rows = ", "which: first, spread"),
        ([pair("a", "b")], ["--row", "1"], "unknown option --row", "did you mean '--rows'?"),
        (
            [pair("a", "b")],
            ["--max-length", "513"],
            "--max-length 513 is more than the 512 positions",
            "--max-length 512 or less",
        ),
        (
            [pair("a", "b")],
            ["--budget", "5"],
            "--budget 5 is less than the 30 tokens",
            "--budget 30 or more",
        ),
        (
            [pair("a", "b")],
            ["--out", "r.jsonl"],
            "a bad row stops the work",
            "add --on-bad-row reject",
        ),
        (
            [pair("a", "b")],
            ["--html", "a.jsonl"],
            "--html a.jsonl is one of the files of data",
            "choose another --html",
        ),
        (
            [pair("a", "b")],
            ["--out", "a.jsonl", "--on-bad-row", "reject"],
            "--out a.jsonl is one of the files of data",
            "choose",
        ),
        ([pair("a", "b")], ["--html", "."], "--html . is a folder", "give a file"),
        (
            [pair("a", "b")],
            ["--chat-template", "none.jinja"],
            "cannot read the chat template none.jinja",
            "check the path",
        ),
        ([pair("a", "b")], ["--model", "./none"], "./none is not a model folder", "point --model"),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, (list, str)) else None,
)
def test_wrong_input_is_answered_with_the_cure(
    tiny: Path,
    capfd: pytest.CaptureFixture[str],
    rows: list[Any],
    argv: list[str],
    what: str,
    cure: str,
) -> None:
    before = write(Path("a.jsonl"), rows).read_bytes()
    assert main(told(tiny, *argv)) == 2
    out, err = capfd.readouterr()
    assert out == ""
    error, advice = err.split("\ncure:  ")
    assert what in error and cure in advice, err
    assert Path("a.jsonl").read_bytes() == before and [p.name for p in Path().iterdir()] == [
        "a.jsonl"
    ]


def test_nothing_to_train_is_shown_and_then_refused(
    tiny: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write(Path("a.jsonl"), [pair("abcdef", "g")])
    assert main(told(tiny, "--max-length", "20", "--html", "page.html")) == 2
    out, err = capfd.readouterr()
    assert out.startswith("── a.jsonl:1, dropped: the prompt alone fills 20 tokens ──\n")
    assert (
        "more than half of the rows of a.jsonl cannot be trained on" in err
        and "cure:  raise --max-length" in err
    )
    assert Page(Path("page.html").read_text()).open == []


def test_rejected_rows_are_counted_and_written_where_asked(
    tiny: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write(Path("a.jsonl"), [pair("a", "b"), pair("a", ""), pair("c", "d"), pair("e", "f")])
    assert main(told(tiny, "--on-bad-row", "reject", "--rows", "2", "3", "9")) == 0
    out = capfd.readouterr().out
    assert re.search(r"rejected: the text to learn is empty +1 \(25\.0%\)", out)
    assert (
        "not shown: rows 2, 9: there is no such row, or it was rejected\n" in out
        and "── a.jsonl:3 ──" in out
    )
    assert [p.name for p in Path().iterdir()] == ["a.jsonl"]
    assert main(told(tiny, "--on-bad-row", "reject", "--out", "r.jsonl")) == 0
    assert capfd.readouterr().out.endswith("rejected  r.jsonl\n")
    assert [json.loads(line)["where"] for line in Path("r.jsonl").read_text().splitlines()] == [
        "a.jsonl:2"
    ]


def test_help_and_wrong_options_answer_without_torch() -> None:
    script = (
        "import sys\nfrom posttrain.cli.main import main\ncodes = []\nfor argv in (['data', "
        "'inspect', '--help'], ['data', 'inspect', '--modle', 'x']):\n    try:\n        "
        "codes.append(main(argv))\n    except SystemExit as error:\n        "
        "codes.append(error.code)\nprint('HEAVY', sorted({'torch', 'transformers'} & "
        "set(sys.modules)), codes)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "HEAVY [] [0, 2]", done.stdout + done.stderr


# ---------------------------------------------------------------------------------------- real data


def test_tool_calls_of_a_real_set(capfd: pytest.CaptureFixture[str]) -> None:
    folder, path = (
        SHARED / "models" / "base-28m",
        SHARED / "demonstrations" / "glaive_toolcall_demo.jsonl.gz",
    )
    if not (folder.is_dir() and path.is_file()):
        pytest.skip(f"the shared data folder {SHARED} has no base-28m or no tool calls")
    assert (
        main(
            [
                "data",
                "inspect",
                "--model",
                str(folder),
                "--data",
                str(path),
                "--rows",
                "1",
                "--html",
                "page.html",
            ]
        )
        == 0
    )
    out = capfd.readouterr().out
    assert re.search(r"rows +300 ", out) and re.search(r"used +299 ", out)
    page = Page(Path("page.html").read_text())
    trained = "".join(words for kind, words, _ in page.tokens if kind in ("trained", "end"))
    answers = trained.removesuffix("<|end|>").split("<|end|>")
    assert len(answers) == 4
    assert answers[0].startswith("Of course! I can help you with that.")
    assert (
        json.loads(answers[1].removeprefix("<tool_call>").removesuffix("</tool_call>"))["name"]
        == "search_recipes"
    )
    assert not any('"recipes": [{' in answer for answer in answers)  # what the tool said is given
    assert '{"recipes": [{"name": "Chicken and Bell Pepper' in "".join(
        w for kind, w, _ in page.tokens if kind == "given"
    )
