"""Texts and sounds with Hugging Face's classifiers, through the commands: dictionaries as batches."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.architecture_list import SOUND
from tweaknn.cli.app import run
from tweaknn.delta import Delta
from tweaknn.inputs import load_model

transformers = pytest.importorskip("transformers")

DATA = """
import numpy as np

WORDS = ["sun", "sea", "sky", "rain", "wind", "snow", "fog", "hail"]


class Texts:
    classes = ["warm", "cold", "wet"]

    def __init__(self, n, seed):
        rng = np.random.default_rng(seed)
        self.rows = [[int(w) for w in rng.integers(0, 8, size=rng.integers(2, 7))] for _ in range(n)]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        row = self.rows[i]
        return " ".join(WORDS[w] for w in row), int(np.bincount([w % 3 for w in row], minlength=3).argmax())


class Sounds:
    classes = ["low", "high"]

    def __init__(self, n, seed):
        self.rng = np.random.default_rng(seed)
        self.y = self.rng.integers(0, 2, n)
        self.x = [
            (np.sin(np.arange(800) * (0.05 + 0.2 * y) + self.rng.random()) + self.rng.normal(size=800)).astype(np.float32)
            for y in self.y
        ]

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i], int(self.y[i])


def texts_train(): return Texts(150, 0)
def texts_validation(): return Texts(120, 1)
def sounds_train(): return Sounds(100, 0)
def sounds_validation(): return Sounds(80, 1)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    here = tmp_path_factory.mktemp("hf")
    (here / "data.py").write_text(DATA)
    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "sun", "sea", "sky", "rain", "wind", "snow", "fog", "hail"]
    (here / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizerFast(str(here / "vocab.txt")).save_pretrained(here / "texts")
    config = transformers.BertConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        vocab_size=len(words),
        max_position_embeddings=12,
        id2label={0: "warm", 1: "cold", 2: "wet"},
    )
    transformers.BertForSequenceClassification(config).save_pretrained(here / "texts")
    small = transformers.Wav2Vec2Config(**{**SOUND, "num_hidden_layers": 1}, id2label={0: "low", 1: "high"})
    transformers.Wav2Vec2ForSequenceClassification(small).save_pretrained(here / "sounds")
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(here / "sounds")
    return here


@pytest.mark.parametrize("kind", ["texts", "sounds"])
def test_from_diagnose_to_evaluate(folder, kind):
    out, delta = folder / "figures.json", folder / f"{kind}.delta"
    common = ["--model", f"hf:{folder}/{kind}", "--json", str(out), "--batch-size", "32"]
    data = f"{folder}/data.py:{kind}"
    assert run(["diagnose", *common, "--data", f"{data}_validation"]) == 0
    target = json.loads(out.read_text())["worst"][0]
    split = ["--train", f"{data}_train", "--validation", f"{data}_validation"]
    assert (
        run(
            [
                "join",
                *common,
                *split,
                "--target",
                target,
                "--method",
                "fit",
                "--out",
                str(delta),
                "--promise",
                "overall",
            ]
        )
        == 0
    )
    assert run(["evaluate", *common, "--data", f"{data}_validation", "--delta", str(delta)]) == 0
    both = json.loads(out.read_text())
    assert both["tweaked"]["per_class"][target] > both["base"]["per_class"][target]
    loaded = load_model(f"hf:{folder}/{kind}")
    x = loaded.preprocess("sun sea" if kind == "texts" else torch.randn(800).numpy())
    batch = {key: torch.stack([value, value]) for key, value in x.items()}
    with torch.inference_mode():
        tweaked = Delta.load(str(delta)).attach(loaded.module, example_x=batch)
        assert tweaked(**batch).logits.shape == loaded.module(**batch).logits.shape
    export = ["export", "--model", f"hf:{folder}/{kind}", "--delta", str(delta), "--out", str(folder / "a.pt2")]
    assert run([*export, "--format", "pt2", "--data", f"{data}_validation"]) == 0


def test_a_text_without_a_tokenizer_is_one_sentence(folder, capsys):
    (folder / "net.py").write_text("import torch\n\ndef make():\n    return torch.nn.Linear(3, 3)\n")
    code = run(["diagnose", "--model", f"{folder}/net.py:make", "--data", f"{folder}/data.py:texts_train"])
    assert code == 2
    assert "tokenizer" in " ".join(capsys.readouterr().err.split())
