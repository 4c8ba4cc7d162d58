"""Jinja in bounds: renders chat templates as transformers does, and stops one that goes on without
an end or fills the memory.

A chat template is a program that comes with a model. Everything it can repeat or enlarge is charged
to a budget before it is done, in about nanoseconds and bytes: iterations, calls, filters,
operators, texts that are written. No clock, no signal and no second process: it works in every
thread, and the same everywhere. The budget grows with the conversation (`core.limits.RENDERING`).
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from functools import wraps
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.runtime import Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from posttrain.core import limits
from posttrain.core.errors import ModelError
from posttrain.core.limits import RAISE, limit

STEP = 200  # of an iteration, a call or a filter
VALUE = 32  # of a value in a list or a mapping that the template makes
SEPARATE = 64  # bytes of a short text of its own
BITS = 100_000  # of an integer
REASONING = ("reasoning_content", "thinking", "reasoning")  # names of a message's reasoning


class Exceeded(ModelError):
    """A chat template that takes more than it may."""


def render(source: str, messages: Iterable[Mapping[str, Any]], variables: dict[str, Any]) -> str:
    """The text of messages.

    Args:
        source: Jinja text.
        variables: what else the template reads; `tools` and `add_generation_prompt` among them.
    Raises:
        Exceeded: it takes more work than a conversation of this length may.
        jinja2.TemplateError: it is no Jinja, or refuses the messages.
    """
    template = _compiled.get(source) or _compile(source)
    given, characters = _plain(
        {"documents": None, **variables, "messages": list(map(_aliased, messages))}
    )
    budget = limits.RENDERING + limits.RENDERING_PER_CHARACTER * characters
    SANDBOX.left = limit(min(budget, limits.RENDERING_MOST))
    pieces = []
    for piece in template.generate(given):
        SANDBOX.charge(len(piece))
        pieces.append(piece)
    return "".join(pieces)


_compiled: dict[str, jinja2.Template] = {}


def _compile(source: str) -> jinja2.Template:
    size = limit(limits.TEMPLATE)
    if len(source) > size:
        raise Exceeded(f"it has more than {size:,} characters", cure=RAISE)
    return _compiled.setdefault(source, SANDBOX.from_string(source))


def _plain(value: Any) -> tuple[Any, int]:
    """A value of JSON's types alone, because the methods of others are not the sandbox's to judge;
    and its characters, of which a mapping, such as a message, counts as a hundred more.
    """
    if isinstance(value, str):
        return value, len(value)
    if value is None or isinstance(value, (int, float)):
        return value, 1
    if isinstance(value, Mapping):
        mapping, total = {}, 100
        for key, item in value.items():
            mapping[key], characters = _plain(item)
            total += characters
        return mapping, total
    if isinstance(value, (list, tuple)):
        items, total = [], 0
        for item in value:
            plain, characters = _plain(item)
            items.append(plain)
            total += characters
        return items, total
    return f"<{type(value).__name__}>", 1


def _aliased(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message without its empty fields; its reasoning under the names that templates read."""
    given = {key: value for key, value in message.items() if value is not None}
    reasoning = next((given[key] for key in REASONING if key in given), None)
    if reasoning is not None:
        given = {"thinking": reasoning, **given, "reasoning_content": reasoning}
    return given


# ------------------------------------------------------------------------------------ what it costs


_VIEWS = (type({}.keys()), type({}.values()), type({}.items()))
_WEIGHTS = {  # of a part
    **dict.fromkeys((str, bytes), 1),
    **dict.fromkeys((list, tuple, dict, range, *_VIEWS), 8),
}


def _size(value: Any) -> int:
    """Characters of a text, or bytes of the references of a list; 0 of what is small."""
    weight = _WEIGHTS.get(type(value))
    return weight * len(value) if weight else 0


