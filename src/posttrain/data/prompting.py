"""How a model is prompted: kept beside its tokenizer, so that it is asked as it was trained.

`prompting.json` in a model's folder, which transformers ignores:

    prompt_template    plain text in place of the chat template; {prompt} stands for the prompt
    template_kwargs    handed to the chat template for every conversation
    system             system prompt of conversations that have none
    stop               texts that end a written answer and are no part of it

A key that is absent says nothing. There is no file where there is nothing to say.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.core.errors import ConfigError, ModelError, nearest
from posttrain.core.files import write_json

if TYPE_CHECKING:
    from posttrain.data.settings import PromptingSettings

FILE = "prompting.json"
BLANK_LINE = "\n\n"  # ends an answer to a plain-text prompt where nothing else is said
_TYPES: dict[str, type] = {
    "prompt_template": str,
    "template_kwargs": dict,
    "system": str,
    "stop": list,
}


@dataclass(frozen=True)
class Prompting:
    """How a model is prompted; see above.

    Attributes:
        prompt_template: None: the chat template writes prompts.
        stop: empty: a blank line after plain text, nothing after the chat template. An empty text
            among them is none.
    """

    prompt_template: str | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    system: str = ""
    stop: tuple[str, ...] = ()

    @classmethod
    def read(cls, folder: Path) -> Prompting:
        """What the model in a folder remembers.

        Raises:
            ModelError: the file cannot be read, or says what no version of ours writes.
        """
        path = folder / FILE
        if not path.is_file():
            return cls()
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ModelError(
                f"cannot read {path}: {error}", cure="correct the file, or remove it"
            ) from None
        if not isinstance(known, dict):
            raise ModelError(f"{path} is no JSON object", cure="correct the file, or remove it")
        for name, value in known.items():
            if name not in _TYPES:
                raise ModelError(f"{path} has {name!r}", cure=nearest(name, _TYPES))
            texts = not isinstance(value, list) or all(isinstance(text, str) for text in value)
            if not isinstance(value, _TYPES[name]) or not texts:
                raise ModelError(f"{path}: {name} is {value!r}", cure="correct or remove it")
        if "{prompt}" not in known.get("prompt_template", "{prompt}"):
            raise ModelError(
                f"{path}: prompt_template does not contain {{prompt}}", cure="correct or remove it"
            )
        return cls(**{**known, "stop": tuple(known.get("stop", ()))})

    def write(self, folder: Path) -> None:
        """Keep it with the model in a folder, in place of what was there."""
        known = {name: value for name, value in asdict(self).items() if value}
        if known:
            write_json(folder / FILE, known)
        else:
            (folder / FILE).unlink(missing_ok=True)

    def overridden(self, given: PromptingSettings) -> Prompting:
        """With what is given in place of what is remembered.

        Raises:
            ConfigError: a system prompt, or what is handed to a chat template, which plain text has
                no place for.
        """
        template, kwargs = self.prompt_template, {**self.template_kwargs, **given.template_kwargs}
        if given.prompt_template is not None:
            template = given.prompt_template or None
        stop = given.stop
        if not stop and given.prompt_template is None:  # of a prompt of the same kind
            stop = self.stop
        system = self.system if given.system is None else given.system
        if template is not None and given.system:
            raise ConfigError(
                "a system prompt, where prompts are plain text",
                cure="write it into --prompt-template; or give --prompt-template '' to use the "
                "chat template",
                option="system",
            )
        if template is not None and given.template_kwargs:
            raise ConfigError(
                "--template-kwargs has no effect where prompts are plain text",
                cure="leave it out, or give --prompt-template '' to use the chat template",
                option="template_kwargs",
            )
        return Prompting(template, kwargs, "" if template is not None else system, stop)

    def learned(self, system: str, template_kwargs: Mapping[str, Any]) -> Prompting:
        """With the system prompt and the template's arguments that all trained rows shared."""
        kwargs = {**self.template_kwargs, **template_kwargs}
        return replace(self, system=system, template_kwargs=kwargs)

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end a written answer."""
        if self.stop:
            return tuple(filter(None, self.stop))
        return (BLANK_LINE,) if self.prompt_template is not None else ()

    def __str__(self) -> str:
        """In a few words; empty where nothing is out of the ordinary."""
        parts = []
        if self.prompt_template is not None:
            parts.append(f"plain text {json.dumps(self.prompt_template, ensure_ascii=False)}")
        else:
            parts += [f"{name}={json.dumps(v)}" for name, v in self.template_kwargs.items()]
        if self.system:
            parts.append(f"system prompt {json.dumps(_short(self.system), ensure_ascii=False)}")
        if self.stops:
            texts = " or ".join(json.dumps(text, ensure_ascii=False) for text in self.stops)
            parts.append(f"answers end before {texts}")
        return ", ".join(parts)

    def described(self, remembered: Prompting) -> str:
        """The same, and whether it is what the model remembers."""
        if not str(remembered):
            return str(self)
        if self == remembered:
            return f"as trained: {self}"
        return f"{str(self) or 'the chat template'} (trained with {remembered})"


def before_stop(text: str, stops: tuple[str, ...]) -> str:
    """A text up to the first of some texts that stands in it."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(places)] if places else text


def _short(text: str, width: int = 40) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
