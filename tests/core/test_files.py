"""Files that are whole or absent, digests that depend on nothing else, and a lock that keeps other
processes out.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from posttrain.core import files
from posttrain.core.errors import CheckpointError, PosttrainError
from tests.children import child


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


# ------------------------------------------------------------------------------------------- writes


def test_write_atomic_makes_folders_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.txt"
    files.write_atomic(path, "grün")
    assert path.read_bytes() == "grün".encode()
    files.write_atomic(path, b"\x00new")
    assert path.read_bytes() == b"\x00new"
    assert names(path.parent) == ["b.txt"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_crash_while_writing_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "a.txt"
    files.write_atomic(path, "old")

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, step, crash)
    with pytest.raises(KeyboardInterrupt):
        files.write_atomic(path, "new and longer")
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert files.remove_partial(tmp_path) == [".partial-a.txt"]
    assert names(tmp_path) == ["a.txt"]


def test_write_json_keeps_the_order_and_is_readable(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a.json", {"b": "ü", "a": [1, None]})
    assert (
        tmp_path / "a.json"
    ).read_text() == '{\n  "b": "ü",\n  "a": [\n    1,\n    null\n  ]\n}\n'


def test_a_folder_appears_whole_and_replaces_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "model"
    for content in ("old", "new"):
        with files.atomic_folder(path) as folder:
            (folder / "inner").mkdir()
            (folder / "inner" / content).write_text(content)
            assert not path.exists() or names(path / "inner") == ["old"]
        assert names(path / "inner") == [content]
    assert names(path.parent) == ["model"]


def half_way(folder: Path) -> None:
    (folder / "a").write_text("a")
    raise ValueError("half way")


def test_a_folder_that_fails_leaves_nothing_and_keeps_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "model"
    with pytest.raises(ValueError, match="half way"), files.atomic_folder(path) as folder:
        half_way(folder)
    assert names(tmp_path) == []
    with files.atomic_folder(path) as folder:
        (folder / "a").write_text("old")
    with pytest.raises(ValueError, match="half way"), files.atomic_folder(path) as folder:
        half_way(folder)
    assert names(tmp_path) == ["model"]
    assert (path / "a").read_text() == "old"


def test_what_an_interrupted_write_left_is_swept_away(tmp_path: Path) -> None:
    (tmp_path / ".partial-model").mkdir()
    (tmp_path / ".partial-model" / "a").write_text("a")
    (tmp_path / ".partial-summary.json").write_text("{")
    (tmp_path / "metrics.jsonl").write_text("")
    assert files.remove_partial(tmp_path) == [".partial-model", ".partial-summary.json"]
    assert names(tmp_path) == ["metrics.jsonl"]
    assert files.remove_partial(tmp_path / "none") == []


# ------------------------------------------------------------------------------------------ digests


def test_digests_are_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    # FIPS 180-2
    assert (
        files.sha256_file(tmp_path / "abc")
        == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )
    assert (
        files.sha256_json({"b": "ü", "a": [1, None]})
        == hashlib.sha256(b'{"a":[1,null],"b":"\\u00fc"}').hexdigest()
    )


def test_a_folders_digest_is_of_names_and_contents(tmp_path: Path) -> None:
    for name, content in (("b.json", "1"), ("a.json", "2"), ("note.md", "3")):
        (tmp_path / name).write_text(content)
    before = files.sha256_folder(tmp_path, lambda p: p.suffix == ".json")
    assert before == files.sha256_json(
        {n: hashlib.sha256(c).hexdigest() for n, c in (("a.json", b"2"), ("b.json", b"1"))}
    )
    (tmp_path / "note.md").write_text("changed, but not asked about")
    assert files.sha256_folder(tmp_path, lambda p: p.suffix == ".json") == before
    (tmp_path / "b.json").rename(tmp_path / "c.json")
    assert files.sha256_folder(tmp_path, lambda p: p.suffix == ".json") != before


def test_digests_and_seeds_do_not_depend_on_pythonhashseed(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("1")
    (tmp_path / "two").write_text("2")
    script = (
        "import sys; from pathlib import Path; from posttrain.core import files, seeds; "
        "print(files.sha256_json({k: list(set(['x'])) for k in set('abcdefgh')}), "
        "files.sha256_folder(Path(sys.argv[1])),seeds.derive(7, 'order', 3), seeds.generator(7, "
        "'order', 3).permutation(6).tolist())"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", script, str(tmp_path)],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("0", "1", "4242")
    }
    assert len(said) == 1


# ----------------------------------------------------------------------------------------- the lock

HOLD = """
import sys, time
from pathlib import Path
from posttrain.core.files import lock
from tests.children import child
with lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_lock_excludes_another_process_until_it_dies(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    argv = [sys.executable, "-c", HOLD, str(folder)]
    with child(argv, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(PosttrainError) as caught, files.lock(folder):
            pytest.fail("two processes hold one folder")
        assert caught.value.what == f"another run (process {holder.pid}) is writing to {folder}"
        assert "--out" in caught.value.cure
        holder.send_signal(signal.SIGKILL)  # no chance to clean up
        holder.wait(30)
        with files.lock(folder):
            assert (folder / ".lock").read_text() == str(os.getpid())


def test_the_lock_is_given_back_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError), files.lock(tmp_path / "run"):
        raise ValueError
    with files.lock(tmp_path / "run"):
        pass


def test_a_lock_notices_that_its_folder_was_taken_away(tmp_path: Path) -> None:
    folder = tmp_path / "run"

    def replaced() -> None:
        shutil.rmtree(folder)
        with files.lock(folder):  # by another run
            pass

    acts = (lambda: shutil.rmtree(folder), lambda: folder.rename(tmp_path / "moved"), replaced)
    for act in acts:
        with files.lock(folder) as check_held:
            check_held()
            act()
            with pytest.raises(CheckpointError, match="run was deleted, moved or replaced"):
                check_held()
        shutil.rmtree(folder, ignore_errors=True)


def test_an_error_in_a_folder_that_was_taken_away_is_the_error(tmp_path: Path) -> None:
    def fails() -> None:
        with files.lock(tmp_path / "run"):
            shutil.rmtree(tmp_path / "run")
            raise ValueError("the cause")

    with pytest.raises(ValueError, match="the cause"):
        fails()


def test_a_mistake_leaves_no_folder_behind_and_a_run_leaves_its_own(tmp_path: Path) -> None:
    for wrote in (False, True):
        with pytest.raises(ValueError), files.lock(tmp_path / "run"):
            fail(tmp_path / "run" / "metrics.jsonl" if wrote else None)
        assert (tmp_path / "run").exists() == wrote
    assert names(tmp_path / "run") == [".lock", "metrics.jsonl"]


def fail(write: Path | None) -> None:
    if write:
        write.write_text("")
    raise ValueError


def test_a_folder_that_cannot_be_made_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(CheckpointError, match="cannot write"),
        files.lock(tmp_path / "file" / "run"),
    ):
        pytest.fail("a file became a folder")


