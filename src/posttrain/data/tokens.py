"""From turns to token ids and the mask of what is trained.

A turn's prompt has the tokens that inference gives it: where tokenising prompt and answer together
would merge characters across the border, they are tokenised apart. Turns that go on from each other
are one sequence, tokenised once.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import Any

import numpy as np

from posttrain.core.errors import DataError
from posttrain.data.chat import Chat, Turn
from posttrain.data.formats import Example


@dataclass(frozen=True, slots=True)
class Span:
    """Trained tokens [start, end) of a sequence, and the number of the message they are; see
    `Turn`.
    """

    start: int
    end: int
    number: int


@dataclass(frozen=True, slots=True)
class Encoded:
    """A sequence of token ids, with the spans that are trained.

    Attributes:
        prompt: tokens of the prompt, where the first trained one does not follow it: an answer in
            steps is trained at the end of its steps. None: the prompt ends where training begins.
    """

    ids: list[int]
    spans: tuple[Span, ...]
    prompt: int | None = None

    def mask(self) -> np.ndarray:
        """[n] bool, whether each token is trained."""
        out = np.zeros(len(self.ids), bool)
        for span in self.spans:
            out[span.start : span.end] = True
        return out


@dataclass(frozen=True, slots=True)
class _Chain:
    """Turns each of which goes on from the one before: one text, and where in it each answer begins
    and ends.
    """

    text: str
    borders: tuple[tuple[int, int], ...]
    turns: tuple[Turn, ...]


def stepped(chat: Chat, example: Example) -> list[Turn]:
    """The steps of an answer, each ended by the separator; the first one knows what the model is
    shown before it.
    """
    before, plain = chat.prompt(example) if example.prompt else ("", True)
    return [
        Turn(before if i == 0 else "", step + chat.separator, plain, i + 1)
        for i, (step, _) in enumerate(example.steps)
    ]


def _chains(turns: Many[Turn]) -> list[_Chain]:
    out: list[_Chain] = []
    for turn in turns:
        text = turn.before + turn.after
        border = (len(turn.before), len(text))
        if out and turn.before.startswith(out[-1].text):
            out[-1] = _Chain(text, (*out[-1].borders, border), (*out[-1].turns, turn))
        else:
            out.append(_Chain(text, (border,), (turn,)))
    return out


class Encoder:
    """Tokenises turns, many conversations at a time.

    Args:
        tokenizer: a Hugging Face tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._added = set(tokenizer.added_tokens_decoder)
        self._ends = tokenizer("a", verbose=False)["input_ids"][-1:] == [
            tokenizer.eos_token_id
        ]  # ends every plain text itself
        self._stems: dict[tuple[int, str], list[int]] = {}
        self._anchor = tokenizer("\n", add_special_tokens=False)["input_ids"]
        self._fast = None
        if tokenizer.is_fast:
            self._fast = tokenizer.backend_tokenizer
            self._fast.no_truncation()
            self._fast.no_padding()

    def encode(self, conversations: Many[Many[Turn]]) -> list[list[Encoded] | DataError]:
        """Token ids of each conversation: one sequence, or several branches where its turns do not
        go on from each other.

        Returns: for each conversation its sequences, or why it has none; the caller knows the row.
        """
        chains = [_chains(turns) for turns in conversations]
        flat = [chain for some in chains for chain in some]
        wholes = self._batch(
            [chain.text for chain in flat], [chain.turns[0].plain for chain in flat]
        )
        # a prompt without a special token before the border has to be tokenised alone, to see that
        # it is the same alone
        alone = {
            i: chain
            for i, chain in enumerate(flat)
            if chain.turns[0].before and not self._anchored(wholes[i], chain)
        }
        prompts = dict(
            zip(
                alone,
                self._batch(
                    [c.turns[0].before for c in alone.values()],
                    [c.turns[0].plain for c in alone.values()],
                    ends=False,
                ),
                strict=True,
            )
        )
        found = [self._sequence(chain, wholes[i], prompts.get(i)) for i, chain in enumerate(flat)]
        missing = [i for i, one in enumerate(found) if one is None]
        single = {
            i: (prompts[i].ids, wholes[i].ids)
            for i in missing
            if i in prompts and len(flat[i].turns) == 1
        }
        apart = iter(
            self._apart([(turn, single.get(i)) for i in missing for turn in flat[i].turns])
        )
        out: list[list[Encoded] | DataError] = []
        at = 0
        for some in chains:
            parts: list[Encoded | DataError] = []
            for i in range(at, at + len(some)):
                one = found[i]
                parts += [next(apart) for _ in flat[i].turns] if one is None else [one]
            errors = [part for part in parts if isinstance(part, DataError)]
            out.append(
                errors[0] if errors else [part for part in parts if isinstance(part, Encoded)]
            )
            at += len(some)
        return out

    def steps(self, conversations: Many[Many[Turn]]) -> list[list[Encoded] | DataError]:
        """Answers in steps: every step is tokenised apart, so that it has a last token of its own,
        which alone is trained.

        A tokenizer that begins every text with a space would put one before each step. Then steps
        are tokenised after a line break, whose tokens are taken off again.

        Args:
            conversations: see `stepped`.
        Returns: for each the one sequence it is, or why it has none.
        """
        firsts = [turns[0] for turns in conversations]
        prompts = self._batch(
            [one.before for one in firsts], [one.plain for one in firsts], ends=False
        )
        flat = [turn.after for turns in conversations for turn in turns]
        texts = ["".join(turn.after for turn in turns) for turns in conversations]
        found: list[
            list[list[int]]
        ] = []  # alone, and after a line break: the steps, and then the answers as a whole
        for some in (flat, [f"\n{text}" for text in flat], texts, [f"\n{text}" for text in texts]):
            found.append([one.ids for one in self._batch(some, [False] * len(some))])
        out: list[list[Encoded] | DataError] = []
        at = 0
        for i, (turns, prompt) in enumerate(zip(conversations, prompts, strict=True)):
            here = slice(at, at := at + len(turns))
            parts = self._parts(found[0][here], found[1][here], found[2][i], found[3][i])
            if parts is None:
                out.append(
                    DataError(
                        f"the steps of {texts[i][:40]!r} cannot be tokenised apart without changing"
                        " the text",
                        cure="use another --separator",
                    )
                )
                continue
            ends = np.cumsum([len(prompt.ids), *map(len, parts)]).tolist()[1:]
            if ends[0] == 1:  # what nothing predicts is no target
                out.append(
                    DataError(
                        "the first step is a single token with nothing before it",
                        cure="give the row a prompt",
                    )
                )
                continue
            spans = tuple(
                Span(end - 1, end, turn.number) for end, turn in zip(ends, turns, strict=True)
            )
            out.append(
                [
                    Encoded(
                        [*prompt.ids, *(token for part in parts for token in part)],
                        spans,
                        len(prompt.ids),
                    )
                ]
            )
        return out

    def _parts(
        self,
        alone: list[list[int]],
        after: list[list[int]],
        whole: list[int],
        whole_after: list[int],
    ) -> list[list[int]] | None:
        """The tokens of each step, in a way that leaves the text of the answer what it is; None
        where there is none.
        """
        cut = len(self._anchor)
        for parts, start, other in (
            (alone, [], whole),
            ([ids[cut:] for ids in after], self._anchor, whole_after),
        ):
            anchored = not start or all(ids[:cut] == start for ids in after)
            if anchored and self._decoded(
                [[*start, *(i for ids in parts for i in ids)]]
            ) == self._decoded([other]):
                return parts
        return None

    def prompts(self, texts: Many[str], plain: Many[bool]) -> list[list[int]]:
        """Token ids of prompts, as inference sees them."""
        return [one.ids for one in self._batch(texts, plain, ends=False)]

    def _batch(self, texts: Many[str], plain: Many[bool], *, ends: bool = True) -> list[_Ids]:
        """Texts as ids; of plain text, which the tokenizer may end itself, that end is taken off
        where `ends` is not wanted, or stands there already.
        """
        out: list[Any] = [None] * len(texts)
        for flag in (False, True):
            which = [i for i, one in enumerate(plain) if one is flag]
            if not which:
                continue
            if self._fast is not None:
                encodings = self._fast.encode_batch(
                    [texts[i] for i in which], add_special_tokens=flag
                )
                found = [_Ids(one.ids, one) for one in encodings]
            else:
                ids = self.tokenizer(
                    [texts[i] for i in which], add_special_tokens=flag, verbose=False
                )["input_ids"]
                found = [_Ids(one, None) for one in ids]
            for i, one in zip(which, found, strict=True):
                end = self.tokenizer.eos_token_id
                if flag and self._ends and (not ends or one.ids[-2:] == [end, end]):
                    one = _Ids(one.ids[:-1], one.encoding)
                out[i] = one
        return out

    # ------------------------------------------------------------------ borders

    def _sequence(
        self, chain: _Chain, whole: _Ids, prompt: _Ids | None
    ) -> Encoded | DataError | None:
        """A chain as one sequence; None where a turn's prompt would not have the tokens it has
        alone.
        """
        begin = self.tokenizer.bos_token_id
        if begin is not None and whole.ids[:2] == [begin, begin]:
            return DataError(
                "a sequence would begin with two begin tokens, which the model has never seen",
                cure=f"leave {self.tokenizer.bos_token} out of the prompt: the tokenizer adds it",
            )
        spans = [self._span(chain, k, whole, prompt) for k in range(len(chain.turns))]
        if all(span is not None for span in spans):
            return Encoded(whole.ids, tuple(span for span in spans if span))
        return None

    def _span(self, chain: _Chain, k: int, whole: _Ids, prompt: _Ids | None) -> Span | None:
        """Which tokens of the chain are answer k; None where the prompt's tokens are not those it
        has alone.
        """
        turn, end = chain.turns[k], chain.borders[k][1]
        if not turn.before:
            first = 1  # nothing predicts the first token
        elif k == 0 and prompt is not None:
            first = len(prompt.ids)
            if whole.ids[:first] != prompt.ids:
                return None
        else:
            first = self._anchored(whole, chain, k)
            if not first:
                return None
        last = len(whole.ids)
        if k < len(chain.turns) - 1:
            if whole.encoding is None:
                return None
            token = whole.encoding.char_to_token(end - 1)
            if token is None or whole.encoding.token_to_chars(token)[1] < end:
                return None
            last = token + 1
        return Span(first, last, turn.number)

    def _anchored(self, whole: _Ids, chain: _Chain, k: int = 0) -> int | None:
        """The first token of answer k, if the prompt's tokens are sure to be the same without the
        answer.

        A special token cuts the text: what is on its one side does not change the tokens on its
            other. So it is enough that
        the words between the last special token and the border are the same alone; they are the
        same in nearly every row.
        """
        if whole.encoding is None:
            return None
        border = chain.borders[k][0]
        first = whole.encoding.char_to_token(border)
        if first is None or whole.encoding.token_to_chars(first)[0] != border:
            return None
        anchor = first - 1
        while anchor >= 0 and whole.ids[anchor] not in self._added:
            anchor -= 1
        if anchor < 0 or whole.encoding.token_to_chars(anchor) is None:
            return None
        left, right = whole.encoding.token_to_chars(anchor)
        key = (whole.ids[anchor], chain.text[right:border])
        stem = self._stems.get(key)
        if stem is None:
            assert self._fast is not None
            stem = self._fast.encode(chain.text[left:border], add_special_tokens=False).ids[1:]
            if len(key[1]) < 100 and len(self._stems) < 10_000:
                self._stems[key] = stem
        return first if stem == whole.ids[anchor + 1 : first] else None

    def _apart(
        self, turns: Many[tuple[Turn, tuple[list[int], list[int]] | None]]
    ) -> list[Encoded | DataError]:
        """Tokens of each prompt, as they are alone, and then of its answer; together they must
        still be the text.

        A tokenizer that begins every text with a space would put one between them. Then the answer
        is tokenised after a line break, whose tokens are taken off again.

        Args:
            turns: each with the tokens of its prompt and of prompt and answer, where they are
                known.
        """
        fresh = [turn for turn, known in turns if known is None]
        plain = [turn.plain for turn in fresh]
        made = zip(
            self._batch([turn.before for turn in fresh], plain, ends=False),
            self._batch([turn.before + turn.after for turn in fresh], plain),
            strict=True,
        )
        both = [
            known if known is not None else tuple(one.ids for one in next(made))
            for _, known in turns
        ]
        prompts, wholes = [prompt for prompt, _ in both], [whole for _, whole in both]
        afters = [turn.after for turn, _ in turns]
        bare = [False] * len(turns)
        alone = [one.ids for one in self._batch(afters, bare)]
        found = [
            whole if whole[: len(prompt)] == prompt else [*prompt, *tail]
            for whole, prompt, tail in zip(wholes, prompts, alone, strict=True)
        ]
        texts = self._decoded(wholes)
        wrong = [
            i
            for i, (text, other) in enumerate(zip(texts, self._decoded(found), strict=True))
            if text != other
        ]
        for i, one in zip(
            wrong, self._batch(["\n" + afters[i] for i in wrong], [False] * len(wrong)), strict=True
        ):
            if one.ids[: len(self._anchor)] == self._anchor:
                found[i] = [*prompts[i], *one.ids[len(self._anchor) :]]
        lost = {i for i in wrong if self._decoded([found[i]])[0] != texts[i]}
        return [
            (
                DataError(
                    f"prompt and answer {turn.after[:40]!r} cannot be tokenised apart without"
                    " changing the text",
                    cure="end the prompt template with a line break or a special token",
                )
                if i in lost
                else Encoded(found[i], (Span(len(prompts[i]), len(found[i]), turn.number),))
            )
            for i, (turn, _) in enumerate(turns)
        ]

    def _decoded(self, ids: Many[list[int]]) -> list[str]:
        if self._fast is not None:
            return self._fast.decode_batch(ids, skip_special_tokens=False)
        return [self.tokenizer.decode(one) for one in ids]


@dataclass(frozen=True, slots=True)
class _Ids:
    """Token ids and, of a fast tokenizer, where in the text they lie."""

    ids: list[int]
    encoding: Any
