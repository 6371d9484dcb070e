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


def test_readme_dozen_lines(tmp_path, monkeypatch):
    """README's example, with a network and data of the names it uses."""
    from tweaknn.demo import digits, train_base

    monkeypatch.chdir(tmp_path)
    state = torch.random.get_rng_state()
    data = digits(0)
    names = [*(f"class {k}" for k in range(8)), "melanoma", "class 9"]  # the 8 is what this network is bad at

    def loader(part):
        return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*part), batch_size=100)

    model = train_base(*data.base)
    space = {"model": model, "names": names, "images": data.test[0][:4], "test_loader": loader(data.test)}
    space |= {"train_loader": loader(data.train), "validation_loader": loader(data.validation)}
    found = snippets(ROOT / "README.md")
    assert found
    for code in found:
        exec(compile(code, "README.md", "exec"), space)
    assert (tmp_path / "melanoma.delta.safetensors").is_file()
    assert space["model"] is model
    torch.random.set_rng_state(state)


def test_commands_in_the_documentation_exist():
    """Every ``tweaknn COMMAND --option`` of README and docs is one the program knows."""
    import typer

    from tweaknn.cli.app import COMMANDS, app

    group = typer.main.get_command(app)
    known = {}
    for name in COMMANDS:
        command = group.get_command(None, name)
        known[name] = {word for option in command.params for word in (*option.opts, *option.secondary_opts)} | {"--help"}
    wrong = []
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for block in re.findall(r"^```(?:sh|bash|console)\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S):
            for line in block.replace("\\\n", " ").splitlines():
                line = line.split("#")[0]
                for command, words in re.findall(r"\btweaknn ([a-z]+)\b([^|;&]*)", line):
                    if command not in known:
                        wrong.append(f"{page.name}: tweaknn {command}")
                        continue
                    wrong += [
                        f"{page.name}: tweaknn {command} {word}"
                        for word in re.findall(r"(?<!\S)(--[a-z][a-z-]*)", words)
                        if word not in known[command]
                    ]
    assert not wrong


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="pip install 'tweaknn[docs]'")
def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "WARNING" not in done.stderr
    assert (tmp_path / "site" / "format" / "index.html").is_file()
    shutil.rmtree(tmp_path / "site")
