"""``hf:FOLDER``: a classifier saved by Transformers, read from a local folder."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from tweaknn.errors import ModelError
from tweaknn.inputs import load_model

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("hf")
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=32,
        patch_size=16,
        id2label={0: "ant", 1: "bee", 2: "cow"},
    )
    transformers.ViTForImageClassification(config).save_pretrained(path)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(path)
    return path


def test_a_local_folder(folder):
    loaded = load_model(f"hf:{folder}")
    assert loaded.classes == ["ant", "bee", "cow"]
    x = loaded.preprocess(Image.fromarray(np.zeros((50, 40, 3), dtype=np.uint8)))
    assert x.shape == (3, 32, 32)
    with torch.inference_mode():
        assert loaded.module(x[None]).logits.shape == (1, 3)


def test_what_cannot_be_loaded(folder, tmp_path):
    with pytest.raises(ModelError, match="leave --weights out"):
        load_model(f"hf:{folder}", weights="a.pt")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(f"hf:{tmp_path}")
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=50
    )
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path / "bert")
    with pytest.raises(ModelError, match="no classifier of images"):
        load_model(f"hf:{tmp_path / 'bert'}")
