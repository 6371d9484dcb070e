"""Networks from files and libraries, weights from strangers, preprocessing, class names."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from tweaknn.errors import DataError, InputError, ModelError
from tweaknn.inputs import Preprocess, align, as_examples, load_model, match_classes, resolve_preprocess
from tweaknn.inputs.preprocess import of_timm, of_torchvision
from tweaknn.inputs.weights import infer_classes

from .conftest import picture

NET = """
import helper
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.bn = nn.BatchNorm2d(2)
        self.head = nn.Linear(2, 3)
    def forward(self, x):
        return self.head(self.bn(self.conv(x)).mean((2, 3)))
def make():
    return Net()
def named():
    net = Net()
    net.classes = ["a", "b", "c"]
    return net
def wrong():
    return 3
def broken():
    raise RuntimeError("boom")
"""


@pytest.fixture
def net(tmp_path: Path) -> str:
    (tmp_path / "helper.py").write_text("")
    (tmp_path / "net.py").write_text(NET)
    return f"{tmp_path}/net.py"


def test_file_function_leaves_no_trace(net):
    path = list(sys.path)
    made = load_model(f"{net}:make")
    assert sys.path == path
    assert "net" not in sys.modules
    assert not made.module.training
    assert made.classes is None
    assert made.preprocess.channels == 1
    assert load_model(f"{net}:named").classes == ["a", "b", "c"]
    assert type(load_model(f"{net}:make").module) is type(made.module)
    pickle.loads(pickle.dumps(made.module))


def test_an_edited_file_is_read_anew(net):
    assert load_model(f"{net}:make").module.head.out_features == 3
    Path(net).write_text(NET.replace("Linear(2, 3)", "Linear(2, 5)"))
    assert load_model(f"{net}:make").module.head.out_features == 5


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (":wrong", "must return an nn.Module, not int"),
        (":broken", "RuntimeError: boom"),
        (":other", "no function 'other'; it has: .*make"),
    ],
)
def test_bad_functions(net, spec, message):
    with pytest.raises(ModelError, match=message):
        load_model(net + spec)


def test_bad_specs(tmp_path):
    (tmp_path / "bad.py").write_text("import no_such_package_here")
    with pytest.raises(ModelError, match="fails on import: ModuleNotFoundError"):
        load_model(f"{tmp_path}/bad.py:make")
    with pytest.raises(ModelError, match="no file"):
        load_model(f"{tmp_path}/none.py:make")
    with pytest.raises(ModelError, match="not a network"):
        load_model("resnet18")
    with pytest.raises(ModelError, match="did you mean resnet18"):
        load_model("torchvision:resnet81")
    with pytest.raises(ModelError, match="cannot be used"):
        load_model(f"{tmp_path}/none.py:make", device="cuda:7")


def wraps(state):
    yield "plain.pt", state
    yield "wrapped.pth", {"state_dict": state, "epoch": 3}
    yield "twice.pt", {"checkpoint": 1, "model": {"state_dict": state}}
    yield "parallel.pt", {"model": {f"module.{k}": v for k, v in state.items()}}
    yield "compiled.pt", {f"_orig_mod.module.{k}": v for k, v in state.items()}


def test_weights_in_every_wrapping(net, tmp_path):
    torch.manual_seed(0)
    state = {k: v for k, v in load_model(f"{net}:make").module.state_dict().items() if "num_batches" not in k}
    state = {k: torch.rand_like(v) for k, v in state.items()}
    for name, content in wraps(state):
        torch.save(content, tmp_path / name)
    save_file(state, tmp_path / "s.safetensors")
    for name in [*(n for n, _ in wraps(state)), "s.safetensors"]:
        loaded = load_model(f"{net}:make", weights=tmp_path / name).module.state_dict()
        for key, value in state.items():
            assert torch.equal(loaded[key], value), (name, key)


def test_foreign_and_damaged_weights(net, tmp_path):
    state = load_model(f"{net}:make").module.state_dict()

    def attempt(content, message, name="w.pt"):
        if isinstance(content, bytes):
            (tmp_path / name).write_bytes(content)
        else:
            torch.save(content, tmp_path / name)
        with pytest.raises(ModelError, match=message):
            load_model(f"{net}:make", weights=tmp_path / name)

    attempt({k: v for k, v in state.items() if k != "head.bias"}, r"1 tensors are missing \(head.bias\)")
    attempt({**state, "extra": torch.zeros(1)}, r"1 are unexpected \(extra\)")
    attempt({**state, "head.weight": torch.zeros(4, 2)}, r"head.weight: \(4, 2\) instead of \(3, 2\)")
    attempt({**state, "head.bias": torch.full((3,), float("nan"))}, "NaN or infinite values in 'head.bias'")
    attempt({"a": 1}, "holds no tensors")
    torch.save(state, tmp_path / "w.pt")
    attempt((tmp_path / "w.pt").read_bytes()[:500], "cannot be read|damaged")
    attempt(b"", "cannot be read|damaged")
    attempt(b"junk", "cannot be read", "w.safetensors")
    with pytest.raises(ModelError, match="no weights file"):
        load_model(f"{net}:make", weights=tmp_path / "none.pt")


class Evil:
    def __reduce__(self):
        return (print, ("code ran",))


def test_weights_cannot_run_code(net, tmp_path, capsys):
    torch.save({"state_dict": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ModelError, match="could run code"):
        load_model(f"{net}:make", weights=tmp_path / "evil.pt")
    assert "code ran" not in capsys.readouterr().out


def test_torchvision_with_own_weights(tmp_path):
    from torchvision.models import squeezenet1_1

    module = squeezenet1_1(num_classes=7)
    torch.save(module.state_dict(), tmp_path / "w.pt")
    assert infer_classes(module.state_dict(), squeezenet1_1().state_dict()) == 7
    assert infer_classes(module.state_dict(), module.state_dict()) is None
    made = load_model("torchvision:squeezenet1_1", weights=tmp_path / "w.pt")
    assert made.module(torch.zeros(1, 3, 64, 64)).shape == (1, 7)
    assert made.classes is None
    assert made.preprocess.crop == (224, 224)


def test_torchvision_names_its_thousand_classes(tmp_path):
    from torchvision.models import squeezenet1_1

    torch.save(squeezenet1_1().state_dict(), tmp_path / "w.pt")
    assert load_model("torchvision:squeezenet1_1", weights=tmp_path / "w.pt").classes[0] == "tench"


def test_timm_with_own_weights(tmp_path):
    timm = pytest.importorskip("timm")
    module = timm.create_model("resnet10t", pretrained=False, num_classes=4, in_chans=3)
    save_file(module.state_dict(), tmp_path / "w.safetensors")
    made = load_model("timm:resnet10t", weights=tmp_path / "w.safetensors")
    assert made.module(torch.zeros(1, 3, 32, 32)).shape == (1, 4)
    with pytest.raises(ModelError, match="timm has no model"):
        load_model("timm:resnet_of_nobody")


def test_timm_missing_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModelError, match=r"pip install 'tweaknn\[timm\]'"):
        load_model("timm:resnet18")


def test_a_failed_download_is_one_sentence(monkeypatch):
    import torchvision.models as zoo

    def fail(*args, **kwargs):
        raise OSError("Name or service not known")

    monkeypatch.setattr(zoo, "get_model", fail)
    with pytest.raises(ModelError, match=r"could not be downloaded .*Name or service not known.*--weights"):
        load_model("torchvision:resnet18")


@pytest.mark.parametrize(
    "name", ["ResNet50_Weights", "EfficientNet_B1_Weights", "Inception_V3_Weights", "ViT_B_16_Weights"]
)
@pytest.mark.parametrize("size", [(640, 480), (300, 500), (200, 231)])
def test_preprocessing_equals_torchvision(name, size):
    import torchvision.models as zoo

    transform = getattr(zoo, name).DEFAULT.transforms()
    ours = of_torchvision(transform)
    assert isinstance(ours, Preprocess)
    image = picture(1, size)
    torch.testing.assert_close(ours(image), transform(image), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(
        ours(image.convert("L")), transform(image.convert("L").convert("RGB")), atol=1e-6, rtol=1e-5
    )


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "convnext_tiny", "mobilenetv3_small_100"])
def test_preprocessing_equals_timm(name):
    timm = pytest.importorskip("timm")
    config = timm.data.resolve_data_config({}, model=None, pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    transform = timm.data.create_transform(**config, is_training=False)
    image = picture(2, (320, 260))
    torch.testing.assert_close(of_timm(config)(image), transform(image), atol=1e-6, rtol=1e-5)


def test_resolve_preprocess(tmp_path):
    base = Preprocess(channels=1)
    assert resolve_preprocess(base)[0] is base
    assert "x/255" in resolve_preprocess(None)[1]
    done, note = resolve_preprocess(base, mean=[0.5], std=[0.2], size=16)
    assert (done.mean, done.std, done.resize, done.crop, done.channels) == ((0.5,), (0.2,), 16, (16, 16), 1)
    assert "0.5" in note
    x = done(Image.fromarray(np.full((40, 20), 255, np.uint8)))
    assert x.shape == (1, 16, 16)
    assert x.unique().item() == pytest.approx(2.5)
    (tmp_path / "p.py").write_text("def f(image):\n    return image\n")
    with pytest.raises(InputError, match="not both"):
        resolve_preprocess(base, function=f"{tmp_path}/p.py:f", mean=[0.5])
    assert resolve_preprocess(base, function=f"{tmp_path}/p.py:f")[0](3) == 3
    for bad in ({"std": [0.0]}, {"size": 0}, {"size": [1, 2, 3]}, {"mean": [float("nan")]}):
        with pytest.raises(InputError):
            resolve_preprocess(base, **bad)
    with pytest.raises(InputError, match="2 values but the examples have 3 channels"):
        Preprocess(mean=(0.1, 0.2))(picture(0))


def test_match_by_name_and_position():
    by_name = match_classes(["a", "b", "c"], ["c", "a"], 3)
    assert by_name.mapping.tolist() == [2, 0]
    assert by_name.by == "name"
    assert "1 of the network's 3 classes" in by_name.note
    assert match_classes(["T-shirt", "hat"], ["hat", "t shirt"], 2).mapping.tolist() == [1, 0]
    by_position = match_classes(None, ["x", "y"], 2)
    assert by_position.classes == ["x", "y"]
    assert "in order" in by_position.note
    assert match_classes(["a", "b"], None, 2).classes == ["a", "b"]
    assert match_classes(None, None, 3).classes == ["0", "1", "2"]


def test_match_refuses():
    with pytest.raises(DataError, match="disagree on the number of classes: the network has 3 outputs, the data 2"):
        match_classes(None, ["x", "y"], 3)
    with pytest.raises(DataError, match="does not know 1 of the data's 2 classes"):
        match_classes(["a", "b", "c"], ["a", "z"], 3)
    with pytest.raises(ModelError, match="names 2 classes but has 3 outputs"):
        match_classes(["a", "b"], None, 3)
    with pytest.raises(ModelError, match="two classes 'a'"):
        match_classes(["a", "a"], ["a"], 2)
    assert match_classes(["a", "a", "b"], ["b"], 3).mapping.tolist() == [2]


def test_align():
    data = as_examples((torch.zeros(4, 1), torch.tensor([0, 1, 1, 0])), classes=["dog", "cat"])
    aligned, match = align(data, ["ape", "cat", "dog"], 3)
    assert aligned.labels.tolist() == [2, 1, 1, 2]
    assert aligned.classes == ["ape", "cat", "dog"]
    assert match.note in aligned.notes
    assert data.labels.tolist() == [0, 1, 1, 0]
    plain = as_examples((torch.zeros(2, 1), torch.tensor([0, 5])))
    with pytest.raises(DataError, match="the first is 5 at example 1"):
        align(plain, None, 3)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text("abc", min_size=1, max_size=3), min_size=2, max_size=8, unique=True), st.randoms())
def test_matching_by_name_is_a_permutation_of_names(names, random):
    shuffled = list(names)
    random.shuffle(shuffled)
    match = match_classes(names, shuffled, len(names))
    assert [names[k] for k in match.mapping] == shuffled


def test_modules_with_several_inputs_still_load(tmp_path):
    (tmp_path / "m.py").write_text("from torch import nn\ndef make():\n    return nn.Sequential(nn.Linear(4, 2))\n")
    made = load_model(f"{tmp_path}/m.py:make")
    assert isinstance(made.module, nn.Sequential)
    assert made.preprocess is None
