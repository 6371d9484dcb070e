"""Lightning, scikit-learn, torchmetrics and the Hub, each used as its users would."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.delta.nets import Small, delta_for, examples, network
from tweaknn.delta import Delta
from tweaknn.delta.combine import combine
from tweaknn.delta.file import to_bytes
from tweaknn.delta.hub import FILE, card, from_pretrained, push_to_hub, save_pretrained
from tweaknn.errors import DeltaError, InputError
from tweaknn.integrations import MendedClassifier, diagnosis_callback, per_class_metrics
from tweaknn.network import Reader, fingerprint

NET = network(Small)
READER = Reader(NET, examples(2))


# -- combining -------------------------------------------------------------------------------------------------------


def biased(*values: float) -> Delta:
    return Delta((), torch.tensor(values), fingerprint(ONE), (3,))


class Identity(nn.Module):
    """Logits are the input: accuracies can be counted by hand."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return x * self.scale


ONE = Identity()
POINTS = torch.tensor([[2.0, 1.5, 0], [2.0, 1.0, 0], [0, 3.0, 2.0], [0, 3.0, 2.2], [1.2, 0, 1], [1, 0, 3.0]])
LABELS = torch.tensor([0, 0, 1, 1, 2, 2])


def test_deltas_that_agree_are_summed():
    found = combine([biased(0, 0, 0.3), biased(0, 0, 0.1)], ONE, [(POINTS, LABELS)], names=["a", "b"])
    assert found.conflicts == []
    np.testing.assert_allclose(found.accuracy["base"], [1, 1, 0.5])
    np.testing.assert_allclose(found.accuracy["together"], [1, 1, 1])
    torch.testing.assert_close(found.require().bias, torch.tensor([0, 0, 0.4]))


def test_conflicts_are_reported_and_not_silently_summed():
    # each alone leaves class 1 alone; together they take it
    found = combine([biased(0, -0.5, 0), biased(0, 0, 0.5)], ONE, [(POINTS, LABELS)], names=["a", "b"])
    assert len(found.conflicts) == 1
    assert "class 1" in found.conflicts[0]
    with pytest.raises(InputError, match="conflict"):
        found.require()
    # what one wins for class 2 the other takes away
    found = combine([biased(0, 0, 0.3), biased(0.4, 0, 0)], ONE, [(POINTS, LABELS)], names=["a", "b"])
    assert "a brings it from 50.0% to 100.0%, together it is 50.0%" in found.conflicts[0]
    with pytest.raises(InputError, match="at least two"):
        combine([biased(0, 0, 1.0)], ONE, [(POINTS, LABELS)])


# -- the Hub ---------------------------------------------------------------------------------------------------------


def with_figures() -> Delta:
    delta = delta_for(NET, READER)
    figures = {"per_class": {"ant": 0.9, "bee": 0.6, "cow": None}, "target": 0.9, "overall": 0.8}
    meta = {
        "chosen": "fit",
        "sentence": "ant gains.",
        "base": {"per_class": {"ant": 0.5, "bee": 0.7, "cow": None}},
        "candidates": {"fit": figures, "bias": {**figures, "target": 0.6}},
        "warnings": ["thin"],
    }
    return Delta(**{**{n: getattr(delta, n) for n in delta.__dataclass_fields__}, "meta": meta})


def test_a_folder_and_its_card(tmp_path):
    delta = with_figures()
    save_pretrained(delta, tmp_path / "new" / "d", base_model="someone/net")
    assert to_bytes(from_pretrained(tmp_path / "new" / "d")) == to_bytes(delta)
    delta.save_pretrained(tmp_path / "method", base_model="someone/net")
    assert to_bytes(Delta.from_pretrained(tmp_path / "method")) == to_bytes(delta)
    text = (tmp_path / "new" / "d" / "README.md").read_text()
    assert (tmp_path / "method" / "README.md").read_text() == text
    assert "| ant | 50.0% | 90.0% | gains |" in text
    assert "| bee | 70.0% | 60.0% | **pays** |" in text
    assert "base_model: someone/net" in text
    assert "bias: targets 60.0%" in text
    assert delta.base in text
    assert "carries none" in card(delta_for(NET, READER))
    with pytest.raises(DeltaError):
        from_pretrained(tmp_path)


def test_uploading_hands_the_folder_to_the_hub(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    seen = {}

    class Api:
        def __init__(self, token=None):
            pass

        def create_repo(self, repo_id, private, exist_ok):
            seen["repo"] = repo_id

        def upload_folder(self, repo_id, folder_path, commit_message):
            from pathlib import Path

            seen["files"] = sorted(p.name for p in Path(folder_path).iterdir())
            return "https://example/commit"

    monkeypatch.setattr(hub, "HfApi", Api)
    assert push_to_hub(with_figures(), "someone/delta") == "https://example/commit"
    assert seen == {"repo": "someone/delta", "files": ["README.md", FILE]}
    assert with_figures().push_to_hub("someone/other") == "https://example/commit"
    assert seen["repo"] == "someone/other"


# -- scikit-learn ----------------------------------------------------------------------------------------------------


def table(n=240, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 6)).astype(np.float32)
    y = (x[:, :3] + 0.3 * rng.normal(size=(n, 3))).argmax(1)
    return x, y