# ----------------------------------------------------------------------------- errors about writing


@pytest.mark.parametrize(
    ("number", "why", "cure"),
    [
        (errno.ENOSPC, "the disk is full", "free some space and run the same command again"),
        (
            errno.EDQUOT,
            "the disk quota is used up",
            "free some space and run the same command again",
        ),
        (errno.EROFS, "the file system is read-only", "make it writable, or choose another --out"),
        (
            errno.EACCES,
            "no permission to write",
            "change the folder's permissions, or choose another --out",
        ),
        (errno.EIO, os.strerror(errno.EIO), "see the reason; then run the same command again"),
    ],
)
def test_errors_about_writing_have_a_cure(number: int, why: str, cure: str) -> None:
    error = files.write_error(
        OSError(number, os.strerror(number)), Path("run/x"), "The old one is good"
    )
    assert (error.what, error.cure) == (f"cannot write run/x: {why}. The old one is good", cure)


def test_explained_writes_passes_what_is_not_about_writing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="the disk is full"), files.explained_writes(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "a"))
    with pytest.raises(FileNotFoundError), files.explained_writes(tmp_path):
        raise FileNotFoundError(errno.ENOENT, "No such file")


# ------------------------------------------------------------------------ disks of the network


def failing(number: int, *, folders: bool) -> Any:
    """A call of the system that fails, of folders alone or of all."""

    def fail(handle: Any, *rest: Any) -> None:
        number_of = handle if isinstance(handle, int) else handle.fileno()
        if not folders or stat.S_ISDIR(os.fstat(number_of).st_mode):
            raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EIO])
