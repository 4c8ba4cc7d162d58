"""The data of a run: sources prepared once into a folder of tokens, and found again when the run
goes on.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.core import manifest
from posttrain.core.errors import ConfigError, DataError
from posttrain.core.events import Reporter
from posttrain.core.files import PARTIAL, fsync, read_state, sha256_json, write_atomic, write_json
from posttrain.core.manifest import MANIFEST
from posttrain.data.curate.overlap import Samples, read_keys
from posttrain.data.formats import Format
from posttrain.data.plan import shares
from posttrain.data.rows import Rejects
from posttrain.data.settings import DataSettings, Source
from posttrain.data.sources import read, size
from posttrain.stages import soundness

if TYPE_CHECKING:  # these import torch, which is not needed to find a mistake in the first row
    from posttrain.data.account import Account
    from posttrain.data.chat import Chat
    from posttrain.data.examples import Kind
    from posttrain.data.prompting import Prompting
    from posttrain.data.store import Numbers, Trees
    from posttrain.stages.stage import Context

FOLDER = "tokens"
LAYOUT = 2  # of that folder; tokens of another are made again
REJECTS = "rejects.jsonl"
DAMAGED = "delete the folder tokens and run the same command again"


@dataclass(frozen=True)
class Dataset:
    """Sources as trees.

    Attributes:
        sources: where the rows came from.
        accounts: what became of each source's rows.
        trees: all of them, source after source.
        rows: trees of each source.
        numbers: beside each tree what is known of it; see `posttrain.data.prepare`. None for
            demonstrations.
    """

    sources: tuple[Source, ...]
    accounts: tuple[Account, ...]
    trees: Trees
    rows: tuple[int, ...]
    numbers: Numbers | None = None

    @property
    def longest(self) -> int:
        return max(account.longest for account in self.accounts)

    def total(self, name: str) -> int:
        """A count of `Account`, added up over the sources."""
        return sum(getattr(account, name) for account in self.accounts)

    def dropped(self) -> dict[str, int]:
        out: dict[str, int] = {}
        for account in self.accounts:
            for why, n in account.dropped.items():
                out[why] = out.get(why, 0) + n
        return out


def sources(settings: DataSettings) -> dict[str, tuple[Source, ...]]:
    """The training sources and the held-out ones, where there are any."""
    both = {"data": settings.data, "held out": settings.validation}
    return {label: group for label, group in both.items() if group}


def peek(settings: DataSettings) -> None:
    """Read the first row of every source, so that errors show before anything is loaded or written.

    Raises:
        DataError: a source that is not there, or whose first row is of no known format.
    """
    shares([1] * len(settings.data), settings.data)  # whether weights and shares make sense
    chat_template(settings)
    for source in settings.validation:
        if source.weight is not None or source.share is not None or source.epochs != 1:
            raise ConfigError(
                f"--validation {source} has a weight, share or epochs, and every held-out row is "
                "scored once",
                cure="leave them out; limit= takes fewer rows",
                option="validation",
            )
    for group in sources(settings).values():
        for source in group:
            # a first row that will be rejected is reported later, with all the others
            rejects = _Forgiving() if settings.on_bad_row == "reject" else Rejects()
            for row in read(source, rejects):
                try:
                    Format(settings.format).read(row)
                except DataError as error:
                    rejects.add(error, row)
                break
            else:
                if not rejects.count:
                    raise DataError(f"there are no rows in {source}", cure="check the file")


class _Forgiving(Rejects):
    """Counts bad rows and keeps none."""

    def add(self, error: DataError, row: Any) -> None:
        self.count += 1


def max_length(settings: DataSettings, limit: int | None) -> int:
    """The longest sequence to train on: what was asked for, or 1024, within the `limit` that the
    model can address.
    """
    if settings.max_length and limit and settings.max_length > limit:
        raise ConfigError(
            f"--max-length {settings.max_length} is more than the {limit} positions the model "
            "knows",
            cure=f"give --max-length {limit} or less",
            option="max_length",
        )
    return settings.max_length or min(1024, limit or 1024)


def chat_template(settings: DataSettings) -> str | None:
    """The text of the chat template that was asked for."""
    if settings.chat_template is None:
        return None
    try:
        template = settings.chat_template.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"cannot read the chat template {settings.chat_template}: {error}",
            cure="check the path",
            option="chat_template",
        ) from None
    if not template.strip():
        raise ConfigError(
            f"the chat template {settings.chat_template} is empty",
            cure="give a Jinja template, or leave --chat-template out",
            option="chat_template",
        )
    return template


def chat_of(settings: DataSettings, tokenizer: Any, prompting: Prompting) -> Chat:
    """The renderer that the settings ask for."""
    from posttrain.data.chat import Chat

    template = chat_template(settings)
    return Chat.of(tokenizer, prompting, template=template, train_on=settings.train_on)


def prompting_of(settings: DataSettings, base: Path, reporter: Reporter) -> Prompting:
    """How prompts are written: as the model in a folder remembers, and as the settings say."""
    from posttrain.data.prompting import Prompting

    remembered = Prompting.read(base)
    prompting = remembered.overridden(settings.prompting)
    if str(remembered):
        reporter.note("prompts", prompting.described(remembered))
    return prompting


@dataclass(frozen=True)
class Prepared:
    """The data of a run, as tokens.

    Attributes:
        chat: how they were rendered. prompting: how the model was prompted then. sets: "data", and
            "held out" where there is any. folder: the run's.
        soundness: `overlap` and `contradictions`, for the summary.
    """

    chat: Chat
    prompting: Prompting
    sets: dict[str, Dataset]
    folder: Path
    soundness: dict[str, Any]

    def keep(self) -> None:
        """Give the tokens their place: the run owns the folder now. The trees stay open under
        either name.
        """
        partial, tokens = self.folder / (PARTIAL + FOLDER), self.folder / FOLDER
        if partial.is_dir():
            shutil.rmtree(tokens, ignore_errors=True)
            partial.rename(tokens)
            fsync(self.folder)
        if (tokens / REJECTS).is_file():
            write_atomic(self.folder / REJECTS, (tokens / REJECTS).read_bytes())


def prepare(
    settings: DataSettings,
    base: Path,
    context: Context,
    learned: Kind = "demonstrations",
    separator: str = "\n",
) -> Prepared:
    """Turn the rows into tokens, or find them in the run's folder.

    They are written under another name; `Prepared.keep` gives them their own.

    Args:
        base: folder of the model, whose tokenizer and length limit are used.
        learned: what is learned from.
        separator: after every step of answers that have steps.
    """
    from posttrain.engine.load import load_tokenizer, longest_position

    prompting = prompting_of(settings, base, context.reporter)
    chat = chat_of(settings, load_tokenizer(base), prompting)
    chat.separator = separator
    longest = max_length(settings, longest_position(base))
    key = sha256_json([context.inputs.identity(), longest, LAYOUT])
    done, partial = context.folder / FOLDER, context.folder / (PARTIAL + FOLDER)
    if not _is_prepared(done, key, context.reporter):
        shutil.rmtree(partial, ignore_errors=True)
        try:
            shared, found = _tokenize(settings, chat, partial, longest, context.reporter, learned)
            key_file = {"key": key, "chat": chat.used, "shared": sorted(shared), "soundness": found}
            write_json(partial / "key.json", key_file)
            names = sorted(path.name for path in partial.iterdir())
            manifest.write(partial / MANIFEST, manifest.entries(partial, names))
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        done = partial
    known = _read_key(done)  # tokens that are found say it of the run that made them
    chat.used = known["chat"]
    if len(shared := known["shared"]) == 1:
        prompting = prompting.learned(*json.loads(shared[0]))
    sets = {label: _open(done, label, group, learned) for label, group in sources(settings).items()}
    return Prepared(chat, prompting, sets, context.folder, known["soundness"])


def _is_prepared(folder: Path, key: str, reporter: Reporter) -> bool:
    """Whether the tokens of these rows are there, to the last bit as they were written."""
    if not folder.is_dir():
        return False
    if damage := manifest.damage(folder / MANIFEST, content=True):
        reporter.message(f"{folder}/{manifest.sentence(damage)}: preparing the rows again")
        return False
    return _read_key(folder)["key"] == key


def _read_key(folder: Path) -> dict[str, Any]:
    return read_state(folder / "key.json", DAMAGED, key=str, chat=bool)


def _open(folder: Path, label: str, group: tuple[Source, ...], learned: Kind) -> Dataset:
    """Tokens that were prepared."""
    from posttrain.data.prepare import Account
    from posttrain.data.store import Numbers, Trees

    parts = [folder / f"{label} {i}" for i in range(len(group))]
    accounts = tuple(Account(**read_state(part / "account.json", DAMAGED)) for part in parts)
    rows = tuple(len(Trees(part)) for part in parts)
    numbers = Numbers(*parts) if learned != "demonstrations" else None
    return Dataset(group, accounts, Trees(*parts), rows, numbers)


def _tokenize(
    settings: DataSettings,
    chat: Chat,
    folder: Path,
    longest: int,
    reporter: Reporter,
    learned: Kind,
) -> tuple[set[str], dict[str, Any]]:
    """Prepare all sources.

    Returns: what the training rows' conversations shared, see `Chat.shared`; and what was found of
        the soundness of the rows.
    """
    from posttrain.data.prepare import Preparation, prepare

    samples = Samples(sources(settings))
    shared: set[str] = set()
    parts: dict[str, list[Path]] = {}
    preparation = Preparation(chat, longest, settings.truncate, settings.format, learned)
    folder.mkdir(parents=True)
    rejects = Rejects(folder / REJECTS if settings.on_bad_row == "reject" else None)
    for label, group in sources(settings).items():
        for i, source in enumerate(group):
            total, part = max(1, size(source)), folder / f"{label} {i}"
            parts.setdefault(label, []).append(part)
            with reporter.working(f"read {Path(source.path).name}", total) as progress:
                account = prepare(
                    source,
                    preparation,
                    part,
                    rejects=rejects,
                    progress=progress,
                    observe=samples.observe(label),
                )
            write_json(part / "account.json", account.json())
            report(account, label, source, reporter, first=i == 0)
        if label == "data":  # held-out rows teach nothing
            shared = set(chat.shared)
    rejects.close()
    for note in chat.notes:
        reporter.message(note)
    if chat.used and chat.template.origin == "default":
        reporter.note(
            "chat",
            f"the model has no chat template: a default, whose answers end with {chat.stop}, is "
            "used and saved with it; --chat-template FILE uses another",
        )
    overlap = samples.overlap({label: map(read_keys, folders) for label, folders in parts.items()})
    soundness.tell_overlap(overlap, reporter)
    contradictions = soundness.tell_contradictions(parts["data"], reporter)
    return shared, {"overlap": overlap and overlap.json(), "contradictions": contradictions}


def report(
    account: Account, label: str, source: Source, reporter: Reporter, *, first: bool = True
) -> None:
    """Report what became of a source's rows; what was lost is shown even with --quiet."""
    name = Path(source.path).name
    reporter.note(label, f"{name} ({account.shape()}): {account.summary()}")
    for note in account.notes:
        if account.format == "text":  # more is trained than is meant to be
            reporter.message(f"{name}: {note}")
        else:
            reporter.note("", note)
    if first:
        before, after = account.example
        reporter.note("", f"first: {_short(before, tail=True)} ⟶ {_short(after)}")
    lost = {"cut to the length limit": account.truncated, "dropped": sum(account.dropped.values())}
    if any(lost.values()):
        reporter.message(
            f"{name}: rows " + ", ".join(f"{what}: {n:,}" for what, n in lost.items() if n)
        )
    if account.special:
        reporter.message(
            f"{name}: {account.special:,} rows have the text of a special token inside, which the "
            "model will read as one"
        )
    if account.rejected:
        why = "; ".join(
            f"{n:,} {what}" for what, n in sorted(account.reasons.items(), key=lambda x: -x[1])[:3]
        )
        reporter.message(f"{name}: {account.rejected:,} rows rejected, written to {REJECTS}: {why}")


def _short(text: str, width: int = 60, *, tail: bool = False) -> str:
    """Text on one line, its beginning or its end."""
    text = text.replace("\n", "⏎")
    if len(text) <= width:
        return text
    return "…" + text[-width:] if tail else text[:width] + "…"
