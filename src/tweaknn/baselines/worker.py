"""Run functions in processes of their own: several at once, each with a time limit, none able to harm another.

The processes are started afresh, never forked: a fork copies a process whose thread pools (OpenMP's, Numba's, autograd's)
are gone but believed to be there, and the child then waits for ever or is ended by the pool's library. What a job needs
is written to a file once and read again by each job, so that no job sees what another has changed.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any

import cloudpickle
import torch

from tweaknn.baselines.outcome import NotApplicable
from tweaknn.errors import TweaknnError
from tweaknn.inputs.userfile import PREFIX, reload_file


class Failed(Exception):
    """A job ended without a result; the message is the reason. ``applicable`` is False for :class:`NotApplicable`."""

    applicable = True


class TimedOut(Failed):
    """It took longer than allowed and was stopped."""


class Inapplicable(Failed):
    """It does not apply to this network or data."""

    applicable = False


Job = tuple[str, Callable[[Any], Any]]
"""A name, and a function of what all jobs share."""

Answer = tuple[str, float, Any]
"""Name, seconds, result or :class:`Failed`."""


class Pool:
    """At most ``at_once`` processes; with 0 jobs run in this process, one after another, and a time limit has no power.

    ``limit``: seconds a job may take. ``scratch``: a folder for what is handed over. ``threads`` of each process (default:
    this one's, divided among them). ``say`` is told when jobs have to run here after all, because the network or the data
    cannot be handed over. Use as a context manager; leaving it ends the processes.
    """

    def __init__(
        self,
        at_once: int,
        limit: float | None = None,
        *,
        scratch: Path | None = None,
        threads: int | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.at_once = at_once if os.name == "posix" else 0  # the pipe is inherited, which Windows does not know
        self.limit, self.scratch, self.say = limit, scratch, say
        self.threads = threads or max(1, torch.get_num_threads() // max(1, at_once))
        self.workers: list[_Worker] = []

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *ended: object) -> None:
        for worker in self.workers:
            worker.end()
        self.workers.clear()

    def run(self, shared: Any, jobs: Sequence[Job]) -> Iterator[Answer]:
        """Yield the answer of each job as it ends; each calls its function with ``shared``."""
        if self.at_once < 1 or not jobs:
            yield from map(lambda job: _here(shared, job), jobs)
            return
        handle, name = tempfile.mkstemp(dir=self.scratch, prefix=".shared.", suffix=".part")
        path = Path(name)
        try:
            try:
                with os.fdopen(handle, "wb") as stream:
                    cloudpickle.dump(shared, stream)
                packed = [(name, function, cloudpickle.dumps(function)) for name, function in jobs]
            except Exception as problem:
                self._refused(problem)
                yield from map(lambda job: _here(shared, job), jobs)
                return
            yield from self._run(shared, path, packed)
        finally:
            path.unlink(missing_ok=True)

    def _refused(self, problem: object) -> None:
        first = (str(problem).strip().splitlines() or ["unknown"])[0][:200]
        limit = "" if self.limit is None else ", without a time limit"
        self.say(f"methods run in this process{limit}: they cannot be handed to another one ({first})")

    def _run(self, shared: Any, path: Path, jobs: list[tuple[str, Callable[[Any], Any], bytes]]) -> Iterator[Answer]:
        waiting, back = list(jobs), []
        busy: dict[Connection, tuple[_Worker, tuple[str, Callable[[Any], Any], bytes]]] = {}
        try:
            while waiting or busy:
                while waiting and len(busy) < self.at_once:
                    worker = self._idle({w for w, _ in busy.values()})
                    job = waiting.pop(0)
                    if worker.take(path, job[2]):
                        busy[worker.pipe] = worker, job
                    else:  # it died while idle: another takes the job
                        self._drop(worker)
                        waiting.insert(0, job)
                wait(list(busy), timeout=0.2)
                for pipe, (worker, job) in list(busy.items()):
                    answer = worker.look(self.limit)
                    if answer is None:
                        continue
                    del busy[pipe]
                    if worker.process.poll() is not None:
                        self._drop(worker)
                    if isinstance(answer, _Unfit):
                        self._refused(answer)
                        back += [job, *waiting]  # what one cannot read the next will not
                        waiting = []
                    else:
                        yield job[0], worker.seconds, answer
        finally:
            for worker, _ in busy.values():
                self._drop(worker)
        for name, function, _ in back:
            yield _here(shared, (name, function))

    def _idle(self, busy: set[_Worker]) -> _Worker:
        for worker in self.workers:
            if worker not in busy:
                return worker
        self.workers.append(_Worker(self.threads))
        return self.workers[-1]

    def _drop(self, worker: _Worker) -> None:
        worker.end()
        if worker in self.workers:
            self.workers.remove(worker)


class _Unfit(Exception):
    """A worker cannot read what it was handed."""


class _Worker:
    """One process and the pipe to it."""

    def __init__(self, threads: int) -> None:
        self.pipe, theirs = Pipe()
        files = [m.__file__ for name, m in list(sys.modules.items()) if name.startswith(PREFIX) and m.__file__]
        start = (
            f"import sys; sys.path[:] = {[p or os.getcwd() for p in sys.path]!r}; "
            f"from tweaknn.baselines.worker import serve; serve({theirs.fileno()}, {threads}, {files!r}, {os.getpid()})"
        )
        count = str(threads)
        limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), count)
        self.process = subprocess.Popen(
            [sys.executable, "-c", start],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=2,  # what users' code prints must not mix with our answer on standard output
            env={**os.environ, **limits},
            start_new_session=True,  # Ctrl-C is for the parent, which decides
        )
        theirs.close()
        self.began: float | None = None
        self.seconds = 0.0

    def take(self, path: Path, function: bytes) -> bool:
        """Hand over a job; False when the process is no longer there."""
        self.began, self.seconds = None, 0.0
        try:
            self.pipe.send((str(path), function))
        except OSError:
            return False
        return True

    def look(self, limit: float | None) -> Any:
        """The result, a :class:`Failed` or :class:`_Unfit`, or None while it is at work."""
        try:
            while self.pipe.poll():
                kind, answer = self.pipe.recv()
                if kind == "began":
                    self.began = time.monotonic()
                    continue
                self.seconds = time.monotonic() - (self.began or time.monotonic())
                return answer
        except (EOFError, OSError):
            code = self.process.wait()
            if self.began is None:
                return _Unfit(f"a new process ended with code {code} before it began")
            self.seconds = time.monotonic() - self.began
            return Failed(f"crashed: its process ended with code {code}")
        if limit is not None and self.began is not None and time.monotonic() - self.began > limit:
            self.seconds = time.monotonic() - self.began
            self.end()
            return TimedOut(f"stopped after {limit:.0f} s (--time-limit)")
        return None

    def end(self) -> None:
        """Kill it, and what it may have started."""
        if self.process.poll() is None:
            with contextlib.suppress(OSError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        with contextlib.suppress(OSError):
            self.pipe.close()


def serve(descriptor: int, threads: int, files: Sequence[str], parent: int) -> None:
    """What a worker process does: take jobs from the pipe until it closes.

    ``files``: users' Python files that were loaded in the parent; classes in them are found again by the same names.
    """
    threading.Thread(target=_outlive_nobody, args=(parent,), daemon=True).start()
    torch.set_num_threads(threads)
    pipe = Connection(descriptor)
    for file in files:
        with contextlib.suppress(Exception):  # only matters when something of it is needed, and then it is said
            reload_file(file)
    while True:
        try:
            path, packed = pipe.recv()
        except EOFError:
            return
        try:
            with open(path, "rb") as stream:
                shared = pickle.load(stream)
            function = pickle.loads(packed)
        except Exception as problem:
            pipe.send(("unfit", _Unfit(f"{type(problem).__name__}: {problem}")))
            continue
        pipe.send(("began", None))
        answer = _guarded(partial(function, shared))
        try:
            pipe.send(("done", answer))
        except Exception as problem:
            pipe.send(("done", Failed(f"crashed: its result cannot be handed back ({problem})")))


def _outlive_nobody(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _here(shared: Any, job: Job) -> Answer:
    start = time.monotonic()
    answer = _guarded(partial(job[1], shared))
    return job[0], time.monotonic() - start, answer


def _guarded(function: Callable[[], Any]) -> Any:
    try:
        return function()
    except NotApplicable as reason:
        return Inapplicable(f"not applicable: {reason}")
    except TweaknnError as problem:
        return Failed(str(problem))
    except MemoryError:
        return Failed("crashed: out of memory")
    except Exception as problem:
        if os.environ.get("TWEAKNN_DEBUG"):
            traceback.print_exc()
        first = (str(problem).strip().splitlines() or [""])[0][:200]
        return Failed(f"crashed: {type(problem).__name__}: {first}")
