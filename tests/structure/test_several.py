"""``--beta 0,0.5``: a network for every value, validation chooses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.structure.test_train_command import arguments, folder  # noqa: F401  (a fixture)
from tweaknn.cli.app import run
from tweaknn.structure import load_directory
from tweaknn.structure.training import Trainer

OPTIONS = ("--epochs", "4", "--flops", "0.5")


def test_validation_chooses_and_each_run_is_the_one_alone(folder: Path) -> None:  # noqa: F811
    values, alone = ("0", "0.5"), []
    for beta in values:
        assert run(arguments(folder, f"only{beta}", *OPTIONS, "--beta", beta, "--json", f"{folder}/only{beta}.json")) == 0
        alone.append(json.loads((folder / f"only{beta}.json").read_text()))
    assert run(arguments(folder, "both", *OPTIONS, "--beta", "0,0.5", "--json", f"{folder}/both.json")) == 0
    both = json.loads((folder / "both.json").read_text())
    for one, row in zip(alone, both["betas"]):
        assert (one["accuracy"], one["flops"]) == (row["validation"], row["flops"])
    best = max(range(2), key=lambda k: (alone[k]["accuracy"], -alone[k]["flops"]))
    assert both["accuracy"] == alone[best]["accuracy"]
    assert both["seconds"] == sum(r["seconds"] for r in both["betas"])
    a, b = (load_directory(folder / name).state_dict() for name in (f"only{values[best]}", "both"))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not list((folder / "both").glob("beta-*"))


def test_interrupted_in_the_second_network_it_goes_on(folder: Path, monkeypatch, capsys) -> None:  # noqa: F811
    more = (*OPTIONS, "--beta", "0,0.5")
    assert run(arguments(folder, "through", *more)) == 0
    real, trained = Trainer._epoch, []

    def stop(self: Trainer, *some: object) -> object:
        trained.append(self.out.name)
        if len(trained) == 7:
            raise KeyboardInterrupt
        return real(self, *some)

    monkeypatch.setattr(Trainer, "_epoch", stop)
    assert run(arguments(folder, "torn", *more)) == 130
    assert "--resume" in capsys.readouterr().err
    assert run(arguments(folder, "torn", *more)) == 2  # not overwritten by accident
    trained.clear()
    assert run(arguments(folder, "torn", *more, "--resume")) == 0
    assert trained == ["beta-0.5"] * 2  # nothing was trained twice
    a, b = (load_directory(folder / name).state_dict() for name in ("through", "torn"))
    assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize(("more", "sentence"), [
    (("--beta", "0.5"), "needs a budget"),
    (("--flops", "0.5", "--beta", "0,0"), "different values"),
    (("--flops", "0.5", "--beta", "0,x"), "takes numbers"),
    (("--flops", "0.5", "--beta", "0,2"), "between 0 and 1"),
    (("--flops", "0.5", "--beta", "0,0.5", "--resume"), "no interrupted run"),
])  # fmt: skip
def test_bad_values_are_one_sentence(folder: Path, capsys, more, sentence) -> None:  # noqa: F811
    assert run(arguments(folder, "none", "--epochs", "1", *more)) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert sentence in said
    assert "Traceback" not in said
    assert not list((folder / "none").glob("**/*.pt"))
