"""``tweaknn train`` and ``tweaknn structure``, end to end, on small images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tweaknn.cli.app import run
from tweaknn.cli.train import _standardised
from tweaknn.errors import ModelError
from tweaknn.inputs import Preprocess
from tweaknn.structure import load_directory
from tweaknn.structure.training import Recipe, Trainer

NET = """
import torch.nn as nn
from tests.structure.nets import TinyResNet
def make(num_classes=4): return TinyResNet(8, num_classes)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("train")
    (root / "net.py").write_text(NET)
    for name, n, seed in (("train", 160, 0), ("validation", 60, 1)):
        rng = np.random.default_rng(seed)
        y = np.arange(n) % 4
        x = rng.integers(40, 160, (n, 8, 8, 3)).astype(np.float64)
        x[:, :4, :, 0] += np.where(y % 2, 90, 0)[:, None, None]
        x[:, 4:, :, 1] += np.where(y // 2, 90, 0)[:, None, None]
        np.savez(root / f"{name}.npz", x=np.clip(x, 0, 255).astype(np.uint8), y=y)
    return root


def arguments(root: Path, out: str, *more: str) -> list[str]:
    return ["train", "--model", f"{root}/net.py:make", "--train", f"{root}/train.npz", "--validation",
            f"{root}/validation.npz", "--out", f"{root}/{out}", "--batch-size", "32", "--quiet", *more]  # fmt: skip


def test_train_structure_evaluate(folder: Path, capsys) -> None:
    assert run(arguments(folder, "a", "--epochs", "8", "--flops", "0.5", "--json", f"{folder}/a.json")) == 0
    figures = json.loads((folder / "a.json").read_text())
    assert figures["flops"] == pytest.approx(0.5, rel=0.05)
    assert figures["accuracy"] > 0.6
    assert set(figures["per_class"]) == {"0", "1", "2", "3"}
    assert not (folder / "a" / "checkpoint.pt").exists()
    capsys.readouterr()
    assert run(["structure", f"{folder}/a", "--picture", f"{folder}/a.png", "--json", f"{folder}/s.json"]) == 0
    shown = capsys.readouterr().out
    assert "conv1" in shown
    assert (folder / "a.png").stat().st_size > 5000
    assert run(["evaluate", "--model", f"{folder}/a", "--data", f"{folder}/validation.npz", "--json", f"{folder}/e.json"]) == 0
    assert json.loads((folder / "e.json").read_text())["base"]["overall"] == pytest.approx(figures["accuracy"])


def test_two_budgets_on_the_command_line(folder: Path) -> None:
    assert run(arguments(folder, "two", "--epochs", "8", "--flops", "0.6", "--params", "0.3", "--json", f"{folder}/two.json")) == 0
    figures = json.loads((folder / "two.json").read_text())
    assert max(figures["flops"] / 0.6, figures["params"] / 0.3) == pytest.approx(1.0, rel=0.05)


def test_without_a_budget_it_trains_plainly(folder: Path) -> None:
    assert run(arguments(folder, "plain", "--epochs", "2", "--json", f"{folder}/p.json")) == 0
    figures = json.loads((folder / "p.json").read_text())
    assert "flops" not in figures
    assert figures["params"] == 1.0
    assert isinstance(load_directory(folder / "plain"), torch.nn.Module)
    assert run(["structure", f"{folder}/plain"]) == 0


def test_every_epoch_is_logged_live(folder: Path, capsys) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    more = ["--epochs", "3", "--flops", "0.7", "--track", f"tensorboard:{folder}/tb"]
    assert run(arguments(folder, "live", *more)) == 0
    seen = events.EventAccumulator(str(folder / "tb" / "live")).Reload()
    log = [json.loads(line) for line in (folder / "live" / "log.jsonl").read_text().splitlines()]
    for key in ("loss", "validation", "flops", "params", "nu"):
        assert [e.step for e in seen.Scalars(key)] == [1, 2, 3]
        assert [e.value for e in seen.Scalars(key)] == pytest.approx([row[key] for row in log], rel=1e-5)
    assert run(arguments(folder, "none", "--track", "paper:x")) == 2
    assert "tensorboard:FOLDER" in capsys.readouterr().err
    assert not (folder / "none").exists()


def test_teacher_and_mend(folder: Path) -> None:
    assert run(arguments(folder, "teacher", "--epochs", "4")) == 0
    code = run(arguments(folder, "taught", "--epochs", "4", "--flops", "0.4", "--teacher", f"{folder}/teacher",
                         "--mend", "worst:1", "--json", f"{folder}/t.json"))  # fmt: skip
    assert code in (0, 3)
    figures = json.loads((folder / "t.json").read_text())
    assert "mend" in figures
    assert (folder / "taught" / "mend.dnn").is_file() == (code == 0)


def test_interrupted_run_resumes_to_the_same_network(folder: Path, monkeypatch, capsys) -> None:
    options = ("--epochs", "6", "--params", "0.5")
    assert run(arguments(folder, "whole", *options)) == 0
    real = Trainer.save
    counts = []

    def stop_after_two(self) -> None:
        real(self)
        counts.append(1)
        if len(counts) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "save", stop_after_two)
    assert run(arguments(folder, "broken", *options)) == 130
    monkeypatch.setattr(Trainer, "save", real)
    assert run(arguments(folder, "broken", *options)) == 2  # not overwritten by accident
    assert run(arguments(folder, "broken", "--epochs", "6", "--params", "0.6", "--resume")) == 2
    assert run(arguments(folder, "broken", *options, "--resume")) == 0
    a, b = (load_directory(folder / name).state_dict() for name in ("whole", "broken"))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_nan_loss_stops_with_the_step_and_keeps_the_last_epoch(folder: Path) -> None:
    from tests.structure.nets import TinyResNet
    from tweaknn.inputs import load_data

    train, held = (load_data(f"{folder}/{n}.npz") for n in ("train", "validation"))
    trainer = Trainer(TinyResNet(), train, held, Recipe(epochs=4, batch_size=32, prune={"flops": 0.5}),
                      out=folder / "nan", spec=f"{folder}/net.py:make")  # fmt: skip
    real = trainer._loss
    seen = []

    def poisoned(x, y):
        seen.append(1)
        return real(x, y) * (float("nan") if len(seen) == 8 else 1.0)

    trainer._loss = poisoned
    with pytest.raises(ModelError, match=r"became nan at step 8 of 20; the checkpoint of epoch 1 is kept"):
        trainer.run()
    assert (folder / "nan" / "checkpoint.pt").is_file()