_WIDENING = {"center", "ljust", "rjust", "zfill", "to_bytes", "truncate", "wordwrap"}
_INDENTING = {"indent", "expandtabs"}
_FORMATTING = {"format", "format_map", "%"}
_FILLING = {"batch", "slice", "round"}
_DUMPING = {"tojson", "pprint", "xmlattr"}
_SPLITTING = {"split", "rsplit", "splitlines", "list"}
_SEARCHING = {"urlize", "title", "striptags"}
_OTHERS = {"lipsum", "generate_lorem_ipsum", "replace", "translate"}
_GROWING = frozenset().union(
    *(_WIDENING, _INDENTING, _FORMATTING, _FILLING, _DUMPING, _SPLITTING, _SEARCHING, _OTHERS)
)
_FREE = frozenset(("length", "count", "first", "last", "default", "d"))  # for a text of any size


def _growth(name: str, owner: Any, arguments: tuple[Any, ...]) -> int:
    """Bytes that a method, filter or operator may make of what it gets, beyond its size.

    Args:
        owner: the text, or other value, that it is applied to.
    """
    wide = sum(abs(a) for a in arguments if isinstance(a, int))
    text = owner if isinstance(owner, str) else ""
    if name in _WIDENING:
        return wide
    if name in _INDENTING:
        signs = sum(len(a) for a in arguments if isinstance(a, str))
        return (wide + signs) * (1 + sum(map(text.count, "\n\t\r\v\f\x85\u2028")))
    if name in _FORMATTING:
        fields = 1 + text.count("{") + text.count("%")
        widths = sum(map(int, re.findall(r"\d{1,18}", text)))
        return _deep_size(arguments, numbers=True) * fields + widths
    if name in _FILLING:
        return SEPARATE * wide
    if name in ("lipsum", "generate_lorem_ipsum"):  # paragraphs, and words of each
        return SEPARATE * (5 + wide) * (100 + wide)
    if name in _DUMPING:
        signs = sum(len(a) for a in arguments if isinstance(a, str))
        return (wide + signs + 4) * _deep_size(owner)
    if name == "replace" and len(arguments) > 1:
        old, new = str(arguments[0]), str(arguments[1])
        return _size(new) * str(owner).count(old)
    if name == "translate" and arguments and isinstance(arguments[0], Mapping):
        return len(text) * max((len(str(v)) for v in arguments[0].values()), default=0)
    if name in ("split", "rsplit") and arguments and isinstance(arguments[0], str):
        return SEPARATE * text.count(arguments[0] or " ")
    if name in _SPLITTING:
        return SEPARATE // 2 * len(text)
    return 20 * len(text) if name in _SEARCHING else 0


