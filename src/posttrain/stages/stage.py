"""A stage: one function that turns artifacts into artifacts, and what the runner must know of it.

    class CountSettings(Settings):
        data: Annotated[tuple[Sourced, ...], ReadsRows()] = Field(min_length=1, description="rows")
        out: Annotated[Path, Destination()] = Field(description="folder for the result")

    @stage("count", CountSettings, help="count rows", makes={"rows": "rows.jsonl"})
    def count(settings: CountSettings, context: Context) -> dict[str, Any]:
        \"\"\"Count the rows, and write how many.\"\"\"
        ...
        return {"n": n}

That is all of it. `count(data="a.jsonl", out="runs/count")` runs it from Python, `posttrain count`
from the command line, `stage: count` in a recipe. The runner here is the only one: it locks the
folder, checks which run it holds, says when nothing is left to do, sweeps up what a killed process
left, writes the summary and removes what is needed no more.
"""

from __future__ import annotations

import inspect
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Sequence as Many
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeAlias, TypeVar

from posttrain.core import manifest
from posttrain.core.console import open_reporter
from posttrain.core.errors import ConfigError, DataError, PosttrainError
from posttrain.core.events import Held, Reporter, Sink, Step
from posttrain.core.files import explained_writes
from posttrain.core.identity import RUN, execution_of
from posttrain.core.manifest import Entry
from posttrain.core.settings import ReadsModel, Settings, assemble
from posttrain.core.version import __version__
from posttrain.stages import finished, inputs
from posttrain.stages.folders import (
    NONE,
    SUMMARY,
    Files,
    Folder,
    Nowhere,
    Place,
    SideBySide,
    output_digest,
)
from posttrain.stages.index import command_of

S = TypeVar("S", bound=Settings)
Makes: TypeAlias = Mapping[str, str] | Callable[[Any], Mapping[str, str]]


@dataclass(frozen=True)
class Verdict:
    """What a stage decides about what it was given.

    Attributes:
        answer: in a word: PASS, FAIL, INCONCLUSIVE.
        exit_code: of the command, 0 where it is good.
        why: in a sentence.
    """

    answer: str
    exit_code: int
    why: str = ""


@dataclass(frozen=True)
class Made:
    """What a stage's function returns if it has more to say than a summary.

    Attributes:
        summary: as JSON, for `summary.json`.
        verdict: what was decided; None for stages that decide nothing.
        detail: what is shown after the run and kept nowhere.
    """

    summary: dict[str, Any]
    verdict: Verdict | None = None
    detail: Any = None


@dataclass(frozen=True)
class Outcome:
    """A finished run.

    Attributes:
        folder: where it is kept.
        outputs: name of an output → its file or folder; those that were made.
        summary: what `summary_file` says.
        verdict, detail: see `Made`.
    """

    folder: Path
    outputs: dict[str, Path]
    summary: dict[str, Any]
    summary_file: Path
    verdict: Verdict | None = None
    detail: Any = None

    @property
    def model(self) -> Path:
        """The model that was made.

        Raises:
            KeyError: the stage makes none.
        """
        return self.outputs["model"]

    @property
    def exit_code(self) -> int:
        return self.verdict.exit_code if self.verdict else 0


@dataclass
class Context:
    """What the runner hands to a stage's function.

    Attributes:
        folder: to write into.
        reporter: to tell what happens.
        inputs: digests of what the stage reads.
        began: whether an earlier process began this run here; it may go on with what it left.
        settings, place: of the run; for `claim`.
        intact: names of what a finished run of the same kind made here that is as it was, where
            other things of it were damaged.
        log: steps and validations, which are reported when the run is done.
    """

    folder: Path
    reporter: Reporter
    inputs: inputs.Inputs
    began: bool
    settings: Settings = field(repr=False)
    place: Place = field(repr=False)
    intact: frozenset[str] = frozenset()
    claimed: bool = False
    log: Many[Step | Held] = ()
    stack: ExitStack = field(default_factory=ExitStack, repr=False)

    def report_to(self, sinks: Iterable[Sink]) -> None:
        """Report to these as well, until the run is done; they are closed then."""
        self.reporter = self.stack.enter_context(self.reporter.also(sinks))

    def claim(self) -> None:
        """Say that from now on the folder is this run's. Until then an error leaves nothing there;
        so a stage calls it when all its input has turned out usable. Otherwise the runner does,
        when the function returns.

        Raises:
            DataError: an input is no longer what it was when its digest was taken.
        """
        if self.claimed:
            return
        self.check_inputs()
        self.claimed = True
        execution = inputs.execution(self.settings)
        read = self.inputs
        differing = self.place.claim(read.identity(), execution, read.paths)
        rounding = tuple(f"{name} " for name in inputs.rounding(self.settings))
        for difference in filter(lambda text: text.startswith(rounding), differing):
            self.reporter.message(
                f"this run goes on with another {difference}; results differ by rounding, and by "
                "the draws of noise where there is any"
            )

    def check_inputs(self) -> None:
        """Refuse inputs that changed since their digests were taken. A stage calls it before it
        keeps half-done work, as `claim` does; the runner calls it at the end.

        Raises:
            DataError: with the names of those that changed.
        """
        if self.inputs is inputs.NOTHING:
            return
        try:
            changed = inputs.changes(self.inputs, inputs.describe(self.settings))
            what = f"{', '.join(changed)} changed"
        except PosttrainError as error:
            changed, what = [""], f"an input cannot be read any more ({error.what})"
        if changed:
            cure = "run the same command again when nobody writes to it"
            if self.claimed:
                cure = (
                    "put it back as it was, and the same command goes on; or give another --out "
                    "and begin with what is there now"
                )
            raise DataError(
                f"{what} while the run was at work: what it made is not kept as its result",
                cure=cure,
            )


