"""What a user wishes of a join, from words to values: the promise, the cost matrix, sub-class targets."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

from tweaknn.errors import InputError
from tweaknn.inputs import Examples
from tweaknn.join.promise import Promise


def promised(
    method: str,
    kind: str | None,
    tolerance: float,
    floor: list[str] | None,
    max_drop: float | None,
    overall_drop: float | None,
    weight: list[str] | None,
    specificity: list[str] | None,
    costs: Path | None = None,
    classes: list[str] | None = None,
) -> Promise | None:
    """The promise in the options' words; None leaves it to the method. Raises InputError."""
    more = {"floors": floor, "weights": weight, "specificity": specificity}
    named = {field: pairs(values, field) for field, values in more.items() if values}
    if kind is None and not named and max_drop is None and overall_drop is None and not tolerance and costs is None:
        return None
    chosen = kind or ("overall" if method == "theta" else "floors")
    matrix = None if costs is None else read_costs(costs, classes)
    return Promise(chosen, tolerance=tolerance, max_drop=max_drop, overall_drop=overall_drop, costs=matrix, **named)  # type: ignore[arg-type]


def pairs(values: list[str], option: str) -> dict[str, float]:
    """``["cat=0.8"] -> {"cat": 0.8}``. Raises InputError for anything else."""
    found = {}
    for value in values:
        name, equals, number = value.rpartition("=")
        if name in found:
            raise InputError(f"--{option.rstrip('s')} is given twice for {name}; give it once.")
        try:
            found[name] = float(number)
        except ValueError:
            equals = ""
        if not equals or not name:
            raise InputError(f"{value!r} is not NAME=NUMBER, as --{option.rstrip('s')} cat=0.8.")
    return found


def read_costs(path: Path, classes: list[str] | None) -> np.ndarray:
    """A cost matrix: a ``.csv`` of numbers (with class names in its first row and column, or without), or a ``.json`` of rows or of
    ``{"true": {"predicted": cost}}`` with 0 for what is not named. Rows are true classes, columns predictions.

    Raises:
        InputError: the file cannot be read, is not such a matrix, or names unknown classes.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--costs {path}: cannot be read ({getattr(error, 'strerror', None) or 'not text'}).") from None
    try:
        if path.suffix.lower() == ".json":
            content = json.loads(text)
            return _named(content, path, classes) if isinstance(content, dict) else np.array(content, dtype=float)
        rows = [row for row in csv.reader(text.splitlines()) if any(cell.strip() for cell in row)]
        if rows and not _number(rows[0][0]):  # an empty or worded corner: names stand around the matrix
            heads = [cell.strip() for cell in rows[0][1:]]
            return _named({row[0].strip(): dict(zip(heads, map(float, row[1:]), strict=True)) for row in rows[1:]}, path, classes)
        return np.array([[float(cell) for cell in row] for row in rows], dtype=float)
    except InputError:
        raise
    except (ValueError, TypeError, IndexError):
        raise InputError(f"--costs {path}: is not a matrix of numbers, one row a true class, one column a prediction.") from None


def _named(content: dict[str, Any], path: Path, classes: list[str] | None) -> np.ndarray:
    if classes is None:
        raise InputError(f"--costs {path}: names classes, but the data names none; give a plain matrix.")
    matrix = np.zeros((len(classes), len(classes)))
    for true, row in content.items():
        if not isinstance(row, dict):
            raise ValueError(f"{row!r} is no row")
        for predicted, cost in row.items():
            for name in (true, predicted):
                if name not in classes:
                    raise InputError(f"--costs {path}: there is no class {name!r}; the classes are {', '.join(classes)}.")
            matrix[classes.index(true), classes.index(predicted)] = float(cost)
    return matrix


def _number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def subclasses(
    conditions: list[str] | None, train: Examples, validation: Examples | None
) -> dict[str, Any] | None:
    """``--target-column`` as masks: over the training data, or over both splits (the first None where it lacks the column).

    Raises:
        InputError: not COLUMN=VALUE, no such column, or no example has that value.
    """
    if not conditions:
        return None
    found: dict[str, Any] = {}
    for condition in conditions:
        last = mask_of(condition, validation if validation is not None else train)
        if validation is None:
            found[condition] = last
            continue
        try:
            found[condition] = (mask_of(condition, train), last)
        except InputError:
            found[condition] = last  # the training data need not say it: fits do not depend on the target
    return found


def mask_of(condition: str, examples: Examples) -> np.ndarray:
    """``hospital=B`` or ``hospital=B&label=melanoma`` as a mask ``(n,)``; ``label`` is the class. Raises InputError."""
    mask = np.ones(len(examples), dtype=bool)
    for part in condition.split("&"):
        name, equals, value = part.partition("=")
        name, value = name.strip(), value.strip()
        if not equals or not name or not value:
            raise InputError(f"--target-column {condition!r} is not COLUMN=VALUE, nor several of these with & between.")
        if name == "label" and "label" not in examples.columns:
            names = examples.classes or [str(j) for j in range(int(examples.labels.max()) + 1)]
            if value not in names:
                raise InputError(f"--target-column: there is no class {value!r}; the classes are {', '.join(names)}.")
            mask &= examples.labels == names.index(value)
            continue
        if name not in examples.columns:
            known = ", ".join(examples.columns) or "none"
            raise InputError(f"--target-column: {examples.name} has no column {name!r}; it has: {known}.")
        column = np.asarray(examples.columns[name])
        if column.dtype.kind in "iufb" and _number(value):
            mask &= column.astype(float) == float(value)
        else:
            mask &= np.array([str(cell) for cell in column]) == value
    if not mask.any():
        raise InputError(f"--target-column {condition!r}: no example of {examples.name} is like that.")
    return mask
