"""Where a stage keeps what it makes: a folder of its own, files beside each other, or nowhere.

A folder of its own (`--out runs/first`) holds
    run.json       which run it is: settings, digests of models and data, version
    OUTPUTS        what the stage makes
    summary.json   results
    manifest.json  digests of all of these; written last, so where it exists the run is finished

Files beside each other (`--out clean.jsonl`, of stages that make rows) are
    clean.jsonl            the first output
    clean.NAME.jsonl       the others
    clean.summary.json     results, and which run it was
    clean.manifest.json    digests of all of these; written last
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from posttrain.core import manifest
from posttrain.core.errors import CheckpointError, ConfigError
from posttrain.core.files import (
    PARTIAL,
    fsync,
    gone,
    lock,
    read_state,
    remove_partial,
    sha256_file,
    sha256_folder,
    write_json,
)
from posttrain.core.identity import RUN, check, claim, compare, lengthen, other_length
from posttrain.core.manifest import MANIFEST, Entry
from posttrain.core.version import __version__

SUMMARY = "summary.json"
DAMAGED = "delete the file and run the same command again, which writes it anew"


@dataclass(frozen=True)
class Files:
    """What a stage leaves in its folder besides its outputs and the summary.

    Attributes:
        others: names of files and folders, or a function of the settings that gives them.
        scratch: names of those that go when the run is finished; a run that goes on reads them.
        live: names of those that may change when the run is finished; the manifest leaves them out.
        at_once: all files appear at once, when the stage is done; until then they are written
            elsewhere. Such a stage does not go on after a kill, it begins again.
        single_file: of stages whose files appear at once: `--out` may be a .jsonl file, the first
            output.
    """

    others: Sequence[str] | Callable[[Any], Sequence[str]] = ()
    scratch: Sequence[str] = ()
    live: Sequence[str] = ()
    at_once: bool = False
    single_file: bool = False

    def kept(self, settings: Any) -> list[str]:
        """Those that stay as they are when the run is finished."""
        return list(self.others(settings) if callable(self.others) else self.others)

    def names(self, settings: Any) -> list[str]:
        return [*self.kept(settings), *self.live, *self.scratch]


NONE = Files()


class Place(Protocol):
    """Where one run writes.

    Attributes:
        work: the folder that the stage writes into.
        folder: where everything is in the end.
        out: what messages call it: the folder, or the file of the first output.
        manifest: the file that says what was made; None where nothing is kept.
        before: of the run that is there and differs in its length alone, that length.
    """

    work: Path
    folder: Path
    out: Path
    before: dict[str, Any] | None

    @property
    def manifest(self) -> Path | None: ...

    def held(self) -> AbstractContextManager[None]:
        """Context: nobody else writes there."""
        ...

    def check(self, identity: dict[str, Any]) -> None:
        """Refuse a place that holds another run, or somebody's files."""
        ...

    def check_there(self) -> None:
        """Refuse to go on where the place, or what says whose it is, was taken away."""
        ...

    def path(self, name: str) -> Path:
        """Where the file or folder of that name is when the run is finished."""
        ...

    @property
    def began(self) -> bool:
        """Whether an earlier process began this run here."""
        ...

    def claim(
        self, identity: dict[str, Any], execution: dict[str, Any], paths: dict[str, str]
    ) -> list[str]:
        """From now on the place is this run's; returns what differs in how it is executed."""
        ...

    def files(self) -> list[Path]:
        """The files and folders that a manifest names, where they are when the run is finished."""
        ...

    def sweep(self) -> None:
        """Remove what an interrupted write left."""
        ...

    def discard(self) -> None:
        """Remove what a run wrote that ends before it claimed the place."""
        ...

    def finish(self, summary: dict[str, Any], made: Mapping[str, Entry]) -> dict[str, Any]:
        """Put everything in its place; returns the summary as it was written.

        Args:
            made: what lies in `work`, for the manifest.
        """
        ...


