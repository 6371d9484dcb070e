"""What people read: notes and bars on standard error, tables on standard output."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

# Names of classes and files are the user's: "[old]" is no mark-up and ":cat:" no picture.
out = Console(highlight=False, soft_wrap=False, markup=False, emoji=False)
err = Console(stderr=True, highlight=False, markup=False, emoji=False)
_said: set[str] = set()


def note(sentence: str) -> None:
    """Say something once in a run, quietly."""
    if sentence not in _said:
        _said.add(sentence)
        err.print(f"· {sentence}", style="dim", markup=False)


def warn(sentence: str) -> None:
    """Say something that may change what a user does."""
    if sentence not in _said:
        _said.add(sentence)
        err.print(f"Warning: {sentence}", style="yellow", markup=False)


def forget() -> None:
    """Start a new run: notes may be said again."""
    _said.clear()


@contextmanager
def bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar; call what it yields with the number done so far."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Progress(*columns, TimeRemainingColumn(), console=err, transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.update(task, completed=done)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None) -> Table:
    """A table whose first column is text and whose others are numbers."""
    made = Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for position, column in enumerate(columns):
        made.add_column(column, justify="left" if position == 0 else "right", overflow="fold")
    for row in rows:
        made.add_row(*row)
    return made


def percent(value: float | None) -> str:
    """``0.8125 -> 81.2``; nothing known -> a dash."""
    return "–" if value is None or value != value else f"{100 * value:.1f}"


def points(value: float | None) -> str:
    """A signed difference in points."""
    return "–" if value is None or value != value else f"{100 * value:+.1f}"
