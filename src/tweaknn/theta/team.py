"""Python work on the threads that torch's own loops run on.

After each of its parallel loops torch's OpenMP runtime keeps its threads waiting busily, for milliseconds on processors whose pause
instruction is long. A second pool of threads has to share the cores with them, and folding on two threads was then hardly faster than on
one. So the runtime that torch has loaded is asked for its own team: every thread of it calls back into Python, where compiled kernels
release the interpreter's lock.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

_WORK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@cache
def _parallel() -> Callable[..., None] | None:
    """``GOMP_parallel`` of the OpenMP runtime that torch uses; None where it has another one."""
    for path in sorted(Path(torch.__file__).parent.glob("lib/libgomp*.so*")):
        try:
            found = ctypes.CDLL(str(path)).GOMP_parallel  # loaded already: the same one
        except (OSError, AttributeError):
            continue
        found.argtypes = (_WORK, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
        found.restype = None
        return found
    return None


def together(work: Callable[[], None], threads: int) -> bool:
    """Call ``work`` once on each of torch's ``threads`` threads, at the same time; False, and nothing done, where that cannot be.

    ``work`` shares itself out among its callers. The first exception of any of them is raised when all have ended.
    """
    parallel = _parallel()
    if parallel is None or threads < 2 or threads != torch.get_num_threads():
        return False
    raised: list[BaseException] = []

    def guarded(_: int | None) -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    parallel(_WORK(guarded), None, threads, 0)
    if raised:
        raise raised[0]
    return True
