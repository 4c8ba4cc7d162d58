"""Chat templates in bounds: what repeats or enlarges without an end is stopped, all else is as in
transformers.
"""

from __future__ import annotations

import resource
import threading
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from posttrain.core import limits
from posttrain.core.errors import DataError, ModelError
from posttrain.data.templates import sandbox
from posttrain.data.templates.jinja import Jinja, Transcript
from tests.data.chats import docs

HELLO = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Yes."}]
REST = {"tools": None, "add_generation_prompt": False}
LOOP = "{% for i in range(99999) %}{% set ns.s = MORE %}{% endfor %}{{ ns.s }}"
BOMBS = {
    "nested loops": "{% for i in range(99999) %}" * 3 + "{% endfor %}" * 3,
    "loops that write": "{% for i in range(99999) %}" * 2 + "z" * 999 + "{% endfor %}" * 2,
    "a test that is never true": "{% for i in range(99999) %}{% for j in range(99999) if false %}"
    "{% endfor %}{% endfor %}",
    "filters in a loop": "{% for i in range(99999) %}{{ range(99999)|map('string')|select|list }}"
    "{% endfor %}",
    "a text times a number": "{{ 'x' * 10**10 }}",
    "a number times a list": "{% set x = 10**9 * [1] %}",
    "indent": "{{ 'x\ny'|indent(10**9) }}",
    "indent by a text": "{{ ('x\n' * 9999)|indent('y' * 99999) }}",
    "a filter block": "{% filter indent(10**9) %}a\nb{% endfilter %}",
    "center": "{{ 'x'|center(10**10) }}",
    "a method": "{% set m = 'x'.ljust %}{{ m(10**10) }}",
    "a filter by its name": "{{ ['a']|map('center', 10**10)|list }}",
    "a width": "{{ '%1000000000d' % 1 }}",
    "a given width": "{{ '{:{w}}'.format('x', w=10**9) }}",
    "a width in a mapping": "{{ '{a:{w}}'.format_map({'a': 'x', 'w': 10**9}) }}",
    "replace": "{% set s = 'a' * 99999 %}{{ s.replace('a', s) }}",
    "join": "{% set s = 'a' * 999999 %}{{ ([s] * 99999)|join }}",
    "a separator": "{% set s = 'a' * 999999 %}{{ s.join(['x'] * 99999) }}",
    "tojson": "{{ [[1]]|tojson(indent=10**9) }}",
    "lipsum": "{{ lipsum(10**9) }}",
    "a number": "{% set x = 9**9**9 %}{% set y = x**x %}",
    "macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}yyyyyyyyyyyyyyyy"
    + "y" * 999
    + "{% endmacro %}{{ f(99) }}",
    "endless macros": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a recursive loop": "{% for i in range(9) recursive %}{{ loop(range(9)) }}{% endfor %}",
    "a caller": "{% macro m() %}{% for i in range(9999) %}{{ caller() }}{% endfor %}{% endmacro %}"
    "{% call m() %}" + "q" * 99999 + "{% endcall %}",
    "twice as much": LOOP.replace("MORE", "ns.s + ns.s"),
    "joined": LOOP.replace("MORE", "ns.s ~ ns.s"),
    "captured": "{% for i in range(99) %}{% set t %}{{ ns.s }}{{ ns.s }}{% endset %}"
    "{% set ns.s = t %}{% endfor %}",
    "formatted": LOOP.replace("MORE", "'{0}{0}'.format(ns.s)"),
    "lists of lists": LOOP.replace("MORE", "[ns.s, ns.s, ns.s]"),
    "mappings": LOOP.replace("MORE", "dict(a=ns.s, b=ns.s)").replace("ns.s }}", "ns.s|tojson }}"),
    "views": "{% set d = dict.fromkeys(range(99999), 1) %}{% for i in range(99999) %}"
    "{% set x = d.values()|sum %}{% endfor %}",
    "copies": "{% set s = 'a' * 9999999 %}{% for i in range(99999) %}{% set x = s[1:] %}"
    "{% endfor %}",
    "comparisons": "{% set a = range(99999)|list %}{% set b = range(99999)|list %}"
    "{% for i in range(99999) %}{% set x = a == b %}{% endfor %}",
    "deep": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "long": "x" * 2**20,
}


def render(source: str, messages: Any = HELLO, **variables: Any) -> str:
    return sandbox.render(source, messages, {**REST, **variables})


