"""Writes docs/reference/chat-templates.md: what becomes of six conversations in each of many chat
templates.

python docs/templates.py FOLDER          write the page from the folder's .jinja files,
                                         SOURCE/NAME.jinja
python docs/templates.py FOLDER --check  exit 1 where the page is out of date
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from posttrain.core.errors import DataError, ModelError
from posttrain.data.chat import Chat, Turn
from posttrain.data.formats import Example
from posttrain.data.templates.template import Template
from posttrain.data.tokens import Encoded, Encoder

PAGE = Path(__file__).parent / "reference" / "chat-templates.md"

SOURCES = {"llamacpp": "llama.cpp", "trl": "TRL", "chujiezheng": "chujiezheng/chat_templates"}

# -------------------------------------------------------------------------------- the conversations


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def answer(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def call(number: int, city: str) -> dict[str, Any]:
    function = {"name": "get_weather", "arguments": {"city": city}}
    return answer(
        "", tool_calls=[{"type": "function", "id": f"call1234{number}", "function": function}]
    )


def result(number: int, degrees: int) -> dict[str, Any]:
    content = f'{{"temperature": {degrees}}}'
    return {
        "role": "tool",
        "name": "get_weather",
        "tool_call_id": f"call1234{number}",
        "content": content,
    }


SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "description": "the city"}},
    "required": ["city"],
}
TOOLS = (
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Weather of a city",
            "parameters": SCHEMA,
        },
    },
)
SYSTEM = {"role": "system", "content": "You are the Zorblax guide."}
FIRST, SECOND = user("Alpha question?"), user("Gamma question?")
INLINE = "<think>\n{}\n</think>\n\n{}"

CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "question": [FIRST, answer("Beta answer.")],
    "turns": [
        FIRST,
        answer("Beta answer."),
        SECOND,
        answer("Delta answer."),
        user("Eta question?"),
        answer("Theta answer."),
    ],
    "system": [SYSTEM, FIRST, answer("Beta answer."), SECOND, answer("Delta answer.")],
    "tools": [
        user("Weather in Oslo?"),
        call(1, "Oslo"),
        result(1, 7),
        answer("Seven degrees."),
        user("And in Rome?"),
        call(2, "Rome"),
        result(2, 21),
        answer("Twenty-one degrees."),
    ],
    "reasoning": [
        FIRST,
        answer("Beta answer.", reasoning_content="Because of beta."),
        SECOND,
        answer("Delta answer.", reasoning_content="Because of delta."),
    ],
    "inline": [
        FIRST,
        answer(INLINE.format("Because of beta.", "Beta answer.")),
        SECOND,
        answer(INLINE.format("Because of delta.", "Delta answer.")),
    ],
}


def example(name: str) -> Example:
    messages = tuple(CONVERSATIONS[name])
    return Example(name, (), (messages,), None, TOOLS if name == "tools" else None)


# ------------------------------------------------------------------------------------ the tokenizer

_SPECIAL = re.compile(
    r"<[|｜]?[^<>{}%\s'\"/]{1,40}[|｜]>|<[|｜][a-z_]{1,20}>|</?[a-z_:]{1,20}>|\[/?[A-Z_]{2,24}\]"
)
_ENDS = (
    "<|return|>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|END_OF_TURN_TOKEN|>",
    "<｜end▁of▁sentence｜>",
    "<|end_of_text|>",
    "<seed:eos>",
    "<|assistant_end|>",
    "<|end_of_turn|>",
    "<turn|>",
)


def tokenizer(template: str) -> Any:
    """A byte-level tokenizer that has the special tokens which the template's text names."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    special = set(_SPECIAL.findall(template))
    raw.add_special_tokens(sorted({*special, "<s>", "</s>"}))
    end = next((token for token in _ENDS if token in special), "</s>")
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token=end)


# ------------------------------------------------------------------------------------- the verdicts


@dataclass(frozen=True)
class Verdict:
    """What became of one conversation.

    Attributes:
        word: exact, branches or refused.
        why, cure: of a refusal.
        turns, encoded: of the others.
    """

    word: str
    why: str = ""
    cure: str = ""
    turns: list[Turn] = field(default_factory=list)
    encoded: list[Encoded] = field(default_factory=list)


