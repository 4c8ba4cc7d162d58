"""The default chat template, for a model that has none.

It never rewrites history, and it is saved with the model.

It uses the turn tokens that the tokenizer already has, so that no embedding has to be added:
ChatML's, or one token a role; otherwise headings in plain text and the end-of-sequence token after
every answer.
"""

from __future__ import annotations

import json
import re
from datetime import date
from typing import Any

_TEMPLATE = """\
{{- BOS }}
{%- if tools %}
    {%- set listing %}
Functions you may call, one JSON schema a line:
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}
To call one, write <tool_call>{"name": …, "arguments": {…}}</tool_call>.
    {%- endset %}
{%- endif %}
{%- if tools and messages[0].role != 'system' %}
    {{- OPEN_SYSTEM + listing + END }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'system' %}
        {{- OPEN_SYSTEM + message.content + ('\\n\\n' + listing if tools and loop.first else '') + END }}
    {%- elif message.role == 'user' %}
        {{- OPEN_USER + message.content + END }}
    {%- elif message.role == 'tool' %}
        {{- OPEN_USER + '<tool_response>\\n' + message.content + '\\n</tool_response>' + END }}
    {%- elif message.role == 'assistant' %}
        {{- OPEN_ASSISTANT }}
        {%- if message.reasoning_content %}
            {{- '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- message.content }}
        {%- for call in message.tool_calls or [] %}
            {{- ('\\n' if message.content or not loop.first else '') + '<tool_call>' }}
            {{- {'name': call.function.name, 'arguments': call.function.arguments} | tojson }}
            {{- '</tool_call>' }}
        {%- endfor %}
        {{- END_ASSISTANT }}
    {%- else %}
        {{- raise_exception('unknown role ' + message.role) }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- OPEN_ASSISTANT }}
{%- endif %}
"""


# Some templates print today's date. A run that goes on tomorrow must see what it saw today; a row
# can say another one, in chat_template_kwargs, where its template allows that.
TODAY = date(2026, 1, 1)
_NOW = re.compile(r"strftime_now\(\s*(['\"])(.*?)\1\s*\)")


def pinned(template: str) -> str:
    """A template that says the same date every day."""
    return _NOW.sub(lambda match: repr(TODAY.strftime(match[2])), template)


def default_template(tokenizer: Any) -> str:
    """A Jinja chat template for a tokenizer without one: system, user, assistant and tool turns,
    tools, and reasoning.
    """
    known = {t.content for t in tokenizer.added_tokens_decoder.values()}
    if {"<|im_start|>", "<|im_end|>"} <= known:
        opening, end = "<|im_start|>{role}\n", "<|im_end|>\n"
        end_assistant = end
    elif {"<|user|>", "<|assistant|>"} <= known:
        end = "<|end|>\n" if "<|end|>" in known else "\n"
        end_assistant = end if "<|end|>" in known else f"{tokenizer.eos_token}\n"
        opening = "<|{role}|>\n"
    else:
        opening, end, end_assistant = "### {title}:\n", "\n\n", f"{tokenizer.eos_token}\n\n"
    values = {"END_ASSISTANT": end_assistant, "END": end, "BOS": _begin(tokenizer)}
    for role in ("system", "user", "assistant"):
        shown = "user" if opening.startswith("<|{role}|>") and f"<|{role}|>" not in known else role
        values[f"OPEN_{role.upper()}"] = opening.format(role=shown, title=role.title())
    return re.sub(
        r"\b(OPEN_[A-Z]+|END(_ASSISTANT)?|BOS)\b",
        lambda m: json.dumps(values[m[0]], ensure_ascii=False),
        _TEMPLATE,
    )


def _begin(tokenizer: Any) -> str:
    """The begin token, where the tokenizer puts it before every text."""
    begin = tokenizer.bos_token_id
    return (
        tokenizer.bos_token
        if begin is not None and tokenizer("a")["input_ids"][:1] == [begin]
        else ""
    )