def stage(
    name: str,
    settings: type[S],
    *,
    help: str,
    makes: Makes | None = None,
    files: Files = NONE,
    show: Callable[[Outcome], None] | None = None,
) -> Callable[[Callable[[S, Context], dict[str, Any] | Made]], Stage[S]]:
    """Make a function a stage; its docstring is the command's description.

    Args:
        name: in recipes; on the command line with hyphens.
        settings: the class of its settings.
        help: one line.
        makes: outputs by name, each a path in the stage's folder: one that ends with / is a model,
            a .jsonl file is rows. Or a function of the settings that gives them. The first of each
            kind is what a later stage reads where it names only the stage.
        files: what else the stage leaves.
        show: prints an outcome; unset: the scalars of the summary, and where everything is.
    """

    def made(function: Callable[[S, Context], dict[str, Any] | Made]) -> Stage[S]:
        return Stage(name, settings, help, function, makes or {}, files, show)

    return made


@dataclass(frozen=True)
class Stage(Generic[S]):
    """One kind of stage; see `stage`, which makes it. Calling it runs it.

    Attributes:
        verify: of a finished run it reads all that was made; else what has another size or time of
            writing than it had.
    """

    name: str
    settings: type[S]
    help: str
    function: Callable[[S, Context], dict[str, Any] | Made]
    makes: Makes = field(default_factory=dict)
    files: Files = NONE
    show: Callable[[Outcome], None] | None = None
    verify: bool = False

    @property
    def description(self) -> str:
        """The function's docstring up to the first empty line, on one line."""
        text = inspect.getdoc(self.function) or self.help
        return " ".join(text.partition("\n\n")[0].split())

    @property
    def command(self) -> str:
        return command_of(self.name)

    def outputs(self, settings: S) -> dict[str, str]:
        """Name → path in the stage's folder."""
        return dict(self.makes(settings) if callable(self.makes) else self.makes)

    def __call__(
        self,
        *,
        quiet: bool = False,
        verify: bool = False,
        sinks: Iterable[Sink] = (),
        reporter: Reporter | None = None,
        **settings: Any,
    ) -> Outcome:
        """Run the stage, in one line.

        Args:
            quiet: show nothing but trouble.
            verify: read all that a finished run made, to see whether it is as it was.
            sinks: functions that are called with every event (`posttrain.core.events`).
            reporter: reports what happens, in place of one for the terminal.
            settings: the command line's options, with underscores.
        Raises:
            PosttrainError: with what is wrong and the cure.
        """
        chosen = assemble(self.settings, settings)
        reporter = reporter or open_reporter(quiet=quiet, sinks=sinks)
        with explained_writes(chosen.folder or Path(os.devnull)):
            return replace(self, verify=verify).run(chosen, reporter)

    def run(self, settings: S, reporter: Reporter) -> Outcome:
        """Run the stage, or go on with it, or say that it is finished.

        Raises:
            PosttrainError: with what is wrong and the cure.
        """
        settings = settings.resolved()
        settings.check()
        place = self.place(settings)
        _check_apart(settings)
        kept = settings.folder is not None
        read = inputs.describe(settings) if kept else inputs.NOTHING
        with place.held(), explained_writes(place.folder):
            place.check(read.identity())
            if place.before is not None:
                settings.check_longer(place.before)
            found = finished.find(place, reporter, verify=self.verify)
            if found.summary is not None and place.before is None:
                return self._finished(settings, place, reporter, found.summary)
            place.sweep()
            context = Context(
                place.work, reporter, read, place.began, settings, place, found.intact
            )
            with context.stack, _noticing(place):
                try:
                    result = self.function(settings, context)
                    context.check_inputs()
                    place.check_there()
                except BaseException:
                    if not context.claimed:
                        place.discard()
                    raise
                made = result if isinstance(result, Made) else Made(result)
                files = self._files(settings, place)
                summary = self._summary(settings, place, read, made, files)
                context.claim()
                summary = place.finish(summary, files)
                place.check_there()
                self._remove_scratch(place)
                context.reporter.done(place.folder, summary, context.log)
            return self._outcome(settings, place, summary, made.verdict, made.detail)

    def place(self, settings: S) -> Place:
        """Where a run with these settings writes."""
        out = settings.folder
        if out is None:
            return Nowhere()
        made = self.outputs(settings)
        outputs = [path.rstrip("/") for path in made.values()]
        names = [*outputs, *self.files.names(settings)]
        if self.files.single_file and out.suffix and not os.path.isdir(out):
            if out.suffix != ".jsonl":
                raise ConfigError(
                    f"--out {out} does not end in .jsonl",
                    cure=f"give --out {out}.jsonl, or a folder whose name has no ending",
                    option="out",
                )
            return SideBySide(out, next(iter(made.values())), names)
        kept = [*outputs, *self.files.kept(settings)]
        at_once = self.files.at_once
        return Folder(out, names, kept, at_once=at_once, length=settings.length)

    def _finished(
        self, settings: S, place: Place, reporter: Reporter, summary: dict[str, Any]
    ) -> Outcome:
        """The outcome of a run that is done."""
        self._remove_scratch(place)
        ignored = inputs.ignored(settings, execution_of(place.path(RUN)))
        note = f"; it ignores {', '.join(ignored)}" if ignored else ""
        reporter.note("finished", f"{place.out} already holds this run; nothing to do{note}")
        verdict = summary.get("verdict")
        return self._outcome(settings, place, summary, Verdict(**verdict) if verdict else None)

    def _files(self, settings: S, place: Place) -> dict[str, Entry]:
        """What the stage made and keeps, on the disk and with digests."""
        if settings.folder is None:
            return {}
        outputs = [path.rstrip("/") for path in self.outputs(settings).values()]
        return manifest.entries(place.work, [*outputs, *self.files.kept(settings)])

    def _summary(
        self, settings: S, place: Place, read: inputs.Inputs, made: Made, files: Mapping[str, Entry]
    ) -> dict[str, Any]:
        """What `summary.json` says: the stage's own, and what all have."""

        def digest(path: Path) -> str:
            return files[path.relative_to(place.work).as_posix()].sha256

        digests: dict[str, str] = {}
        outputs = self.outputs(settings) if settings.folder is not None else {}
        for name, path in outputs.items():
            written = place.work / path
            if not written.exists():
                raise ConfigError(
                    f"the stage {self.name} did not make its output {name!r}: no {written}",
                    cure="write it into context.folder, or take it out of makes=",
                )
            digests[path.rstrip("/")] = output_digest(written, digest)
        verdict = {"verdict": vars(made.verdict)} if made.verdict else {}
        summary = {
            "posttrain": __version__,
            **made.summary,
            **verdict,
            "models_sha256": read.models,
            "sha256": digests,
        }
        return json.loads(json.dumps(summary))  # as a later command will read it

    def _remove_scratch(self, place: Place) -> None:
        for name in self.files.scratch:
            shutil.rmtree(place.path(name), ignore_errors=True)

    def _outcome(
        self,
        settings: S,
        place: Place,
        summary: dict[str, Any],
        verdict: Verdict | None,
        detail: Any = None,
    ) -> Outcome:
        there: dict[str, Path] = {}
        for name, path in self.outputs(settings).items():
            if place.path(path.rstrip("/")).exists():
                there[name] = place.path(path.rstrip("/"))
        return Outcome(place.folder, there, summary, place.path(SUMMARY), verdict, detail)


@contextmanager
def _noticing(place: Place) -> Iterator[None]:
    """Say of an error of the system that its cause is that the place was taken away."""
    try:
        yield
    except OSError:
        place.check_there()
        raise


def kind_of(path: str) -> str:
    """What an output is: "model", "rows" or "file"."""
    if path.endswith("/"):
        return "model"
    return "rows" if path.endswith(".jsonl") else "file"


def _check_apart(settings: Settings) -> None:
    """Refuse a model that lies where the run writes."""
    out = settings.folder
    if out is None:
        return
    for leaf, name in inputs.models(settings):
        if leaf.has(ReadsModel) and Path(name).resolve().is_relative_to(out.resolve()):
            raise ConfigError(
                f"{leaf.option} {name} lies in --out {out}, where the run writes",
                cure="choose another --out",
                option=leaf.name,
            )