def verdict(template: str, name: str, words: Any, **kwargs: Any) -> Verdict:
    """One sequence of tokens is exact, several are branches."""
    one = example(name)
    try:
        turns = Chat(words, template=template, kwargs=kwargs).turns(one, one.answers[0])
        (found,) = Encoder(words).encode([turns])
        if isinstance(found, DataError):
            raise found
    except (DataError, ModelError) as error:
        return Verdict("refused", error.what, error.cure)
    return Verdict("exact" if len(found) == 1 else "branches", "", "", turns, found)


@dataclass(frozen=True)
class Row:
    """A template, what became of each conversation, and the token that ends an answer."""

    source: str
    name: str
    template: str
    words: Any
    verdicts: dict[str, Verdict]
    # conversations that are taken with thinking on or off, and their word then
    other: dict[str, str]
    stop: str


def row(path: Path) -> Row:
    template = path.read_text()
    words = tokenizer(template)
    verdicts = {name: verdict(template, name, words) for name in CONVERSATIONS}
    other = {}
    for name, one in verdicts.items():
        for how, value in (("on", True), ("off", False)):
            if one.word == "refused" and "reasoning" in one.why and name not in other:
                again = verdict(template, name, words, enable_thinking=value, thinking=value)
                if again.word != "refused":
                    other[name] = f"{again.word} with thinking {how}"
    try:
        stop = Chat(words, template=template).stop
    except ModelError:
        stop = ""
    return Row(path.parent.name, path.stem, template, words, verdicts, other, stop)


def rows(folder: Path) -> list[Row]:
    paths = [path for path in folder.glob("*/*.jinja") if path.parent.name in SOURCES]
    order = list(SOURCES)
    paths.sort(key=lambda path: (order.index(path.parent.name), path.name.lower()))
    return list(map(row, paths))


# ----------------------------------------------------------------------------------------- the page

HEAD = """# Chat templates

<!-- Made by docs/templates.py from the templates themselves; a test fails where it is out of date. -->

What becomes of six conversations in each of {total} chat templates, decided from the tokens that training sees.

**exact**: the conversation is one sequence. Every answer is trained once, and before each stand exactly the tokens that a server
prompts with there.

**branches**: the template rewrites history. What it shows of an earlier turn is not what the model was prompted with or wrote:
reasoning is dropped, tools move to the last question, the prompt ends otherwise than history goes on. Every answer is still
trained once, after exactly the tokens that a server prompts with; the sequences are branches of one tree, which share what they
share. Nothing is lost, but there is more to compute.

**refused**: a part of the conversation would be lost, or the model would learn to write what it is never asked to write. The row
is an error, which says why and what to do; the letter leads to [the reasons](#reasons). *With thinking on* or *off* is what the
conversation becomes with `--template-kwargs enable_thinking=true thinking=true`, or `false`.

The conversations, in the order of the columns:

- **question**: a question and its answer
- **turns**: three questions, three answers
- **system**: a system prompt, two questions, two answers
- **tools**: a tool, two calls of it with their results, and two answers
- **reasoning**: two questions, two answers with `reasoning_content`
- **inline**: the same with the reasoning inside `content`, between `<think>` and `</think>`

Models ship variations of these templates, and tokenizers differ: here each template has a byte-level tokenizer with the special
tokens that it names. A run tells of its own template what this page tells of these: how many rows are in branches, and why rows
are refused.

## Summary

{summary}

{rewriting} of the {total} templates rewrite history in at least one conversation; {exact} are exact in all that they take;
{none} can render none.
"""

NOTES = {
    "chujiezheng": (
        "These files are indented for reading, and meant to be used with the indentation and line "
        "breaks taken\nout. As they stand, most put a line break more before an answer than before "
        "the same answer in\nhistory: branches."
    )
}