def test_a_disk_without_locks_is_refused_and_left_clean(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", failing(number, folders=False))
    with pytest.raises(CheckpointError) as caught, files.lock(tmp_path / "run"):
        pytest.fail("it is not locked")
    assert f"cannot lock {tmp_path / 'run'}" in caught.value.what
    assert caught.value.what.endswith(os.strerror(number)) and "--out" in caught.value.cure
    assert names(tmp_path) == []


def test_a_disk_that_cannot_flush_folders_is_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", failing(errno.EINVAL, folders=True))
    files.write_atomic(tmp_path / "a.txt", "a")
    with files.atomic_folder(tmp_path / "model") as folder:
        (folder / "a").write_text("a")
    assert names(tmp_path) == ["a.txt", "model"]


@pytest.mark.parametrize(
    ("number", "folders"), [(errno.EIO, True), (errno.EINVAL, False), (errno.ENOSPC, False)]
)
def test_a_flush_that_fails_is_an_error_with_its_place(
    number: int, folders: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", failing(number, folders=folders))
    with pytest.raises(CheckpointError) as caught, files.explained_writes(tmp_path):
        files.write_atomic(tmp_path / "a.txt", "a")
    assert str(tmp_path) in caught.value.what


def test_a_lock_that_holds_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_bytes(b"\xff" * 100)
    with files.lock(tmp_path):
        assert (tmp_path / ".lock").read_text() == str(os.getpid())


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("x" * 5000, "the name is too long"),
        ("file/run", "a part of the path is a file"),
        ("file", "a file stands where a folder is to be"),
        ("loop/run", "a link that leads back to itself"),
    ],
)
def test_a_place_that_cannot_be_is_explained(name: str, what: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(CheckpointError, match=what) as caught, files.lock(tmp_path / name):
        pytest.fail("it is no folder")
    assert caught.value.cure


def test_what_disappears_from_a_runs_folder_is_explained(tmp_path: Path) -> None:
    with (
        pytest.raises(CheckpointError, match=r"a\.txt: No such file"),
        files.explained_writes(tmp_path),
    ):
        (tmp_path / "a.txt").read_text()


def test_names_that_are_no_text_are_written_so_that_json_reads_them(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a.json", {"caf\udce9": "ü"})
    assert files.read_state(tmp_path / "a.json", "") == {"caf\udce9": "ü"}


# ------------------------------------------------------------------------------- state of a run


@pytest.mark.parametrize(
    ("content", "where", "why"),
    [
        (b'{"a": {},\n "b"', ":2", "it is cut off or damaged (Expecting ':' delimiter)"),
        (b"  \n", ":2", "it is empty"),
        (b'{"b": 1}', "", "it has no 'a'"),
        (b'{"a": 1}', "", "it is not what a run writes there (a is int, not dict)"),
        (b"[]", "", "it is not what a run writes there (list, not an object)"),
        (b"[" * 100_000, "", "it is damaged: thousands of nested brackets"),
        (b'{"a": "\xff"}', "", "it is damaged: not UTF-8"),
        (None, "", "No such file or directory"),
    ],
)
def test_state_that_cannot_be_used_is_named(
    content: bytes | None, where: str, why: str, tmp_path: Path
) -> None:
    path = tmp_path / "run.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        files.read_state(path, "delete it", a=dict)
    assert caught.value.what == f"this file of a run cannot be used: {why}"
    assert (caught.value.where, caught.value.cure) == (f"{path}{where}", "delete it")
