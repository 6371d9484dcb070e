"""Every snippet of the documentation runs, and the site builds without a warning."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
PAGES = ["index.md", "tutorial-images.md", "tutorial-table.md", "tutorial-prune.md", "deltas.md"]


def snippets(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


@pytest.mark.parametrize("name", PAGES)
def test_snippets_run_in_their_order(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = snippets(ROOT / "docs" / name)
    assert found
    state = torch.random.get_rng_state()
    space: dict[str, object] = {"__name__": name}
    for k, code in enumerate(found):
        exec(compile(code, f"{name}, snippet {k + 1}", "exec"), space)
    torch.random.set_rng_state(state)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="pip install 'tweaknn[docs]'")
def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "WARNING" not in done.stderr
    assert (tmp_path / "site" / "format" / "index.html").is_file()
    shutil.rmtree(tmp_path / "site")