class Folder:
    """A folder of the run's own.

    Args:
        out: the folder.
        names: of all that the run writes into it. kept: of those that a manifest names.
        at_once: files are moved there when the stage is done.
        length: settings that say how long the run is.
    """

    def __init__(
        self,
        out: Path,
        names: Sequence[str],
        kept: Sequence[str],
        *,
        at_once: bool,
        length: Sequence[str] = (),
    ) -> None:
        self.length = length
        self.before: dict[str, Any] | None = None
        self.folder = self.out = out
        self.names, self.kept, self.at_once = names, kept, at_once
        self.manifest = out / MANIFEST
        self.work = out / f"{PARTIAL}files" if at_once else out
        self._check_held: Callable[[], None] = lambda: None
        self._claimed = False

    @contextmanager
    def held(self) -> Iterator[None]:
        with lock(self.folder) as self._check_held:
            yield

    def check_there(self) -> None:
        self._check_held()
        if self._claimed and not (self.folder / RUN).is_file():
            raise gone(self.folder / RUN)

    def check(self, identity: dict[str, Any]) -> None:
        self._check_run()
        self.before = other_length(self.folder, identity, self.length)
        if self.before is None:
            check(self.folder, identity, (*self.names, SUMMARY, MANIFEST))

    def _check_run(self) -> None:
        """Refuse a folder that does not say any more which run it holds.

        Raises:
            CheckpointError: the file that says it was changed since the run was finished.
        """
        path = self.folder / RUN
        if not path.is_file() or manifest.read(self.manifest) is None:
            return
        if found := manifest.damage(self.manifest, content=True, only=(RUN,)):
            raise CheckpointError(
                f"{path} {found[0].what}: which run made what is there cannot be known",
                cure="put it back as it was, choose another --out, or delete the folder",
            )

    def path(self, name: str) -> Path:
        return self.folder / name

    @property
    def began(self) -> bool:
        return (self.folder / RUN).is_file()

    def claim(
        self, identity: dict[str, Any], execution: dict[str, Any], paths: dict[str, str]
    ) -> list[str]:
        self._check_held()
        self._claimed = True
        if self.before is not None:
            # in this order: were the power to fail now, nothing would call it finished that is not
            self.manifest.unlink(missing_ok=True)
            (self.folder / SUMMARY).unlink(missing_ok=True)
            fsync(self.folder)
            lengthen(self.folder, identity)
        return claim(self.folder, identity, __version__, execution, paths)

    def files(self) -> list[Path]:
        return [self.folder / name for name in (*self.kept, SUMMARY, RUN)]

    def sweep(self) -> None:
        remove_partial(self.folder)
        self.work.mkdir(parents=True, exist_ok=True)

    def discard(self) -> None:
        remove_partial(self.folder)

    def finish(self, summary: dict[str, Any], made: Mapping[str, Entry]) -> dict[str, Any]:
        self.manifest.unlink(missing_ok=True)  # of what was there before
        if self.at_once:
            _move(self.work, self.names, self.path)
            shutil.rmtree(self.work)
        write_json(self.folder / SUMMARY, summary)
        manifest.write(self.manifest, {**made, **manifest.entries(self.folder, (SUMMARY, RUN))})
        return summary