def _deep_size(value: Any, *, numbers: bool = False) -> int:
    """Bytes of a value with all that is in it; of numbers themselves, which may be widths."""
    if isinstance(value, Mapping):
        value = [*value, *value.values()]
    if isinstance(value, (list, tuple)):
        return sum(SEPARATE + _deep_size(one, numbers=numbers) for one in value)
    return abs(value) if numbers and isinstance(value, int) else _size(value)


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox with a budget; the filters and functions of transformers' chat templates.

    Attributes:
        left: what is left of the budget of this thread's rendering.
    """

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        self._budget = threading.local()
        self._budget.left = 0
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, loopcontrols],
            optimized=False,  # constants would be computed when the template is read
            finalize=_written,
        )
        self.filters["tojson"] = _to_json
        self.filters = {name: self._charged(name, f) for name, f in self.filters.items()}
        for hook in (self.each, self.tick, self.made, self.read, self.joined):
            self.filters[_hook(hook.__name__)] = hook
        functions = {
            "raise_exception": _refuse,
            "strftime_now": lambda form: datetime.now().strftime(form),
            "namespace": _Names,
            "dict": _Dict(),
            "lipsum": self._charged("lipsum", self.globals["lipsum"]),
        }
        self.globals.update(functions)

    @property
    def left(self) -> int:
        return getattr(self._budget, "left", 0)

    @left.setter
    def left(self, units: int) -> None:
        self._budget.left = units

    def charge(self, units: int) -> None:
        """Take from the budget.

        Raises:
            Exceeded: there is not as much left.
        """
        self._budget.left -= units
        if self._budget.left < 0:
            raise Exceeded(f"it takes more time or memory than it may ({RAISE})", cure=RAISE)

    def tick(self, written: int) -> str:
        """Charge the text that a loop, macro or block writes itself."""
        self.charge(written)
        return ""

    def each(self, values: Iterable[Any]) -> Iterable[Any]:
        """Values of which every one is charged when it is taken."""
        if isinstance(values, Undefined):
            return values
        return values if self._sized(values) else self._counted(values)

    def _sized(self, values: Any) -> bool:
        """Charge what has a length at once: a loop then knows its length, too."""
        if not isinstance(values, (list, tuple, dict, range, str)):
            return False
        self.charge(STEP * len(values))
        return True

    def _counted(self, values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            self.charge(STEP)
            yield value

    def made(self, value: Any) -> Any:
        """A list or mapping that the template wrote down, charged with all that is in it.

        Lists of the same list twice, again and again, would be read without an end.
        """
        level = [value]
        while level:
            self.charge(VALUE * len(level))
            inside: list[Any] = []
            for one in level:
                self.charge(_size(one))
                if isinstance(one, dict):
                    inside += one.values()
                elif isinstance(one, (list, tuple)):
                    inside += one
            level = [one for one in inside if isinstance(one, (list, tuple, dict))]
        return value

    def read(self, value: Any) -> Any:
        """A value that is copied, or searched."""
        self.charge(_size(value))
        return value

    def joined(self, parts: list[Any]) -> str:
        """`a ~ b`"""
        texts = list(map(str, parts))
        self.charge(sum(map(len, texts)))
        return "".join(texts)

    # ------------------------------------------------------------------------- jinja's hooks

    def _charged(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter or function that is charged for what it gets, and for what it makes."""
        passed = 1 if hasattr(function, "jinja_pass_arg") else 0  # the context, not a value

        @wraps(function)
        def charged(*arguments: Any, **keywords: Any) -> Any:
            given = (*arguments[passed:], *keywords.values())
            if name == "join":
                value = list(self._counted(given[0]))
                sign = len(str(given[1])) if len(given) > 1 else 0
                self.charge(sum(_deep_size(one) + sign for one in value))
                arguments = (*arguments[:passed], value, *arguments[passed + 1 :])
            self._pay(name, given[0] if given else None, given[1:])
            return self._kept(function(*arguments, **keywords))

        return charged

    def _pay(self, name: str, owner: Any, arguments: tuple[Any, ...]) -> None:
        cost = STEP
        if name not in _FREE:
            cost += _size(owner)
            for argument in arguments:
                cost += _size(argument)
        if name in _GROWING:
            cost += _growth(name, owner, arguments)
        self.charge(cost)

    def _kept(self, value: Any) -> Any:
        if size := _size(value):
            self.charge(size)
        return self._counted(value) if hasattr(value, "__next__") else value

    def call(self, context: Any, function: Any, /, *arguments: Any, **keywords: Any) -> Any:
        given = (*arguments, *keywords.values()) if keywords else arguments
        name = getattr(function, "__name__", "")
        method = function if name != "format" else getattr(function, "__wrapped__", function)
        owner = getattr(method, "__self__", None)
        if owner is None and self._keeps(function):
            self.made(given)
        if name == "join" and owner is not None and arguments:
            arguments = (list(self._counted(arguments[0])),)
            self.charge(sum(len(one) + len(owner) for one in arguments[0] if _size(one)))
        self._pay(name, owner, given)
        return self._kept(super().call(context, function, *arguments, **keywords))

    def _keeps(self, function: Any) -> bool:
        """Whether a function makes a value that holds what it gets."""
        if isinstance(function, Macro):
            return function.catch_varargs or function.catch_kwargs
        return isinstance(function, (_Dict, type))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "+" and type(left) is type(right) is str:
            self.charge(len(left) + len(right))
        elif isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() + right.bit_length()
            if operator == "**" and right > 0:
                bits = left.bit_length() * right
            if bits > BITS:
                raise Exceeded("it computes with too large a number", cure=RAISE)
        elif operator == "*":
            times = [one for one in (left, right) if isinstance(one, int)]
            self.charge((_size(left) + _size(right)) * max([1, *times]))
        elif operator == "%":
            self._pay("%", left, right if isinstance(right, tuple) else (right,))
        else:
            self.charge(_size(left) + _size(right))
        return super().call_binop(context, operator, left, right)

    def _generate(self, source: nodes.Template, *arguments: Any, **keywords: Any) -> str:
        return super()._generate(_Charging().visit(source), *arguments, **keywords)


