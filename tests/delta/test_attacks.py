"""The hand-made evil files of ``attacks/``: each is refused in one sentence, and leaves no trace."""

from __future__ import annotations

import importlib.util
import os
import resource
import time
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