@pytest.mark.parametrize("name", BOMBS)
def test_what_has_no_end_is_stopped(name: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises((sandbox.Exceeded, RecursionError, OverflowError)):
        render("{% set ns = namespace(s='xx') %}" + BOMBS[name])
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 500_000, f"{grown // 1000} MB"


def test_it_holds_in_other_threads_and_for_each_alone() -> None:
    results: list[str] = []

    def one(source: str) -> None:
        try:
            results.append(render(source))
        except sandbox.Exceeded:
            results.append("stopped")

    sources = [BOMBS["nested loops"], "{{ messages[0].content }}"] * 3
    threads = [threading.Thread(target=one, args=(source,)) for source in sources]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["Hello?"] * 3 + ["stopped"] * 3


def test_a_template_that_does_not_end_is_named_with_the_cure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    tokenizer = docs().tokenizer(plain)
    with pytest.raises(ModelError, match=r"cannot render .*: it takes more .*POSTTRAIN_LIMITS=4"):
        _ = Jinja(tokenizer, BOMBS["nested loops"], {}).dialect
    late = "{% if messages|length > 2 %}" + BOMBS["nested loops"] + "{% endif %}" + plain
    with pytest.raises(DataError, match="it takes more time or memory than it may") as caught:
        Jinja(tokenizer, late, {}).render(Transcript((*HELLO, *HELLO), where="a:7"), prompt=False)
    assert caught.value.where == "a:7"
    work = "{% for i in range(99999) %}{% for i in range(3) %}{% endfor %}{% endfor %}"
    with pytest.raises(sandbox.Exceeded):
        render(work)
    monkeypatch.setenv(limits.VARIABLE, "4")
    assert render(work) == ""


def test_long_conversations_are_within_the_bounds() -> None:
    """Work that grows with the square of the messages, and a text of megabytes."""
    source = (
        "{% for m in messages %}{% for n in messages %}{% if loop.last %}{{ m.content }}{% endif %}"
        "{% endfor %}{% endfor %}"
    )
    assert len(render(source, HELLO * 300)) == 300 * len("Hello?Yes.")
    long = "word " * 2_000_000
    source = (
        "{% for m in messages %}{{ m.role ~ m.content.split('</think>')[-1]|trim }}{% endfor %}"
    )
    assert render(source, [{"role": "user", "content": long}]) == "user" + long.strip()


SAME = [
    "{%- for m in messages %}\n{{ loop.index }}/{{ loop.length }} {{ m.role }}{% if loop.last %}!"
    "{% endif %}{% if loop.index0 == 1 %}{% break %}{% endif %}{% endfor %}",
    "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "{% macro show(m, n=2) %}{{ m.content * n }}{{ caller() if caller else '' }}{% endmacro %}"
    "{% for m in messages[::-1] %}{{ show(m) }}{% call show(m, 1) %}x{% endcall %}{% endfor %}",
    "{{ tools|tojson(indent=2) }}{{ {'é': [1, (2, 3)]}|tojson }}{{ '%s-%5d' % ('a', 3) }}",
    "{% set ns = namespace(a=[]) %}{% for m in messages %}{% set ns.a = ns.a + [m.role] %}"
    "{% endfor %}{{ ns.a|join(', ') }}{{ 'a' in ns.a }}{{ ns.a|length }}{{ ns.a is iterable }}",
    "{% for m in messages %}{{ m.reasoning_content }}{{ m.thinking }}{{ m.tool_calls is defined }}"
    "{% endfor %}{{ missing }}{{ bos_token }}{{ documents }}",
    "{% for k, v in messages[0].items() %}{{ k }}={{ v }};{% else %}none{% endfor %}"
    "{% for x in nothing %}{% else %}else{% endfor %}{{ '{}:{a:>4}'.format(1, a=2) }}",
    "{% set x %}a{{ 1 + 2 * 3 ** 2 % 5 }}{% endset %}{{ x ~ 1.5 ~ none }}{{ x.split('a')|last }}"
    "{% filter upper %}abc{% endfilter %}{{ 'b,a'.split(',')|sort|join('-') }}{{ [1,2]|sum }}",
]


@pytest.mark.parametrize("source", SAME)
def test_everything_else_is_as_in_transformers(source: str) -> None:
    messages = [*HELLO, {"role": "assistant", "content": "é", "thinking": "h", "tool_calls": None}]
    tools = [{"type": "function", "function": {"name": "look", "description": "<b>é</b>"}}]
    rest = {"tools": tools, "add_generation_prompt": True, "bos_token": "<s>"}
    cleaned = [{k: v for k, v in m.items() if v is not None} for m in messages]
    wanted = render_jinja_template(conversations=[cleaned], chat_template=source, **rest)[0][0]
    assert sandbox.render(source, messages, rest) == wanted != ""


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__ }}{{ ''.__class__.__mro__ }}",
        "{% set ns = namespace(_a=1) %}",
        "{% set x = [] %}{{ x.append(1) }}",
        "{{ raise_exception('no') }}",
        "{{ 1 | nosuch }}",
        "{% for x in 5 %}{% endfor %}",
    ],
)
def test_what_transformers_refuses_is_refused(source: str) -> None:
    for render_one in (
        render,
        lambda s: render_jinja_template(conversations=[HELLO], chat_template=s, tools=None),
    ):
        with pytest.raises(Exception, match=r"unsafe|underscore|no name|safely|no|iterable"):
            render_one(source)
