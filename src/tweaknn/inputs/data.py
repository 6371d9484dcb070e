"""``load_data``: a folder, Parquet, ``.npz`` or ``file.py:function`` to :class:`Examples`."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from pathlib import Path

import numpy as np

from tweaknn.errors import DataError
from tweaknn.inputs.examples import Examples, Transform
from tweaknn.inputs.folder import load_folder
from tweaknn.inputs.labels import _plain, _some
from tweaknn.inputs.npz import load_npz
from tweaknn.inputs.parquet import is_parquet, load_parquet
from tweaknn.inputs.raw import Raw
from tweaknn.inputs.sources import ImageSource
from tweaknn.inputs.userfile import call_user, load_function, split_spec
from tweaknn.inputs.wrap import as_examples


def load_data(
    spec: str | Path,
    *,
    preprocess: Transform | str | None = None,
    classes: Sequence[str] | None = None,
    group: str | None = None,
    skip_unreadable: bool = False,
) -> Examples:
    """Labelled examples from a user's words.

    ``spec``: a folder of class folders; a Parquet file, a folder of them or a pattern with ``*``
    (Hugging Face image
    convention); an ``.npz`` with ``x``, ``y`` and optionally ``classes`` and further columns;
    ``file.py:function``
    returning a ``Dataset`` of ``(x, y)``. ``preprocess``: a :class:`Preprocess`, a function from PIL image or
    array (or row) to tensor, or ``file.py:function`` naming one. ``classes``: names whose order the
    labels shall
    have (matched by name; data without names keeps its labels and takes these names). ``group``: a
    column that must
    be there. ``skip_unreadable``: leave damaged images out and count them in ``.skipped`` rather than raise.

    Raises :class:`~tweaknn.errors.DataError` in one sentence for everything that can be wrong with the data.
    """
    text = str(spec)
    if isinstance(preprocess, str):
        preprocess = load_function(preprocess)
    examples = _load(text, preprocess)
    if skip_unreadable:
        examples = _without_unreadable(examples)
    if group is not None:
        examples.column(group)
    return examples if classes is None else _in_order(examples, list(classes))


def _load(text: str, preprocess: Transform | None) -> Examples:
    if split_spec(text) is not None:
        made = call_user(load_function(text, DataError), text, DataError)
        examples = as_examples(made, name=text)
        if preprocess is not None and examples.preprocess is None:
            examples.preprocess = preprocess
        return examples
    path = Path(text)
    raw: Raw
    if any(ch in text for ch in "*?[") and not path.exists():
        files = sorted(Path(found) for found in glob(text))
        if not files:
            raise DataError(f"no file matches '{text}'.")
        raw = load_parquet(files, text)
    elif path.is_dir():
        shards = sorted(file for file in path.iterdir() if is_parquet(file))
        raw = load_parquet(shards, text) if shards else load_folder(path)
    elif not path.exists():
        raise DataError(f"there is no file or folder '{text}'.")
    elif path.suffix == ".npz":
        raw = load_npz(path)
    elif is_parquet(path):
        raw = load_parquet([path], text)
    else:
        raise DataError(f"'{text}' is neither a folder of class folders, a Parquet file, an .npz nor file.py:function.")
    return Examples(
        raw.source,
        raw.labels,
        classes=raw.classes,
        preprocess=preprocess,
        columns=raw.columns,
        name=text,
        notes=raw.notes,
        answers=raw.answers,
    )


def _without_unreadable(examples: Examples) -> Examples:
    """Decode every image once (keeping it where the cache allows) and leave out those that fail."""
    source = examples.source
    if not isinstance(source, ImageSource) or source.in_memory:
        return examples

    def problem(i: int) -> str | None:
        try:
            source.image(i)
        except DataError:
            return source.where(i)
        return None

    with ThreadPoolExecutor(4) as pool:
        bad = list(pool.map(problem, range(len(source))))
    good = np.array([where is None for where in bad])
    if good.all():
        return examples
    if not good.any():
        raise DataError(f"{examples.name}: none of the {len(good)} images can be read; the first is {bad[0]}.")
    part = examples.subset(good)
    part.skipped_names = [where for where in bad if where is not None]
    part.notes = [*part.notes, f"{part.skipped} unreadable images were left out"]
    return part


def _in_order(examples: Examples, classes: list[str]) -> Examples:
    if examples.classes is None:
        top = int(examples.labels.max())
        if top >= len(classes):
            first = int(np.argmax(examples.labels >= len(classes)))
            raise DataError(
                f"{examples.name}: label {int(examples.labels[first])} at example {first} lies outside the "
                f"{len(classes)} classes ({_some(classes)})."
            )
        return examples.relabelled(examples.labels, classes)
    at = {name: j for j, name in enumerate(classes)}
    if not all(name in at for name in examples.classes):
        loose = {_plain(name): j for name, j in at.items()}
        if all(_plain(name) in loose for name in examples.classes):
            at = {name: loose[_plain(name)] for name in examples.classes}
    unknown = [name for name in examples.classes if name not in at]
    if unknown:
        raise DataError(
            f"{examples.name}: {len(unknown)} classes ({_some(unknown)}) are not among the {len(classes)} known: "
            f"{_some(classes, 12)}."
        )
    mapping = np.array([at[name] for name in examples.classes])
    return examples.relabelled(mapping[examples.labels], classes)
