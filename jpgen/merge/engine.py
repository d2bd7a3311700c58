"""The engine: a recipe and its files in, one file out, piece by piece; no model is ever whole in memory.

The header is planned first, room is taken for the whole file, the pieces are read into buffers that are used again, computed in fp32 and written
to their places by several threads; then the file is made durable and takes its name. Which thread made what leaves no trace.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from jpgen.errors import OutputError
from jpgen.merge.folders import Companions, put_in_place, require_companions, require_replaceable, write_companions
from jpgen.merge.names import label
from jpgen.merge.plan import Plan, plan
from jpgen.merge.provenance import Terms, describe
from jpgen.merge.recipe import Recipe
from jpgen.merge.sources import Find, Reader
from jpgen.merge.survey import Surveys
from jpgen.merge.worker import Common, Worker, put

MAX_THREADS = 4
"""Threads unless told otherwise, and no more than processors: beyond, the disk is the limit."""


def merge(
    recipe: Recipe, output: Path, *, find: Find | None = None, threads: int | None = None, terms: Mapping[str, Terms] | None = None,
    companions: Companions | None = None,
) -> Path:  # fmt: skip
    """Write what the recipe gives to `output`, a file or folder (a temporary one, then renamed); returns it.

    `find` finds the files of an input (default: names are paths), `terms` are the licences of the models by their names, `companions` writes what a
    folder needs beside weights where no input is one. Arithmetic is in fp32, rounded once; a tensor comes out in the type it has in the first input
    unless the recipe says otherwise. The bytes depend on the recipe and the inputs alone, the values not even on the layouts of the inputs.

    Raises RecipeError, WeightsError for inputs that are damaged, differ in names or shapes (naming them) or are not finite, SettingError for a folder
    that no configs are for, and OutputError for an output that is one of the inputs, for a disk that is full (before any work) or cannot be written.
    """
    made = plan(recipe, find, output=output)
    require_other(output, made)
    return write(made, output, describe(made, terms or {}), threads=threads, companions=companions)


def require_other(output: Path, made: Plan) -> None:
    """Raise OutputError if the output is one of the inputs, or has one in it."""
    for leaf, paths in made.files.items():
        inside = (one for path in paths for one in (path, *path.absolute().parents, *path.resolve().parents))
        if output.exists() and any(os.path.samefile(output, one) for one in inside):
            raise OutputError(f"{output} は入力の {label(leaf)} です / {output} is the input {label(leaf)}: name another output")


def write(
    made: Plan, output: Path, metadata: Mapping[str, str], *, threads: int | None = None, copy_only: bool = False, sync: bool = True,
    companions: Companions | None = None,
) -> Path:  # fmt: skip
    """Carry out a plan; see `merge` for `companions`.

    `copy_only` writes the values of the first input as they are, and without `sync` the file is not made durable: for bench-merge alone.
    """
    headers = [file.header(metadata) for file in made.outputs]
    size = sum(map(len, headers)) + made.size
    partial = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        if made.folder:
            require_companions(made, companions)
            require_replaceable(output)
        output.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(output.parent).free
        if size > free:
            raise OutputError(_no_space(output, f"{size / 1e9:.1f} GB wanted, {free / 1e9:.1f} GB free"))
        with ExitStack() as stack:
            room = [stack.enter_context(_room(partial / file.path, header, file.size)) for file, header in zip(made.outputs, headers, strict=True)]
            _run(made, room, threads or min(os.cpu_count() or 1, MAX_THREADS), copy_only)
            for number, _ in room if sync else ():
                os.fsync(number)
        if made.folder:
            write_companions(made, partial, companions)
            for path in (*partial.rglob("*"), partial) if sync else ():
                _sync(path)
            put_in_place(partial, output)
        else:
            os.replace(partial, output)
        _sync(output.parent)
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(_no_space(output, error.strerror or str(error))) from error
    finally:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        elif partial.parent.is_dir():
            partial.unlink(missing_ok=True)
    return output


@contextmanager
def _room(path: Path, header: bytes, size: int) -> Iterator[tuple[int, int]]:
    """A new file with this header and room for so many bytes of values: its number, and where the values begin; open for the time of the block."""
    path.parent.mkdir(parents=True, exist_ok=True)
    number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | getattr(os, "O_CLOEXEC", 0), 0o666)
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(number, 0, len(header) + size)
        else:
            os.ftruncate(number, len(header) + size)
        put(number, header, 0)
        yield number, len(header)
    finally:
        os.close(number)


def _run(made: Plan, room: Sequence[tuple[int, int]], threads: int, copy_only: bool) -> None:
    """Do all jobs by so many threads; the first error ends them all."""
    reader = Reader([path for source in made.sources.values() for path in source.files])
    jobs, lock = iter(job for job in made.jobs if job.makes or not copy_only), threading.Lock()
    common = Common(Surveys(len(made.sources)), threading.Event(), threading.Lock())
    stop = common.stop

    def work() -> None:
        worker = Worker(made, reader, room, common, copy_only)
        with torch.inference_mode():
            while not stop.is_set():
                with lock:
                    job = next(jobs, None)
                if job is None:
                    return
                try:
                    worker.do(job)
                except BaseException:
                    stop.set()
                    raise

    try:
        with _one_thread_each(), ThreadPoolExecutor(threads) as pool:
            futures = [pool.submit(work) for _ in range(threads)]
            try:
                wait(futures)
            finally:
                stop.set()
            for future in futures:
                future.result()
    finally:
        reader.close()


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """torch's own threads set aside: the engine's are enough."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _sync(path: Path) -> None:
    """Make a file, or the new names in a folder, durable, where it can be opened."""
    try:
        number = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(number)
    except OSError:
        pass
    finally:
        os.close(number)


def _no_space(output: Path, why: str) -> str:
    return f"{output} に書き込めません / cannot write {output} ({why}): free some space, or name another folder (for merged models: XDG_CACHE_HOME)"
