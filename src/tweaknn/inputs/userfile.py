"""Run a function out of a user's Python file: ``net.py:make``."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tweaknn.errors import InputError, TweaknnError

PREFIX = "_tweaknn_user_"
"""Of the names under which users' files are imported."""


def split_spec(spec: str) -> tuple[Path, str] | None:
    """``(file, function)`` of ``file.py:function``, or None when ``spec`` is not of that form."""
    file, colon, name = spec.rpartition(":")
    if colon and file.endswith(".py") and name:
        return Path(file), name
    return None


def load_function(spec: str, error: type[TweaknnError] = InputError) -> Callable[..., Any]:
    """The function that ``file.py:function`` names.

    The file is imported once a process under a name of its own, so that it shadows nothing and its
    classes keep
    one identity (pickling them works). Its folder is importable only while it is being imported.

    Raises ``error`` when the file is missing, fails to import, or has no such callable.
    """
    parts = split_spec(spec)
    if parts is None:
        raise error(f"'{spec}' must have the form file.py:function.")
    path, name = parts
    if not path.is_file():
        raise error(f"'{spec}': there is no file '{path}'.")
    module = _import(path.resolve(), spec, error)
    found = getattr(module, name, None)
    if not callable(found):
        offered = [k for k, v in vars(module).items() if callable(v) and not k.startswith("_")]
        raise error(f"'{path}' has no function '{name}'; it has: {', '.join(offered[:10]) or 'none'}.")
    return found


def reload_file(file: str) -> None:
    """Import a user's file in another process under the name it has in this one. Raises InputError when it fails."""
    _import(Path(file).resolve(), file, InputError)


def _import(path: Path, spec: str, error: type[TweaknnError]) -> Any:
    source = path.read_bytes()
    key = hashlib.sha256(str(path).encode() + b"\0" + source).hexdigest()[:16]
    unique = f"{PREFIX}{path.stem}_{key}"
    if unique in sys.modules:
        return sys.modules[unique]
    module_spec = importlib.util.spec_from_file_location(unique, path)
    if module_spec is None or module_spec.loader is None:
        raise error(f"'{path}' cannot be imported as Python.")
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[unique] = module
    folder = str(path.parent)
    sys.path.insert(0, folder)
    try:
        module_spec.loader.exec_module(module)
    except TweaknnError:
        sys.modules.pop(unique, None)
        raise
    except Exception as problem:
        sys.modules.pop(unique, None)
        raise error(f"'{spec}' fails on import: {type(problem).__name__}: {problem}") from problem
    finally:
        if folder in sys.path:
            sys.path.remove(folder)
    return module


def call_user(function: Callable[..., Any], spec: str, error: type[TweaknnError] = InputError, **kwargs: Any) -> Any:
    """Call a user's function; whatever it raises becomes ``error`` with its name and message."""
    try:
        return function(**kwargs)
    except TweaknnError:
        raise
    except Exception as problem:
        raise error(f"'{spec}' fails when called: {type(problem).__name__}: {problem}") from problem
