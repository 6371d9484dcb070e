"""Every snippet of the documentation runs, and the site builds without a warning."""

from __future__ import annotations

import importlib.util
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    "index.md", "tutorial-photos.md", "tutorial-images.md", "tutorial-table.md", "tutorial-prune.md", "prune.md", "deltas.md",
    "mend.md", "observe.md",
]  # fmt: skip
WITH_SHELL = ["tutorial-photos.md", "prune.md"]
"""Pages whose shell lines run too, in their order among the snippets."""


def snippets(page: Path, kinds: str = "python") -> list[tuple[str, str]]:
    """Fenced blocks of these kinds, each with its kind, in their order."""
    return re.findall(rf"^```({kinds})\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


def run_line(line: str) -> None:
    """A line of a shell block: ``python FILE`` or ``tweaknn ...``, in this process."""
    from tweaknn.cli.app import run

    program, *words = shlex.split(line, comments=True)
    if program == "python":
        runpy.run_path(words[0], run_name="__main__")
    else:
        assert program == "tweaknn"
        assert run(words) == 0, line


def execute(page: Path, space: dict[str, object], kinds: str = "python") -> None:
    """Run a page's snippets; one that begins with ``# NAME.py`` is that file."""
    found = snippets(page, kinds)
    assert found
    for k, (kind, code) in enumerate(found):
        named = re.match(r"# (\w+\.py)\n", code)
        if kind == "sh":
            for line in code.replace("\\\n", " ").splitlines():
                run_line(line)
        elif named:
            Path(named[1]).write_text(code, encoding="utf-8")
        else:
            exec(compile(code, f"{page.name}, snippet {k + 1}", "exec"), space)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder to work in; files made there can be imported, and torch's generator is as before afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    state = torch.random.get_rng_state()
    before = set(sys.modules)
    yield tmp_path
    torch.random.set_rng_state(state)
    for name in set(sys.modules) - before:  # a page's net.py is not the next one's
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


def given(name: str) -> dict[str, object]:
    """What a page takes for granted: a network and loaders by the names that it uses."""
    from torch.utils.data import DataLoader, TensorDataset

    from tweaknn.demo import digits, train_base

    if name not in ("mend.md", "observe.md", "README.md"):
        return {}
    data = digits(0)
    names = [*(f"class {k}" for k in range(8)), "melanoma", "nevus"]  # the 8 is what this network is bad at
    space: dict[str, object] = {"model": train_base(*data.base, epochs=25 if name == "README.md" else 10), "names": names, "classes": names}
    for part in ("train", "validation", "test"):
        # the pages with two joins are here for their words, not for their figures
        x, y = (values[: None if name == "README.md" else 200] for values in getattr(data, part))
        space[f"{part}_loader"] = DataLoader(TensorDataset(x, y), batch_size=100)
    return {**space, "loader": space["train_loader"], "example_x": data.test[0][:2], "images": data.test[0][:4]}


@pytest.mark.parametrize("name", PAGES)
def test_snippets_run_in_their_order(name, folder):
    kinds = "python|sh" if name in WITH_SHELL else "python"
    execute(ROOT / "docs" / name, {"__name__": name, **given(name)}, kinds)


def test_every_page_with_snippets_is_run():
    pages = [path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md") if snippets(path)]
    assert sorted(map(str, pages)) == sorted(PAGES)


def test_readme_dozen_lines(folder):
    """README's example, with a network and data of the names it uses."""
    space = given("README.md")
    model = space["model"]
    execute(ROOT / "README.md", space)
    assert (folder / "melanoma.delta.safetensors").is_file()
    assert space["model"] is model


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


@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="pip install 'tweaknn[docs]'")
def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    # a theme's advertisement is no warning of ours
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    assert "WARNING" not in done.stderr
    assert (tmp_path / "site" / "format" / "index.html").is_file()
    reference = (tmp_path / "site" / "api" / "index.html").read_text(encoding="utf-8")
    for name in ("structure.saved.save_directory", "theta.observe.observe", "measure.drift.compare", "fit.convex.fit_linear"):
        assert f'id="tweaknn.{name}"' in reference
    shutil.rmtree(tmp_path / "site")