class _Charging(NodeTransformer):
    """Puts charges into a template: at every iteration, body and value that it writes down."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self._body(node, node.body)
        node.iter = _through("each", node.iter)
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        return self._body(node, node.body)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:
        return self._body(node, node.body)

    def visit_Block(self, node: nodes.Block) -> nodes.Node:
        return self._body(node, node.body)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _through("joined", nodes.List(node.nodes, lineno=node.lineno))

    def visit_List(self, node: nodes.List | nodes.Tuple | nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        values = [one.value if isinstance(one, nodes.Pair) else one for one in node.items]
        simple = all(isinstance(value, nodes.Const) for value in values)
        return node if simple else _through("made", node)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        return self.visit_List(node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        return self.visit_List(node) if node.ctx == "load" else node  # or names that are set

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return _through("read", node) if isinstance(node.arg, nodes.Slice) else node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        for operand in node.ops:
            literal = isinstance(operand.expr, (nodes.Const, nodes.List, nodes.Tuple))
            small = isinstance(node.expr, nodes.Const) and operand.op not in ("in", "notin")
            if not literal and not small:
                operand.expr = _through("read", operand.expr)
        return node

    def _body(self, node: nodes.Node, body: list[nodes.Node]) -> nodes.Node:
        written = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        self.generic_visit(node)
        tick = _through("tick", nodes.Const(written, lineno=node.lineno))
        body.insert(0, nodes.ExprStmt(tick, lineno=node.lineno))
        return node


def _through(hook: str, value: Any) -> nodes.Filter:
    """A value that goes through one of the sandbox's own filters."""
    return nodes.Filter(value, _hook(hook), [], [], None, None, lineno=value.lineno)


def _hook(name: str) -> str:
    return f"{name} it"  # which no template can name


class _Generation(Extension):
    """`{% generation %}`, which marks an answer and shows it as it is."""

    def __init__(self, environment: jinja2.Environment) -> None:
        super().__init__(environment)
        self.tags = {"generation"}

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("shown"), [], [], body, lineno=line)

    def shown(self, caller: Callable[[], str]) -> str:
        return caller()


class _Names(Namespace):
    """A template's namespace: no name in it may begin with an underscore."""

    def __init__(*arguments: Any, **keywords: Any) -> None:
        self, given = arguments[0], dict(*arguments[1:], **keywords)
        Namespace.__init__(self)
        for name, value in given.items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace takes no name like {name!r}")
        Namespace.__setitem__(self, name, value)


class _Dict:
    """`dict(…)`, without the attributes of the type."""

    def __call__(self, *arguments: Any, **keywords: Any) -> dict[Any, Any]:
        return dict(*arguments, **keywords)

    def fromkeys(self, keys: Iterable[Any], value: Any = None) -> dict[Any, Any]:
        return SANDBOX.made(dict.fromkeys(keys, value))


@jinja2.pass_context
def _written(context: Any, value: Any) -> Any:
    """A value that is written, inside a macro or another capture, too."""
    SANDBOX.charge(_deep_size(value))
    return value


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON for people, not for HTML as Jinja's own."""
    options = {"ensure_ascii": ensure_ascii, "indent": indent, "separators": separators}
    return json.dumps(value, sort_keys=sort_keys, **options)


def _refuse(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


SANDBOX = Sandbox()
