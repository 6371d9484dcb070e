"""A trained directory: what is written comes back the same, and nothing odd is believed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tweaknn.errors import ModelError
from tweaknn.inputs import Preprocess, load_model
from tweaknn.structure import ComplexityAware, architecture, load_directory, origin_of, save_directory
from tweaknn.structure.analyse import keep_working, run

SOURCE = '''
from tests.structure.nets import TinyResNet, Transformer, Grouped, Recurrent
def resnet(num_classes=4): return TinyResNet(8, num_classes)
def transformer(): return Transformer(True)
def heads(): return Transformer(False)
def grouped(): return Grouped()
def lstm(): return Recurrent()
'''
SHAPES = {"resnet": (2, 3, 8, 8), "transformer": (2, 6, 5), "heads": (2, 6, 5), "grouped": (2, 3, 8, 8), "lstm": (2, 6, 3)}


def cut_and_save(folder: Path, name: str = "resnet", seed: int = 0, into: str = "out") -> tuple[Path, torch.Tensor, torch.Tensor]:
    file = folder / "net.py"
    file.write_text(SOURCE)
    spec = f"{file}:{name}"
    torch.manual_seed(0)
    model = architecture(spec, 4)
    x = torch.randn(SHAPES[name], generator=torch.Generator().manual_seed(0))
    pruner = ComplexityAware(model, x, None, steps=10)
    pruner.possible = keep_working(pruner.plan, np.random.default_rng(seed).random(pruner.plan.n_gates) < 0.6)
    pruner.finished = True
    small = pruner.compact()
    want = run(small, (x,))[0]
    save_directory(folder / into, small, origin_of(pruner, spec, 4), classes=list("abcd"), preprocess=Preprocess(mean=(0.5,)))
    return folder / into, x, want


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("seed", [0, 1])
def test_round_trip(tmp_path: Path, name: str, seed: int) -> None:
    folder, x, want = cut_and_save(tmp_path, name, seed)
    assert {p.name for p in folder.iterdir()} == {"weights.safetensors", "structure.json"}
    model = load_directory(folder)
    assert torch.equal(run(model, (x,))[0], want)
    assert model.classes == list("abcd")
    loaded = load_model(folder)
    assert loaded.classes == list("abcd")
    assert loaded.preprocess.mean == (0.5,)
    assert torch.equal(run(loaded.module, (x,))[0], want)


def test_pruned_again(tmp_path: Path) -> None:
    folder, x, _ = cut_and_save(tmp_path)
    model = load_directory(folder)
    pruner = ComplexityAware(model, x, None, steps=10)
    pruner.possible = keep_working(pruner.plan, np.random.default_rng(5).random(pruner.plan.n_gates) < 0.7)
    pruner.finished = True
    small = pruner.compact()
    save_directory(tmp_path / "again", small, origin_of(pruner, "ignored"))
    assert torch.equal(run(load_directory(tmp_path / "again"), (x,))[0], run(small, (x,))[0])


def test_both_can_move_together(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    _, x, want = cut_and_save(tmp_path / "here")
    shutil.move(tmp_path / "here", tmp_path / "there")
    assert torch.equal(run(load_directory(tmp_path / "there" / "out"), (x,))[0], want)
    assert str(tmp_path) not in (tmp_path / "there" / "out" / "structure.json").read_text()


def _alter(folder: Path, **changes) -> None:
    file = folder / "structure.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def _drop(record: dict, key: str) -> dict:
    return {k: v for k, v in record.items() if k != key}


@pytest.mark.parametrize(("changes", "sentence"), [
    ({"version": 99}, "version 99"),
    ({"format": "other"}, "is not a tweaknn-structure"),
    ({"branches": [["nowhere", "bn2"]]}, "has no part 'nowhere'"),
    ({"branches": [["blocks.1", "conv1"]]}, "is not in"),
    ({"branches": "all"}, "'branches' is missing or has the wrong form"),
    ({"attributes": {"conv1.out_channels": 2}}, "cannot become"),
    ({"attributes": {"blocks.0.num_heads": -2}}, "'attributes' is missing or has the wrong form"),
    ({"spec": "torchvision:no_such_net"}, "cannot be built"),
    ({"spec": "torchvision:resnet18"}, "does not fit"),
    ({"spec": "os.system"}, "is not a network"),
    ({"classes": [1, 2]}, "'classes'"),
    ({"preprocess": {"evil": 1}}, "preprocessing is unusable"),
    ({"shapes": {}}, "is in only one of them"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(tmp_path: Path, changes: dict, sentence: str) -> None:
    folder, _, _ = cut_and_save(tmp_path)
    _alter(folder, **changes)
    with pytest.raises(ModelError, match=sentence):
        load_directory(folder)


def test_shapes_are_checked_against_the_original(tmp_path: Path) -> None:
    folder, _, _ = cut_and_save(tmp_path)
    shapes = json.loads((folder / "structure.json").read_text())["shapes"]
    for wanted in ([10**6, 3, 3, 3], [0, 3, 3, 3], [4]):
        _alter(folder, shapes={**shapes, "conv1.weight": wanted})
        with pytest.raises(ModelError, match="cannot be cut to"):
            load_directory(folder)
    _alter(folder, shapes={**shapes, "conv1.weight": [1, 3, 3, 3]})
    with pytest.raises(ModelError, match="does not fit"):
        load_directory(folder)


def test_damage_and_absence(tmp_path: Path) -> None:
    folder, _, _ = cut_and_save(tmp_path)
    whole = (folder / "weights.safetensors").read_bytes()
    (folder / "weights.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="truncated or altered"):
        load_directory(folder)
    (folder / "weights.safetensors").unlink()
    with pytest.raises(ModelError, match="has no weights"):
        load_directory(folder)
    (folder / "structure.json").write_text('{"format": "tweaknn-str')
    with pytest.raises(ModelError, match="damaged or incomplete"):
        load_directory(folder)
    with pytest.raises(ModelError, match="not a trained directory"):
        load_directory(tmp_path)


def test_a_save_killed_between_its_files_is_refused_not_mixed(tmp_path: Path, monkeypatch) -> None:
    """Two networks of one shape: the weights of the second must not be read with the classes and preprocessing of the first."""
    folder, _, _ = cut_and_save(tmp_path)
    model = load_directory(folder)
    with torch.no_grad():
        model.linear.weight.add_(1.0)
    replace, done = os.replace, []

    def killed(source, target):
        if done:
            raise KeyboardInterrupt
        done.append(target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        save_directory(folder, model, model.tweaknn_origin, classes=list("dcba"))
    monkeypatch.undo()
    with pytest.raises(ModelError, match="of another run"):
        load_directory(folder)
    save_directory(folder, model, model.tweaknn_origin, classes=list("dcba"))
    assert load_directory(folder).classes == list("dcba")
    record = json.loads((folder / "structure.json").read_text())
    del record["weights_sha256"]  # as written by earlier versions
    (folder / "structure.json").write_text(json.dumps(record))
    assert load_directory(folder).classes == list("dcba")


def test_code_inside_the_directory_is_not_run(tmp_path: Path) -> None:
    folder, _, _ = cut_and_save(tmp_path)
    (folder / "evil.py").write_text("raise SystemExit('ran')\n")
    _alter(folder, spec="evil.py:make")
    with pytest.raises(ModelError, match="code inside itself"):
        load_directory(folder)
    (tmp_path / "net.py").unlink()
    _alter(folder, spec="../net.py:resnet")
    with pytest.raises(ModelError, match="put it back"):
        load_directory(folder)


def test_nan_is_not_saved(tmp_path: Path) -> None:
    model = architecture("torchvision:squeezenet1_1", 3)
    with torch.no_grad():
        next(model.parameters())[0] = float("nan")
    from tweaknn.structure import Origin

    with pytest.raises(ModelError, match="NaN"):
        save_directory(tmp_path / "bad", model, Origin("torchvision:squeezenet1_1", 3))
    assert not (tmp_path / "bad").exists()
