"""Prompts to draw answers for: rows of any format as what the model is shown, and what is known of
the wanted answer.

prompt              the prompt
prompt-completion   the prompt; the completion is the wanted answer
messages            the conversation up to its last answer, which is the wanted one
preference          the prompt of both answers
label               the prompt; an answer labelled good is the wanted one
steps               the prompt
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import Any

from posttrain.core.errors import DataError
from posttrain.data.chat import Chat
from posttrain.data.formats import Example, Format
from posttrain.data.messages import Text
from posttrain.data.rows import Rejects, Row
from posttrain.data.settings import FormatName, Source
from posttrain.data.sources import read
from posttrain.data.tokens import Encoder


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt as a model is shown it.

    Attributes:
        where: the row it was.
        prompt: text or messages, as the row had it.
        ids: token ids.
        known: the row's columns; `completion` is the wanted answer as text, where the row has one.
        around: what belongs to the prompt besides: tools, chat_template_kwargs.
    """

    where: str
    prompt: Text
    ids: list[int]
    known: dict[str, Any]
    around: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Rendered:
    """A row whose prompt is text, and not yet tokens."""

    row: Row
    example: Example
    wanted: str | None
    text: str
    plain: bool

    def prompt(self, ids: list[int]) -> Prompt:
        columns = {key: value for key, value in self.row.fields.items() if key != "completion"}
        if self.wanted is not None:
            columns["completion"] = self.wanted
        around: dict[str, Any] = {}
        if self.example.tools:
            around["tools"] = list(self.example.tools)
        if self.example.kwargs:
            around["chat_template_kwargs"] = self.example.kwargs
        return Prompt(self.row.where, self.example.prompt, ids, columns, around)


def read_prompts(
    sources: Many[Source],
    chat: Chat,
    rejects: Rejects,
    *,
    format: FormatName = "",
    longest: int | None = None,
) -> list[Prompt]:
    """Every prompt of some sources, in order.

    Args:
        rejects: counts the rows and takes those that cannot be used.
        format: of the rows; empty: found from each source's first.
        longest: tokens of a prompt at most.
    Raises:
        DataError: a row cannot be used, and rejects are not written.
    """
    rendered: list[_Rendered] = []
    for source in sources:
        form = Format(format, prompts=True)
        for row in read(source, rejects):
            try:
                example, wanted = without_answer(form.read(row))
                text, plain = chat.prompt(example)
            except DataError as error:
                rejects.add(error, row)
            else:
                rendered.append(_Rendered(row, example, wanted, text, plain))
    texts = [prompt.text for prompt in rendered]
    encoded = Encoder(chat.tokenizer).prompts(texts, [prompt.plain for prompt in rendered])
    prompts = []
    for ids, prompt in zip(encoded, rendered, strict=True):
        if longest is not None and len(ids) > longest:
            error = DataError(
                f"the prompt has {len(ids):,} tokens, and beside --max-tokens "
                f"{max(0, longest):,} fit into what the model can address",
                where=prompt.row.where,
                cure="shorten or remove the row, or give a lower --max-tokens",
            )
            rejects.add(error, prompt.row)
        else:
            prompts.append(prompt.prompt(ids))
    return prompts


def without_answer(example: Example) -> tuple[Example, str | None]:
    """An example without its answers, and the wanted one as text; None where there is none.

    Raises:
        DataError: there is no prompt, or the conversation does not end with an answer.
    """
    prompt, answers = example.prompt, example.answers
    wanted = None
    if len(answers) == 1 and example.label is not False and not example.steps:
        answer = answers[0]
        if isinstance(answer, str):
            wanted = answer
        else:
            if answer[-1]["role"] != "assistant":
                raise DataError(
                    "the conversation does not end with an answer",
                    where=example.where,
                    cure=(
                        "remove what follows it, or give prompts alone: a column prompt with the "
                        "messages"
                    ),
                )
            wanted = answer[-1]["content"]
            prompt = (*(() if isinstance(prompt, str) else prompt), *answer[:-1])
    if not prompt or (isinstance(prompt, str) and not prompt.strip()):
        raise DataError(
            "the row has no prompt to answer",
            where=example.where,
            cure="say which column it is: --data FILE,prompt=COLUMN",
        )
    return Example(example.where, prompt, (), None, example.tools, example.kwargs), wanted