def half_trained():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3))
    x, y = table(60, 1)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(10):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(torch.from_numpy(x)), torch.from_numpy(y)).backward()
        optimizer.step()
    return net


def test_the_estimator_keeps_the_conventions():
    from sklearn.base import clone
    from sklearn.exceptions import NotFittedError
    from sklearn.model_selection import cross_val_score
    from sklearn.pipeline import make_pipeline

    net = half_trained()
    before = fingerprint(net)
    x, y = table()
    estimator = MendedClassifier(network=net, worst=1, tolerance=0.02)
    assert estimator.get_params()["tolerance"] == 0.02
    assert clone(estimator).get_params().keys() == estimator.get_params().keys()
    with pytest.raises(NotFittedError):
        estimator.predict(x)
    assert estimator.fit(x, y) is estimator
    assert estimator.n_features_in_ == 6
    proba = estimator.predict_proba(x)
    np.testing.assert_allclose(proba.sum(1), 1, rtol=1e-5)
    np.testing.assert_array_equal(estimator.predict(x), estimator.classes_[proba.argmax(1)])
    assert estimator.score(x, y) >= 1 / 3
    assert len(cross_val_score(make_pipeline(MendedClassifier(network=net)), x, y, cv=2)) == 2
    with pytest.raises(ValueError):
        estimator.predict(x[:, :3])
    with pytest.raises(ValueError):
        estimator.fit(x * np.nan, y)
    with pytest.raises(InputError, match="trained network"):
        MendedClassifier().fit(x, y)
    with pytest.raises(ValueError, match="Unknown label type"):
        MendedClassifier(network=net).fit(x, y + 0.5)
    assert fingerprint(net) == before


# -- torchmetrics and Lightning --------------------------------------------------------------------------------------


def test_metrics_agree_with_our_own():
    pytest.importorskip("torchmetrics")
    from tweaknn.measure import measure

    g = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(60, 3, generator=g), torch.randint(3, (60,), generator=g)
    metrics = per_class_metrics(3, classes=["a", "b", "c"])
    for part in range(0, 60, 20):
        metrics.update(logits[part : part + 20], labels[part : part + 20])
    found, ours = metrics.compute(), measure(logits.numpy(), labels.numpy())
    for j, name in enumerate("abc"):
        assert float(found[f"accuracy_{name}"]) == pytest.approx(ours.per_class[j], abs=1e-6)
        assert float(found[f"auroc_{name}"]) == pytest.approx(ours.auroc[j], abs=1e-5)
    assert float(found["overall"]) == pytest.approx(ours.overall, abs=1e-6)
    assert float(found["balanced"]) == pytest.approx(ours.balanced, abs=1e-6)


def test_the_callback_diagnoses_each_epoch(tmp_path):
    lightning = pytest.importorskip("lightning")
    x, y = table(64)
    data = DataLoader(TensorDataset(torch.from_numpy(x), torch.from_numpy(y)), batch_size=32)

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = half_trained()

        def training_step(self, batch, _):
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def validation_step(self, batch, _):
            pass

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    callback = diagnosis_callback(module="net", classes=["a", "b", "c"])
    trainer = lightning.Trainer(
        max_epochs=2,
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        default_root_dir=tmp_path,
    )
    trainer.fit(Module(), data, data)
    assert [row["epoch"] for row in callback.history] == [0, 1]
    assert len(callback.history[0]["worst"]) == 3
    assert 0 <= callback.history[1]["accuracy/a"] <= 1
    assert "accuracy/worst" in trainer.callback_metrics


def test_the_classifier_takes_a_network_in_double_precision():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).double().eval()
    x, y = np.random.default_rng(0).normal(size=(90, 4)), np.arange(90) % 3
    assert MendedClassifier(net, targets=[1]).fit(x, y).predict(x).shape == (90,)


def test_the_classifier_takes_a_network_of_one_logit():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 6)).astype(np.float32)
    y = np.where(x[:, 0] + 0.5 * rng.normal(size=300) > 0.3, "yes", "no")
    net = nn.Sequential(nn.Linear(6, 1))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[2.0, 0, 0, 0, 0, 0]]))
        net[0].bias.fill_(-1.5)
    before = np.where(x[:, 0] * 2 - 1.5 > 0, "yes", "no")
    mended = MendedClassifier(network=net.eval(), targets=["yes"], promise="overall").fit(x, y)
    assert mended.predict_proba(x).shape == (300, 2)
    yes = y == "yes"
    assert (mended.predict(x) == y)[yes].mean() > (before == y)[yes].mean()
