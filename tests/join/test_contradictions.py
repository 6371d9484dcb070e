"""Settings that nothing would look at are errors of one sentence, not silence; groups hold on every side of a split."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tweaknn import Promise, SynapticJoin
from tweaknn.errors import InputError
from tweaknn.join import run
from tweaknn.join.aans import AANChoice

CLASSES = ["ant", "bee", "cat"]


def blobs(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3
    return torch.tensor(rng.normal(size=(n, 4)) + 2 * np.eye(4)[y], dtype=torch.float32), torch.tensor(y)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        made[0].weight[:4] = torch.eye(4)
        made[2].weight[:, :3] += torch.eye(3)
        made[2].bias[2] -= 1.0
    return made.eval()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"method": "fit", "aan": AANChoice(hidden=8)}, "makes none"),
        ({"method": "selected", "aan": AANChoice(form="grouped")}, "makes none"),
        ({"method": "aan-grouped", "aan": AANChoice(form="dense")}, "no dense form"),
        ({"method": "fit", "form": "signed"}, "which count"),
        ({"method": "fit", "form": "round"}, "Unknown form"),
        ({"method": "fit", "views": 0, "augment": "noise"}, "nothing would be augmented"),
        ({"method": "theta", "caution": 1.0}, "by the letter"),
        ({"method": "fit", "promise": Promise(), "tolerance": 0.1}, "in the promise alone"),
        ({"method": "theta", "confidence": 0.9}, "A confidence needs"),
        ({"method": "fit", "validation_share": 0.2}, "contradict each other"),
    ],
)
def test_a_setting_that_would_be_ignored_is_refused(settings, said):
    with pytest.raises(InputError, match=said):
        SynapticJoin(**settings).fit(net(), blobs(90, 0), blobs(90, 1), targets=["cat"], classes=CLASSES)


def test_a_share_to_set_aside_is_not_silently_cross_fitted():
    settings = {"method": "fit", "validation_share": 0.2, "base_saw": "none"}
    with pytest.raises(InputError, match="sets nothing aside"):
        SynapticJoin(**settings, cross_fit=True).fit(net(), blobs(90, 0), targets=[2])
    scarce = SynapticJoin(**settings).fit(net(), blobs(90, 0), targets=[2])
    assert scarce.settings["folds"] == 5
    assert any("no share is set aside" in sentence for sentence in scarce.warnings)
    apart = SynapticJoin(**settings, cross_fit=False).fit(net(), blobs(90, 0), targets=[2])
    assert apart.settings["n_validation"] == 18


def test_a_mixed_promise_says_what_limits_it():
    with pytest.raises(InputError, match="no tolerance of its own"):
        Promise("mixed", tolerance=0.05)
    join = SynapticJoin(method="fit", promise="mixed", base_saw="none", cross_fit=False)
    free = join.fit(net(), blobs(90, 0), blobs(90, 1), targets=[2])
    assert any("holds no rule" in sentence for sentence in free.warnings)
    join.promise = Promise("mixed", max_drop=0.5)
    assert not any("holds no rule" in s for s in join.fit(net(), blobs(90, 0), blobs(90, 1), targets=[2]).warnings)


def test_probabilities_are_not_taken_for_logits_without_a_word():
    join = SynapticJoin(method="fit", base_saw="none", cross_fit=False)
    for last, said in ((nn.Softmax(1), True), (nn.LogSoftmax(1), False)):
        found = join.fit(nn.Sequential(*net(), last).eval(), blobs(90, 0), blobs(90, 1), targets=[2])
        assert any("outputs are probabilities" in sentence for sentence in found.warnings) == said


def test_theta_has_no_caution_and_says_so():
    found = SynapticJoin(method="theta", base_saw="none").fit(net(), blobs(90, 0), blobs(90, 1), targets=[2])
    assert found.settings["caution"] == 0.0


def test_one_target_may_be_given_as_it_is():
    join = SynapticJoin(method="fit", base_saw="none", cross_fit=False)
    for target in ("cat", 2):
        assert join.fit(net(), blobs(90, 0), blobs(90, 1), targets=target, classes=CLASSES).targets == ["cat"]


@pytest.mark.parametrize("cross", [False, True])
def test_groups_of_validation_examples_are_not_parted_by_a_confidence(monkeypatch, cross):
    x, y = blobs(90, 1)
    x, y = x.repeat_interleave(4, 0), y.repeat_interleave(4)  # four examples of each patient, all alike
    parts = {}

    def spy(candidates, setting, warnings, settings, held, confidence):
        parts.update(choice=setting.validation, held=held[0])
        return original(candidates, setting, warnings, settings, held, confidence)

    original = run.conclude
    monkeypatch.setattr(run, "conclude", spy)
    join = SynapticJoin(method="fit", promise=Promise(tolerance=0.2), confidence=0.9, base_saw="train", cross_fit=cross)
    join.fit(net(), blobs(90, 0), (x, y), targets=[2], groups=(None, np.arange(360) // 4))
    chosen, kept = ({row.tobytes() for row in np.round(parts[k].logits, 3)} for k in ("choice", "held"))
    assert chosen
    assert kept
    assert not chosen & kept


def test_groups_of_the_wrong_number_or_of_nothing_are_refused():
    join = SynapticJoin(method="fit")
    with pytest.raises(InputError, match="90 validation examples and 3 groups"):
        join.fit(net(), blobs(90, 0), blobs(90, 1), targets=[2], groups=(None, np.arange(3)))
    with pytest.raises(InputError, match="no validation data"):
        join.fit(net(), blobs(90, 0), targets=[2], groups=(None, np.arange(90)))
