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
from posttrain.data.templates.turns import Turn


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


def common_prefix(a: Many[Any], b: Many[Any]) -> int:
    """How many items two sequences, or characters two texts, have in common from their start."""
    for i, (left, right) in enumerate(zip(a, b, strict=False)):
        if left != right:
            return i
    return min(len(a), len(b))


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
        # ends every plain text itself
        self._ends = tokenizer("a", verbose=False)["input_ids"][-1:] == [tokenizer.eos_token_id]
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
        encoded = iter(self._encode_chains([chain for row in chains for chain in row]))
        out: list[list[Encoded] | DataError] = []
        for row in chains:
            sequences: list[Encoded] = []
            error: DataError | None = None
            for _ in row:
                for sequence in next(encoded):
                    if isinstance(sequence, Encoded):
                        sequences.append(sequence)
                    else:
                        error = error or sequence
            out.append(error or sequences)
        return out

    def _encode_chains(self, chains: list[_Chain]) -> list[list[Encoded | DataError]]:
        """Each chain as one sequence where its prompts keep the tokens they have alone, else each
        turn apart.
        """
        wholes = self._batch(
            [chain.text for chain in chains], [chain.turns[0].plain for chain in chains]
        )
        # a prompt without a special token before the border has to be tokenised alone, to see that
        # it is the same alone
        unanchored = [
            i
            for i, chain in enumerate(chains)
            if chain.turns[0].before and not self._anchored(wholes[i], chain)
        ]
        firsts = [chains[i].turns[0] for i in unanchored]
        alone = self._batch(
            [turn.before for turn in firsts], [turn.plain for turn in firsts], ends=False
        )
        prompts = dict(zip(unanchored, alone, strict=True))
        out: list[list[Encoded | DataError]] = []
        apart: list[tuple[Turn, tuple[list[int], list[int]] | None]] = []
        for i, chain in enumerate(chains):
            sequence = self._sequence(chain, wholes[i], prompts.get(i))
            out.append([] if sequence is None else [sequence])
            if sequence is None:
                single = i in prompts and len(chain.turns) == 1
                known = (prompts[i].ids, wholes[i].ids) if single else None
                apart += [(turn, known) for turn in chain.turns]
        parts = iter(self._apart(apart))
        for chain, sequences in zip(chains, out, strict=True):
            if not sequences:
                sequences += [next(parts) for _ in chain.turns]
        return out

    def steps(self, conversations: Many[Many[Turn]]) -> list[list[Encoded] | DataError]:
        """Answers in steps: every step is tokenised apart, so that it has a last token of its own,
        which alone is trained.

        A tokenizer that begins every text with a space would put one before each step. Then steps
        are tokenised after a line break, whose tokens are taken off again.

        Args:
            conversations: see `Chat.step_turns`.
        Returns: for each the one sequence it is, or why it has none.
        """
        firsts = [turns[0] for turns in conversations]
        prompts = self._batch(
            [turn.before for turn in firsts], [turn.plain for turn in firsts], ends=False
        )
        steps = [turn.after for turns in conversations for turn in turns]
        answers = ["".join(turn.after for turn in turns) for turns in conversations]
        step_ids, answer_ids = _Both.of(self, steps), _Both.of(self, answers)
        out: list[list[Encoded] | DataError] = []
        start = 0
        for i, turns in enumerate(conversations):
            end = start + len(turns)
            parts = self._steps_apart(step_ids.part(start, end), answer_ids.part(i, i + 1))
            start = end
            if parts is None:
                out.append(
                    DataError(
                        f"the steps of {answers[i][:40]!r} cannot be tokenised apart without "
                        "changing the text",
                        cure="use another --separator",
                    )
                )
            else:
                out.append(_with_step_ends(prompts[i].ids, parts, turns))
        return out

    def _steps_apart(self, steps: _Both, answer: _Both) -> list[list[int]] | None:
        """The tokens of each step, in a way that leaves the text of the answer what it is; None
        where there is none.
        """
        if self._same_text([token for step in steps.alone for token in step], answer.alone[0]):
            return steps.alone
        cut = len(self._anchor)
        if any(ids[:cut] != self._anchor for ids in steps.anchored):
            return None
        parts = [ids[cut:] for ids in steps.anchored]
        joined = [*self._anchor, *(token for part in parts for token in part)]
        return parts if self._same_text(joined, answer.anchored[0]) else None

    def prompts(self, texts: Many[str], plain: Many[bool]) -> list[list[int]]:
        """Token ids of prompts, as inference sees them."""
        return [tokenised.ids for tokenised in self._batch(texts, plain, ends=False)]

    def bare(self, texts: Many[str]) -> list[list[int]]:
        """Token ids of texts as they stand, without what the tokenizer adds to plain text."""
        return [tokenised.ids for tokenised in self._batch(texts, [False] * len(texts))]

    def _batch(self, texts: Many[str], plain: Many[bool], *, ends: bool = True) -> list[_Ids]:
        """Texts as ids; of plain text, which the tokenizer may end itself, that end is taken off
        where `ends` is not wanted, or stands there already.
        """
        out: list[Any] = [None] * len(texts)
        for flag in (False, True):
            which = [i for i, is_plain in enumerate(plain) if is_plain is flag]
            if not which:
                continue
            for i, tokenised in zip(
                which, self._tokenise([texts[i] for i in which], flag), strict=True
            ):
                end = self.tokenizer.eos_token_id
                if flag and self._ends and (not ends or tokenised.ids[-2:] == [end, end]):
                    tokenised = _Ids(tokenised.ids[:-1], tokenised.encoding)
                out[i] = tokenised
        return out

    def _tokenise(self, texts: list[str], plain: bool) -> list[_Ids]:
        if self._fast is not None:
            encodings = self._fast.encode_batch(texts, add_special_tokens=plain)
            return [_Ids(encoding.ids, encoding) for encoding in encodings]
        ids = self.tokenizer(texts, add_special_tokens=plain, verbose=False)["input_ids"]
        return [_Ids(row, None) for row in ids]

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
        other. So it is enough that the words between the last special token and the border are the
        same alone; they are the same in nearly every row.
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
        known = self._prompts_and_wholes(turns)
        prompts, wholes = [prompt for prompt, _ in known], [whole for _, whole in known]
        afters = [turn.after for turn, _ in turns]
        joined = [
            whole if whole[: len(prompt)] == prompt else [*prompt, *after]
            for whole, prompt, after in zip(wholes, prompts, self.bare(afters), strict=True)
        ]
        texts = self._decoded(wholes)
        wrong = [i for i, text in enumerate(self._decoded(joined)) if text != texts[i]]
        anchored = self.bare(["\n" + afters[i] for i in wrong])
        for i, ids in zip(wrong, anchored, strict=True):
            if ids[: len(self._anchor)] == self._anchor:
                joined[i] = [*prompts[i], *ids[len(self._anchor) :]]
        lost = {i for i in wrong if self._decoded([joined[i]])[0] != texts[i]}
        out: list[Encoded | DataError] = []
        for i, (turn, _) in enumerate(turns):
            if i in lost:
                error = DataError(
                    f"prompt and answer {turn.after[:40]!r} cannot be tokenised apart without "
                    "changing the text",
                    cure="end the prompt template with a line break or a special token",
                )
                out.append(error)
            else:
                span = Span(len(prompts[i]), len(joined[i]), turn.number)
                out.append(Encoded(joined[i], (span,)))
        return out

    def _prompts_and_wholes(
        self, turns: Many[tuple[Turn, tuple[list[int], list[int]] | None]]
    ) -> list[tuple[list[int], list[int]]]:
        """The tokens of each turn's prompt, and of prompt and answer as one text."""
        fresh = [turn for turn, known in turns if known is None]
        plain = [turn.plain for turn in fresh]
        prompts = iter(self._batch([turn.before for turn in fresh], plain, ends=False))
        wholes = iter(self._batch([turn.before + turn.after for turn in fresh], plain))
        return [known or (next(prompts).ids, next(wholes).ids) for _, known in turns]

    def _same_text(self, ids: list[int], others: list[int]) -> bool:
        return self._decoded([ids]) == self._decoded([others])

    def _decoded(self, ids: Many[list[int]]) -> list[str]:
        if self._fast is not None:
            return self._fast.decode_batch(ids, skip_special_tokens=False)
        return [self.tokenizer.decode(one) for one in ids]