class SideBySide:
    """Files beside each other, named after the first.

    Args:
        out: the file of the first output.
        first: its name in the stage. names: of all that the run writes.
    """

    def __init__(self, out: Path, first: str, names: Sequence[str]) -> None:
        self.out, self.folder, self.first, self.names = out, out.parent, first, names
        self.work = out.with_name(f"{PARTIAL}{out.name}-scratch")
        self.manifest = self.path(MANIFEST)
        self._identity: dict[str, Any] = {}
        self._check_held: Callable[[], None] = lambda: None

    @contextmanager
    def held(self) -> Iterator[None]:
        with lock(self.work) as self._check_held:
            try:
                yield
            finally:
                self.sweep()
        shutil.rmtree(self.work, ignore_errors=True)

    def check_there(self) -> None:
        self._check_held()

    def check(self, identity: dict[str, Any]) -> None:
        self._identity = identity
        places = [self.path(SUMMARY), *map(self.path, self.names), self.manifest]
        there = [path for path in places if path.exists()]
        if not there:
            return
        try:
            before = read_state(self.path(SUMMARY), "", identity=dict)["identity"]
        except CheckpointError:
            raise ConfigError(
                f"{there[0]} is there, and no run of ours that finished wrote it",
                cure="choose another --out, or delete what is there; nothing was touched",
            ) from None
        compare(before, identity, f"{self.folder} holds another run's {self.path(SUMMARY).name}")

    def path(self, name: str) -> Path:
        return self.out if name == self.first else self.out.with_name(f"{self.out.stem}.{name}")

    began = False
    before: dict[str, Any] | None = None

    def claim(
        self, identity: dict[str, Any], execution: dict[str, Any], paths: dict[str, str]
    ) -> list[str]:
        return []

    def files(self) -> list[Path]:
        return [self.path(name) for name in (*self.names, SUMMARY)]

    def sweep(self) -> None:
        for path in self.work.iterdir() if self.work.is_dir() else ():
            if path.name != ".lock":
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def discard(self) -> None:
        self.sweep()

    def finish(self, summary: dict[str, Any], made: Mapping[str, Entry]) -> dict[str, Any]:
        self.manifest.unlink(missing_ok=True)  # of what was there before
        whole = {**summary, "identity": self._identity}
        # first: were the power to fail now, the same command would be let write the rest
        write_json(self.path(SUMMARY), whole)
        _move(self.work, self.names, self.path)
        placed = {self.path(name).name: entry for name, entry in made.items()}
        manifest.write(
            self.manifest, {**placed, **manifest.entries(self.folder, [self.path(SUMMARY).name])}
        )
        return whole


class Nowhere:
    """A folder that is gone when the stage is done."""

    manifest: Path | None = None

    def __init__(self) -> None:
        self.work = self.folder = self.out = Path()

    @contextmanager
    def held(self) -> Iterator[None]:
        with tempfile.TemporaryDirectory(prefix="posttrain-") as name:
            self.work = self.folder = self.out = Path(name)
            yield

    def check_there(self) -> None:
        pass

    def check(self, identity: dict[str, Any]) -> None:
        pass

    def path(self, name: str) -> Path:
        return self.work / name

    began = False
    before: dict[str, Any] | None = None

    def claim(
        self, identity: dict[str, Any], execution: dict[str, Any], paths: dict[str, str]
    ) -> list[str]:
        return []

    def files(self) -> list[Path]:
        return []

    def sweep(self) -> None:
        pass

    def discard(self) -> None:
        pass

    def finish(self, summary: dict[str, Any], made: Mapping[str, Entry]) -> dict[str, Any]:
        return summary


def _move(folder: Path, names: Sequence[str], path: Callable[[str], Path]) -> None:
    """Move those files that are there to their paths, on the disk first."""
    parents: set[Path] = set()
    for name in names:
        if (folder / name).exists():
            fsync(folder / name)
            (folder / name).replace(path(name))
            parents.add(path(name).parent)
    for parent in parents:
        fsync(parent)


def output_digest(path: Path, digest: Callable[[Path], str] = sha256_file) -> str:
    """What identifies an output, for the summary. Of a folder with weights only these count, so
    that it does not depend on the versions that config and tokenizer were written with.

    Args:
        digest: of one file.
    """
    if not path.is_dir():
        return digest(path)
    weights = any(file.suffix == ".safetensors" for file in path.iterdir())
    return sha256_folder(path, lambda file: not weights or file.suffix == ".safetensors", digest)
