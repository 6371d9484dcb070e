"""The hand-made evil files of ``attacks/``: each is refused in one sentence, and leaves no trace."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import resource
import time
import tracemalloc
from pathlib import Path

import pytest

from tweaknn.delta import Delta
from tweaknn.errors import DeltaError

FOLDER = Path(__file__).resolve().parents[2] / "attacks"
spec = importlib.util.spec_from_file_location("make_attacks", FOLDER / "make.py")
assert spec is not None
assert spec.loader is not None
make = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make)


@pytest.mark.parametrize("name", sorted(make.ATTACKS))
def test_attack_is_refused(name, tmp_path, monkeypatch):
    path = tmp_path / f"{name}.delta"
    make.ATTACKS[name](path)
    monkeypatch.chdir(tmp_path)
    before = sorted(os.listdir(tmp_path))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.monotonic()
    with pytest.raises(DeltaError) as caught:
        Delta.load(str(path))
    assert "\n" not in str(caught.value).strip()
    assert len(str(caught.value)) < 500 + len(str(path))
    assert time.monotonic() - start < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 100_000  # KiB
    assert sorted(os.listdir(tmp_path)) == before


def test_the_untouched_file_is_fine(tmp_path):
    make.honest(tmp_path / "a.delta")
    assert Delta.load(str(tmp_path / "a.delta")).n_classes == 4


def test_every_attack_is_described():
    text = (FOLDER / "README.md").read_text()
    assert [name for name in make.ATTACKS if f"`{name}`" not in text] == []


MANY = 300_000
"""Bytes, about, that the files below spend on what they try."""
GREEDY = {
    "empty objects": lambda h, t: h.update(meta={"a": [{}] * (MANY // 4)}),
    "objects of one entry": lambda h, t: h.update(meta={"a": [{"": 0}] * (MANY // 12)}),
    "empty lists": lambda h, t: h.update(meta={"a": [[]] * (MANY // 4)}),
    "numbers": lambda h, t: h.update(meta={"a": [0.5] * (MANY // 5)}),
    "a word in another script": lambda h, t: h.update(kind="\u4e00" * (MANY // 7)),
    "weights": lambda h, t: t.update(cargo=make.torch.zeros(MANY // 4)),
}


def peak(path: Path) -> int:
    """Most bytes of Python's that opening a file takes, the file's content among them."""
    tracemalloc.start()
    try:
        with contextlib.suppress(DeltaError):
            Delta.load(str(path))
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", [*sorted(make.ATTACKS), *GREEDY])
def test_memory_is_bounded_by_the_size_of_the_file(name, tmp_path):
    """The limit that docs/format.md states: 24 bytes a byte of the file, and 64 MB for a header's many small parts."""
    path = tmp_path / "a.delta"
    (make.ATTACKS[name] if name in make.ATTACKS else make._forged(GREEDY[name]))(path)
    size = path.stat().st_size
    few = name not in ("empty objects", "objects of one entry", "empty lists")
    assert peak(path) < 24 * size + (1_000_000 if few else 64_000_000)


def test_a_header_of_too_many_parts_is_refused_before_it_is_parsed(tmp_path):
    path = tmp_path / "a.delta"
    text = json.dumps({"__metadata__": {"tweaknn": ""}, "a": [{}] * 250_000}).encode()
    make._raw(text)(path)
    assert peak(path) < 4 * len(text)
    with pytest.raises(DeltaError, match="lists and objects"):
        Delta.load(str(path))


def test_a_header_of_too_many_parts_is_not_written(tmp_path):
    delta = make._delta()
    delta.meta.update(a=[[]] * 250_000)
    with pytest.raises(DeltaError, match="lists and objects"):
        delta.save(str(tmp_path / "a.delta"))
    assert not list(tmp_path.iterdir())