@dataclass(frozen=True, slots=True)
class _Ids:
    """Token ids and, of a fast tokenizer, where in the text they lie."""

    ids: list[int]
    encoding: Any


@dataclass(frozen=True, slots=True)
class _Both:
    """Token ids of texts alone, and of the same texts after a line break."""

    alone: list[list[int]]
    anchored: list[list[int]]

    @classmethod
    def of(cls, encoder: Encoder, texts: list[str]) -> _Both:
        return cls(encoder.bare(texts), encoder.bare([f"\n{text}" for text in texts]))

    def part(self, start: int, end: int) -> _Both:
        return _Both(self.alone[start:end], self.anchored[start:end])


def _with_step_ends(
    prompt: list[int], parts: list[list[int]], turns: Many[Turn]
) -> list[Encoded] | DataError:
    """A prompt and the steps after it as one sequence: the last token of each step is trained."""
    ends = np.cumsum([len(prompt), *map(len, parts)]).tolist()[1:]
    if ends[0] == 1:  # what nothing predicts is no target
        return DataError(
            "the first step is a single token with nothing before it", cure="give the row a prompt"
        )
    spans = tuple(Span(end - 1, end, turn.number) for end, turn in zip(ends, turns, strict=True))
    ids = [*prompt, *(token for part in parts for token in part)]
    return [Encoded(ids, spans, len(prompt))]
