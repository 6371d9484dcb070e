"""Run functions in processes of their own: several at once, each with a time limit, none able to harm another."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from tweaknn.baselines.outcome import NotApplicable
from tweaknn.errors import TweaknnError


class Failed(Exception):
    """A job ended without a result; the message is the reason. ``applicable`` is False for :class:`NotApplicable`."""

    applicable = True


class TimedOut(Failed):
    """It took longer than allowed and was stopped."""


class Inapplicable(Failed):
    """It does not apply to this network or data."""

    applicable = False


Job = tuple[str, Callable[[], Any]]


def call(jobs: Sequence[Job], at_once: int, limit: float | None) -> Iterator[tuple[str, float, Any]]:
    """Yield ``(name, seconds, result or Failed)`` as jobs end.

    With ``at_once`` 0, or where processes cannot be forked, they run here one after another (a time limit then has
    no power).
    Forked children use one thread each, since the parent's thread pools do not survive a fork.
    """
    if at_once < 1 or "fork" not in multiprocessing.get_all_start_methods() or torch.cuda.is_initialized():
        for name, function in jobs:
            start = time.perf_counter()
            answer = _guarded(function)
            yield name, time.perf_counter() - start, answer
        return
    yield from _forked(list(jobs), at_once, limit)


def _guarded(function: Callable[[], Any]) -> Any:
    try:
        return function()
    except NotApplicable as reason:
        return Inapplicable(f"not applicable: {reason}")
    except TweaknnError as problem:
        return Failed(str(problem))
    except Exception as problem:
        if os.environ.get("TWEAKNN_DEBUG"):
            traceback.print_exc()
        first = (str(problem).strip().splitlines() or [""])[0][:200]
        return Failed(f"crashed: {type(problem).__name__}: {first}")


def _child(function: Callable[[], Any], pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    torch.set_num_threads(1)
    pipe.send(_guarded(function))
    pipe.close()
    os._exit(0)  # no clean-up of what belongs to the parent


def _forked(jobs: list[Job], at_once: int, limit: float | None) -> Iterator[tuple[str, float, Any]]:
    context = multiprocessing.get_context("fork")
    running: dict[Connection, tuple[str, Any, float]] = {}
    functions: dict[str, Callable[[], Any]] = {}
    try:
        while jobs or running:
            while jobs and len(running) < at_once:
                name, function = jobs.pop(0)
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(target=_child, args=(function, theirs), daemon=True)
                process.start()
                theirs.close()
                running[ours] = name, process, time.monotonic()
                functions[name] = function
            ready = wait(list(running), timeout=0.5)
            for pipe in list(running):
                name, process, start = running[pipe]
                seconds = time.monotonic() - start
                if pipe in ready:
                    try:
                        answer = pipe.recv()
                    except EOFError:
                        process.join()
                        answer = Failed(f"crashed: its process ended with code {process.exitcode}")
                elif limit is not None and seconds > limit:
                    process.kill()
                    answer = TimedOut(f"stopped after {limit:.0f} s (--time-limit)")
                else:
                    continue
                process.join()
                pipe.close()
                del running[pipe]
                if isinstance(answer, Failed) and "fork" in str(answer):
                    # autograd refuses to work in a child once it has threads in the parent: then it works here
                    begin = time.monotonic()
                    answer = _guarded(functions[name])
                    seconds = time.monotonic() - begin
                yield name, seconds, answer
    finally:
        for pipe, (_, process, _) in running.items():
            process.kill()
            with contextlib.suppress(OSError):
                pipe.close()