@pytest.mark.parametrize(("more", "sentence"), [
    (("--flops", "0.0001"), "smallest working network"),
    (("--flops", "2"), "(0, 1]"),
    (("--flops", "0.5", "--nu", "1"), "not both"),
    (("--flops", "0.5", "--latency", "0.5"), "one budget"),
    (("--resume",), "no interrupted run"),
    (("--mend", "worst:x"), "whole number"),
    (("--mend", "worst:40"), "classes have examples in --validation"),
    (("--rate", "-1"), "rate"),
])  # fmt: skip
def test_bad_input_is_one_sentence(folder: Path, capsys, more, sentence) -> None:
    assert run(arguments(folder, "bad", "--epochs", "1", *more)) == 2
    said = capsys.readouterr().err
    assert sentence in " ".join(said.split())
    assert "Traceback" not in said


class _Rows:
    def __init__(self, x: torch.Tensor):
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, index: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        return self.x[index], torch.zeros(len(index), dtype=torch.int64)


@pytest.mark.parametrize("shape", [(300, 4), (300, 3, 5, 5)])
def test_inputs_are_standardised_by_channel_or_column(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 7 + 3
    x[:, 1] = 5.0  # a constant one is only shifted
    found = _standardised(Preprocess(), _Rows(x))
    axes = (0, *range(2, x.dim()))
    assert np.allclose(found.mean, x.double().mean(axes), rtol=1e-6)
    std = x.double().std(axes, correction=0)
    std[1] = 1.0
    assert np.allclose(found.std, std, rtol=1e-6)


@pytest.mark.parametrize("x", [torch.randn(20, 3, 4), torch.full((20, 4), float("nan")), torch.zeros(20, 4, dtype=torch.int64)])
def test_what_has_no_channels_or_no_numbers_is_left_alone(x: torch.Tensor) -> None:
    plain = Preprocess()
    assert _standardised(plain, _Rows(x)) is plain


def test_a_warning_is_a_sentence_without_a_path(folder: Path, capsys) -> None:
    (folder / "narrow.py").write_text(
        "import torch.nn as nn\n"
        "def make(num_classes=4):\n"
        "    return nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, num_classes))\n"
    )
    words = arguments(folder, "narrow", "--epochs", "2", "--flops", "0.5")
    words[2] = f"{folder}/narrow.py:make"
    assert run(words) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "flops 0.5 was not met exactly: the nearest the gates of this network give is 0.66" in said
    assert "pruner.py" not in said
