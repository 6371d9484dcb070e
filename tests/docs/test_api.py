"""docs/api.md: everything public is there, and its docstrings say what is raised."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "api.md"
LISTED = re.findall(r"^::: (\S+)$", PAGE.read_text(encoding="utf-8"), re.M)
PACKAGES = "tweaknn delta network structure baselines report inputs measure integrations".split()


def resolve(path: str) -> Any:
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError:
        module, _, name = path.rpartition(".")
        return getattr(resolve(module), name)


def members(thing: Any) -> Iterator[tuple[str, Any]]:
    """Classes and functions the page shows for ``thing``, each with its full name."""
    if inspect.ismodule(thing):
        for name, value in vars(thing).items():
            if not name.startswith("_") and getattr(value, "__module__", None) == thing.__name__:
                yield from members(value)
    elif inspect.isclass(thing):
        full = f"{thing.__module__}.{thing.__qualname__}"
        yield full, thing
        for name, value in vars(thing).items():
            value = getattr(value, "__func__", None) or getattr(value, "fget", None) or value
            own = inspect.isfunction(value) and value.__module__ == thing.__module__ and value.__name__ == name
            if own and not name.startswith("_"):
                yield f"{full}.{name}", value
    elif inspect.isfunction(thing):
        yield f"{thing.__module__}.{thing.__qualname__}", thing


def raised(thing: Any) -> set[str]:
    """Names of the errors that its own code raises by name."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(thing)))).body[0]
    bodies: list[ast.AST] = [tree]
    if inspect.isclass(thing):
        bodies = [f for f in tree.body if isinstance(f, ast.FunctionDef) and f.name in ("__init__", "__post_init__")]
    found = set()
    for node in (node for body in bodies for node in ast.walk(body)):
        if isinstance(node, ast.Raise) and node.exc is not None:
            error = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            found.add(ast.unparse(error).split(".")[-1])
    return {name for name in found if name[0].isupper()}


SHOWN = dict(pair for path in LISTED for pair in members(resolve(path)))


def test_every_name_a_package_offers_is_on_the_page():
    missing = []
    for package in PACKAGES:
        module = importlib.import_module("tweaknn" if package == "tweaknn" else f"tweaknn.{package}")
        for name in module.__all__:
            value = getattr(module, name)
            if callable(value) and hasattr(value, "__qualname__"):
                full = f"{value.__module__}.{value.__qualname__}"
                if full not in SHOWN:
                    missing.append(full)
    assert not missing
    assert len(set(LISTED)) == len(LISTED)


@pytest.mark.parametrize("path", LISTED)
def test_docstrings_say_what_is_raised(path):
    wrong = []
    for name, thing in members(resolve(path)):
        text = inspect.getdoc(thing) or ""
        if not text or (inspect.isclass(thing) and text.startswith(f"{thing.__name__}(")):  # a dataclass's own
            wrong.append(f"{name} has no docstring")
        wrong += [f"{name} raises {error} and does not say so" for error in sorted(raised(thing)) if error not in text]
    assert not wrong