def page(found: list[Row]) -> str:
    reasons: dict[tuple[str, str], str] = {}
    tables = []
    for source, title in SOURCES.items():
        own = [one for one in found if one.source == source]
        tables += [
            f"## {title}",
            "",
            *([NOTES[source], ""] if source in NOTES else []),
            f"| {len(own)} templates | {' | '.join(CONVERSATIONS)} | answers end with |",
            "|---" * (len(CONVERSATIONS) + 2) + "|",
        ]
        for names, one in alike(own):
            cells = [cell(one, name, reasons) for name in CONVERSATIONS]
            tables.append(f"| {'<br>'.join(names)} | {' | '.join(cells)} | {code(one.stop)} |")
        tables.append("")
    counts = {name: Counter(one.verdicts[name].word for one in found) for name in CONVERSATIONS}
    summary = ["| conversation | exact | branches | refused |", "|---|---|---|---|"]
    summary += [
        f"| {name} | {n['exact']} | {n['branches']} | {n['refused']} |"
        for name, n in counts.items()
    ]
    words = [{v.word for v in one.verdicts.values()} for one in found]
    head = HEAD.format(
        total=len(found),
        summary="\n".join(summary),
        rewriting=sum("branches" in w for w in words),
        exact=sum("branches" not in w and "exact" in w for w in words),
        none=sum(w == {"refused"} for w in words),
    )
    listed = [
        f"- **{letter}**: {escaped(why).rstrip('.')}. *{escaped(cure[:1].upper() + cure[1:])}.*"
        for (why, cure), letter in reasons.items()
    ]
    return "\n".join([head, *tables, "## Reasons", "", *listed, "", *inverse(found), ""])


INVERSE = """## Reading answers back

`Template.parse` turns the tokens of an answer back into a message: content, reasoning and tool calls. How a template writes them
is learned from its own renderings, and proved by reading those back. Of the {total} templates that render anything:

| part | read back | not written by the template | not told apart |
|---|---|---|---|
{table}
"""
PARTS = {
    "content": ("", "answer cannot be told"),
    "reasoning": ("writes no reasoning", "reasoning cannot be told"),
    "tool calls": ("writes no tool calls", "form of tool calls"),
}


def inverse(found: list[Row]) -> list[str]:
    """What can be read back of each template's answers."""
    limits: dict[str, tuple[str, ...]] = {}
    for row in found:
        try:
            limits[f"{row.source}/{row.name}"] = Template.of(row.words, row.template).limits
        except ModelError:
            continue
    table = []
    for part, (absent, unknown) in PARTS.items():
        lacking = sum(bool(absent) and any(absent in one for one in own) for own in limits.values())
        lost = sum(any(unknown in one for one in own) for own in limits.values())
        table.append(f"| {part} | {len(limits) - lacking - lost} | {lacking} | {lost} |")
    named: dict[str, list[str]] = {}
    for name, own in limits.items():
        for limit in own:
            if "writes no" not in limit:
                named.setdefault(limit, []).append(name)
    lines = [f"- {limit[:1].upper() + limit[1:]}: {', '.join(n)}." for limit, n in named.items()]
    return [INVERSE.format(total=len(limits), table="\n".join(table)), *lines]


def alike(templates: list[Row]) -> list[tuple[list[str], Row]]:
    """Templates that differ in nothing that the table shows, in one row: a template and its variant
    for training.
    """
    groups: dict[Any, list[Row]] = {}
    for template in templates:
        shown = []
        for name, result in template.verdicts.items():
            shown.append((result.word, result.why, template.other.get(name)))
        key = template.name.removesuffix("_training"), tuple(shown), template.stop
        groups.setdefault(key, []).append(template)
    return [([template.name for template in group], group[0]) for group in groups.values()]


def cell(template: Row, name: str, reasons: dict[tuple[str, str], str]) -> str:
    result = template.verdicts[name]
    if result.word != "refused":
        return result.word
    why = re.sub(
        r"begins every answer with (.*?), and",
        "begins every answer with words or a tag of its own, and",
        result.why,
    )
    letter = reasons.setdefault((why, result.cure), "abcdefghijklmnopqrstuvwxyz"[len(reasons)])
    text = f"refused ({letter})"
    return f"{text}, {template.other[name]}" if name in template.other else text


def code(text: str) -> str:
    return "" if not text else f"`{text}`".replace("|", "\\|")


def escaped(text: str) -> str:
    return re.sub(
        r"<[^<> ]+>|--[a-z-]+( [a-z_]+=[a-z]+)?|reasoning_content", lambda m: f"`{m[0]}`", text
    )


def main(argv: list[str]) -> int:
    folders = [argument for argument in argv if not argument.startswith("--")]
    if len(folders) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    text = page(rows(Path(folders[0])))
    if "--check" in argv:
        return 0 if PAGE.is_file() and PAGE.read_text() == text else 1
    PAGE.write_text(text)
    print(f"wrote {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
