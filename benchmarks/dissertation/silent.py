"""A progress bar that shows nothing, where one has to be given."""

from __future__ import annotations

from collections.abc import Callable


class Silent:
    """``Silent(what, total)`` as a context manager yields a function that does nothing."""

    def __init__(self, what: str, total: int) -> None:
        del what, total

    def __enter__(self) -> Callable[[int], None]:
        return lambda done: None

    def __exit__(self, *ended: object) -> None:
        return None
