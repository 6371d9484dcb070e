"""``tweaknn train`` on what people bring: auxiliary heads, several labels, mixed pictures, teachers of other habits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from tweaknn.cli.app import run
from tweaknn.errors import InputError, ModelError
from tweaknn.inputs import Preprocess, load_model
from tweaknn.structure import ComplexityAware, analyse
from tweaknn.structure.teaching import taught

NET = """
import torch.nn as nn
def make(num_classes=4):
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, num_classes))
def colour(num_classes=4):
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, num_classes))
def tensors():
    import torch
    x = torch.rand(40, 1, 8, 8) * 7 + 3
    return torch.utils.data.TensorDataset(x, torch.arange(40) % 4)
def broken():
    import torch
    x = torch.rand(40, 1, 8, 8)
    x[5] = float("nan")
    return torch.utils.data.TensorDataset(x, torch.arange(40) % 4)
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("odd")
    (folder / "net.py").write_text(NET)
    rng = np.random.default_rng(0)
    y = np.arange(48) % 4
    x = rng.random((48, 1, 8, 8), dtype=np.float32) + y[:, None, None, None] * 0.2
    np.savez(folder / "grey.npz", x=x, y=y)
    np.savez(folder / "colour.npz", x=np.repeat(x, 3, 1) * np.array([1, 5, 9], np.float32)[:, None, None], y=y)
    np.savez(folder / "several.npz", x=x, y=np.stack([y % 2, y // 2, y == 1], 1).astype(np.int64))
    for i, image in enumerate(x):
        place = folder / "pictures" / ("a, b", "ü", "c", "d")[y[i]]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image[0] * 120).astype(np.uint8)).convert(("L", "RGBA", "P")[i % 3]).save(place / f"{i}.png")
    return folder


def train(root: Path, out: str, data: str, *more: str, model: str = "make", validation: str | None = None) -> int:
    where = lambda name: name if ".py:" in name else f"{root}/{name}"  # noqa: E731
    return run(["train", "--model", f"{root}/net.py:{model}", "--train", where(data), "--validation",
                where(validation or data), "--out", f"{root}/{out}", "--batch-size", "16", "--epochs", "1", "--quiet",
                *more])  # fmt: skip


class Auxiliary(nn.Module):
    """A head that runs in training only, as GoogLeNet's."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 8, 3)
        self.bn = nn.BatchNorm2d(6)
        self.early, self.late = nn.Linear(6, 4), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = F.relu(self.bn(self.a(x)))
        early = self.early(x.mean((2, 3))) if self.training else None
        late = self.late(F.relu(self.b(x)).mean((2, 3)))
        return late if early is None else (late, early)


def test_units_read_by_a_head_of_training_stay() -> None:
    torch.manual_seed(0)
    net, x = Auxiliary(), torch.randn(4, 3, 8, 8)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    plan = analyse(net, x)
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert "early" in plan.ungated["a"]
    assert plan.n_units == 8  # those of b, which the early head does not read
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    pruner = ComplexityAware(net, x, optimizer, steps=12, params=0.6)
    for _ in range(12):
        late, early = net(x)
        (late.square().mean() + early.square().mean()).backward()
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
    small = pruner.compact()
    assert len(small.train()(x)) == 2
    assert small.b.out_channels < 8


def test_several_labels_are_refused(root: Path, capsys) -> None:
    assert train(root, "several", "several.npz") == 2
    assert "several labels" in " ".join(capsys.readouterr().err.split())
    (root / "three.py").write_text("import torch.nn as nn\ndef make(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))\n")
    data = f"{root}/several.npz"
    assert run(["compare", "--model", f"{root}/three.py:make", "--train", data, "--test", data, "--target", "1",
                "--methods", "bias", "--out", f"{root}/compared"]) == 2  # fmt: skip
    assert "one class an example" in " ".join(capsys.readouterr().err.split())


def test_a_network_that_is_gated_or_cannot_be_copied_is_said_so() -> None:
    net, x = Auxiliary(), torch.randn(2, 3, 8, 8)
    pruner = ComplexityAware(net, x, steps=10, params=0.9)
    with pytest.raises(ModelError, match="gated already"):
        analyse(net, x)
    pruner.compact()
    torch.nn.utils.weight_norm(net.b)
    with pytest.raises(ModelError, match="cannot be copied"):
        analyse(net, x)


def test_pictures_get_the_channels_the_network_takes(root: Path) -> None:
    assert train(root, "pictures", "pictures", "--mend", "a, b", "--json", f"{root}/p.json") in (0, 3)
    assert json.loads((root / "p.json").read_text())["mend"]["targets"] == ["a, b"]


def test_a_folder_of_old_reads_pictures_too(root: Path) -> None:
    assert train(root, "old", "grey.npz") == 0
    file = root / "old" / "structure.json"
    record = json.loads(file.read_text())
    record["preprocess"]["channels"] = None
    file.write_text(json.dumps(record))
    assert load_model(f"{root}/old").preprocess(Image.new("RGBA", (8, 8))).shape == (1, 8, 8)


def test_colour_numbers_are_standardised_by_channel(root: Path) -> None:
    assert train(root, "colour", "colour.npz", model="colour") == 0
    said = load_model(f"{root}/colour").preprocess
    assert isinstance(said, Preprocess)
    assert said.mean is not None
    assert said.mean[2] == pytest.approx(9 * said.mean[0], rel=1e-3)
    assert said.note.startswith("preprocessing is what it was trained with")
    assert run(["diagnose", "--model", f"{root}/colour", "--data", f"{root}/colour.npz"]) == 0


def test_a_datasets_own_tensors_are_left_as_they_are(root: Path, capsys) -> None:
    assert train(root, "tensors", f"{root}/net.py:tensors") == 0
    assert "standardised" not in " ".join(capsys.readouterr().err.split())
    said = load_model(f"{root}/tensors").preprocess
    assert isinstance(said, Preprocess)
    assert said.mean is None


@pytest.mark.parametrize("side", ["train", "validation"])
def test_nan_inputs_are_named(root: Path, capsys, side: str) -> None:
    pair = [f"{root}/net.py:tensors", f"{root}/net.py:broken"]
    first, second = pair[::-1] if side == "train" else pair
    assert train(root, f"nan-{side}", first, validation=second) == 2
    assert "NaN" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("wish", ["nosuch", ",", "0,nosuch"])
def test_an_impossible_wish_is_refused_before_training(root: Path, capsys, wish: str) -> None:
    assert train(root, "wish", "grey.npz", "--mend", wish) == 2
    assert not (root / "wish").exists()


def test_an_earlier_networks_delta_does_not_stay(root: Path) -> None:
    assert train(root, "stale", "grey.npz") == 0
    (root / "stale" / "mend.dnn").write_bytes(b"of another network")
    assert train(root, "stale", "grey.npz", "--seed", "1") == 0
    assert not (root / "stale" / "mend.dnn").exists()


def test_interrupted_before_an_epoch_says_nothing_of_resuming(root: Path, capsys, monkeypatch) -> None:
    from tweaknn.structure.training import Trainer

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "_epoch", stop)
    assert train(root, "early", "grey.npz") == 130
    assert "--resume" not in " ".join(capsys.readouterr().err.split())


def test_a_network_that_fails_in_training_only_is_one_sentence(root: Path, capsys) -> None:
    (root / "only.py").write_text(
        "import torch.nn as nn\n"
        "class N(nn.Module):\n"
        "    def __init__(self, n):\n        super().__init__()\n        self.l = nn.Linear(64, n)\n"
        "    def forward(self, x):\n        return self.l(x.flatten(1)[:, : 60 if self.training else 64])\n"
        "def make(num_classes=4): return N(num_classes)\n"
    )
    code = run(["train", "--model", f"{root}/only.py:make", "--train", f"{root}/grey.npz", "--validation",
                f"{root}/grey.npz", "--out", f"{root}/only", "--epochs", "1", "--quiet"])  # fmt: skip
    assert code == 2
    assert "does not train on inputs of shape" in " ".join(capsys.readouterr().err.split())


def test_a_teacher_sees_its_own_numbers_and_answers_in_the_students_order() -> None:
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    image = np.random.default_rng(0).integers(0, 256, (9, 9, 3)).astype(np.uint8)
    theirs = Preprocess(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.1), channels=3)
    ours = Preprocess(mean=(0.1,), std=(0.7,))
    wrapped = taught(teacher, theirs, ["c", "a", "b"], ours, ["a", "b", "c"], "teacher")
    with torch.no_grad():
        want = teacher(theirs(image)[None])[:, [1, 2, 0]]
        assert torch.allclose(wrapped(ours(image)[None]), want, atol=1e-5)
    assert taught(teacher, ours, None, ours, ["a", "b", "c"], "teacher") is teacher
    assert taught(teacher, ours, ["0", "1", "2"], ours, ["a", "b", "c"], "teacher") is teacher
    with pytest.raises(InputError, match="'d' is in only one"):
        taught(teacher, ours, ["a", "b", "d"], ours, ["a", "b", "c"], "teacher")
    with pytest.raises(InputError, match="another size"):
        taught(teacher, Preprocess(resize=64), None, ours, ["a", "b", "c"], "teacher")


def test_names_are_printed_as_they_are(root: Path, capsys) -> None:
    names = ["[red]j", "[/b]", ":cat:", "[bold]x[/bold] y"]
    found = np.load(root / "grey.npz")
    np.savez(root / "names.npz", x=found["x"], y=found["y"], classes=np.array(names))
    assert train(root, "names", "names.npz") == 0
    shown = capsys.readouterr().out
    assert run(["diagnose", "--model", f"{root}/names", "--data", f"{root}/names.npz"]) == 0
    for text in (shown, capsys.readouterr().out):
        assert all(name in text for name in names)


def test_labels_that_are_no_positions_are_refused(root: Path, capsys) -> None:
    with np.load(root / "grey.npz") as stored:
        np.savez(root / "far.npz", x=stored["x"], y=stored["y"] * 1_000_000)
    assert train(root, "far", "far.npz") == 2
    assert "number its classes 0 to 3" in " ".join(capsys.readouterr().err.split())
    assert not (root / "far").exists()
