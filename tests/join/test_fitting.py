"""The default's candidates: sizes, layers, views, presets, and tables of awkward shapes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from tweaknn import Promise, SynapticJoin
from tweaknn.delta import Delta, Read
from tweaknn.demo import CLASSES, RARE, DigitsCNN, digits, train_base
from tweaknn.errors import InputError
from tweaknn.fit.aan import PRESETS
from tweaknn.join import reading as reading_module
from tweaknn.join.aans import AANChoice, aan
from tweaknn.join.candidates import (
    DAMPINGS,
    L2_GRID,
    affordable,
    best_linear,
    by_lot,
    controls,
    depth,
    fitted,
    strength,
)
from tweaknn.join.methods import table_candidates
from tweaknn.join.reading import VIEWS, Views, reading, views_of
from tweaknn.join.setting import Setting
from tweaknn.join.size import limit_of
from tweaknn.join.table import PooledTable
from tweaknn.network.reader import Reader


def made_up(n=400, widths=(30, 20), c=6, seed=0, views=0, limit=250_000, counts=None) -> Setting:
    """A setting without a network: layers of random neurons, some of which know the label."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, c, n) if counts is None else np.repeat(np.arange(c), counts)
    f, n = sum(widths), len(y)
    known = rng.normal(size=(c, f)) * (rng.random(f) < 0.3)
    x = (rng.normal(size=(n, f)) + known[y]).astype(np.float32)
    z = (rng.normal(size=(n, c)) + 1.2 * np.eye(c)[y]).astype(np.float32)
    reads = tuple(Read(f"layer{k}", "mean", (w, 4, 4), 0, torch.arange(w)) for k, w in enumerate(widths))
    more = tuple((x + rng.normal(size=x.shape).astype(np.float32) * 0.1, z) for _ in range(views))
    part = rng.permutation(n) < 2 * n // 3
    table = PooledTable(x, z, y, reads, more)
    frame = Delta((), torch.zeros(c), "0" * 64, (1,))
    held = replace(table.rows(np.flatnonzero(~part)), views=())
    names = [str(j) for j in range(c)]
    return Setting(table.rows(np.flatnonzero(part)), held, (0,), names, Promise("floors"), frame, seed, limit)


@pytest.mark.parametrize(
    ("n", "widths", "c", "limit"),
    [
        (600, (300, 100), 60, 20_000),  # more classes and neurons than the limit has room for
        (200, (900, 100), 4, 250_000),  # more neurons than examples
        (40, (10,), 3, 250_000),  # next to nothing
        (150, (2100, 100), 4, 250_000),  # wider than one fit reads
    ],
)
def test_no_candidate_is_larger_than_a_delta_may_be(n, widths, c, limit):
    setting = made_up(n=n, widths=widths, c=c, limit=limit)
    for candidate in table_candidates("best", setting):
        assert candidate.delta.parameters <= limit, candidate.name
        assert np.isfinite(candidate.logits).all()
    for method in ("aan-grouped", "selected", "net-gain"):
        assert table_candidates(method, setting)[0].delta.parameters <= limit


def test_the_limit_is_half_the_base_or_a_quarter_of_a_million():
    assert limit_of(nn.Linear(9, 7)) == 250_000
    assert limit_of(nn.Linear(1000, 1000)) == 1001 * 1000 // 2


def test_strength_is_the_gradient_of_the_loss_where_no_synapse_exists():
    setting = made_up()
    table = setting.train
    found = strength(table, np.arange(50))
    x = torch.from_numpy(table.features).double()
    x = (x - x.mean(0)) / x.std(0, correction=0)
    z, y = torch.from_numpy(table.logits).double(), torch.from_numpy(table.labels)
    b = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    for _ in range(2000):  # the biases' own optimum, plainly
        (slope,) = torch.autograd.grad(nn.functional.cross_entropy(z + b, y), b)
        b = (b - 2 * slope).detach().requires_grad_()
    w = torch.zeros(50, 6, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(nn.functional.cross_entropy(z + b.detach() + x @ w, y), w)
    np.testing.assert_allclose(found, slope.norm(dim=1).numpy(), rtol=2e-3, atol=1e-5)


def test_what_does_not_fit_is_left_out_weakest_first():
    setting = made_up(limit=6 + 6 * 12)
    kept = affordable(setting, np.arange(50), 6)
    assert len(kept) == 12
    score = strength(setting.train, np.arange(50))
    assert score[kept].min() >= np.delete(score, kept).max()
    assert (np.diff(kept) > 0).all()


def test_dead_neurons_are_never_strong_and_change_nothing():
    setting = made_up()
    dead = setting.train.features.copy()
    dead[:, 7] = 1e6
    dead[:, 8] = 0
    held = setting.validation.features.copy()
    held[:, 7], held[:, 8] = 1e6, 0
    setting = replace(
        setting,
        train=replace(setting.train, features=dead),
        validation=replace(setting.validation, features=held),
    )
    assert not strength(setting.train, np.array([7, 8])).any()
    for candidate in table_candidates("best", setting):
        assert np.isfinite(candidate.logits).all(), candidate.name
    assert not best_linear(setting).delta.terms[0].head.weight[[7, 8]].any() or best_linear(setting).notes["layers_fitted"] == "last"


def test_views_are_further_examples_of_the_convex_fit():
    setting = made_up(views=2)
    stacked = replace(
        setting,
        train=PooledTable(
            np.concatenate([setting.train.features, *(x for x, _ in setting.train.views)]),
            np.concatenate([setting.train.logits, *(z for _, z in setting.train.views)]),
            np.tile(setting.train.labels, 3),
            setting.train.reads,
        ),
    )
    one, two = (fitted(s, "fit", np.arange(50)) for s in (setting, stacked))
    np.testing.assert_allclose(one.logits, two.logits, atol=1e-4)
    alone = fitted(replace(setting, train=replace(setting.train, views=())), "fit", np.arange(50))
    assert np.abs(one.logits - alone.logits).max() > 1e-3


def test_another_target_on_the_same_tables_is_fitted_once(monkeypatch):
    from tweaknn.join import aans, candidates

    setting, fits = made_up(n=300), []
    for module, name in ((candidates, "LogisticProblem"), (aans, "fit_aan")):
        whole = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, whole=whole, **k: fits.append(1) or whole(*a, **k))
    first = table_candidates("best", setting)
    once = len(fits)
    other = table_candidates("best", replace(setting, targets=(1,)))
    assert len(fits) == once
    assert [c.name for c in other] == [c.name for c in first]
    fresh = replace(setting, validation=replace(setting.validation))
    table_candidates("best", fresh)
    assert len(fits) == 2 * once, "other validation data, other choices"


def test_depth_grows_from_the_first_layer_to_the_last():
    np.testing.assert_allclose(depth(made_up().train), np.repeat([0.5, 1.0], [30, 20]))


def test_an_early_useless_layer_is_not_read_where_validation_says_so():
    setting = made_up(n=240, widths=(1500, 12), c=6, seed=3)
    rng = np.random.default_rng(0)
    for part in (setting.train, setting.validation):
        part.features[:, :1500] = rng.normal(size=(len(part.labels), 1500))
        part.features[:, 1500:1506] = np.eye(6)[part.labels] * 2 + rng.normal(size=(len(part.labels), 6))
    made = best_linear(setting)
    assert made.notes["layers_fitted"] != "all"
    every = fitted(setting, "fit", np.arange(1512))
    assert made.notes["log_loss"] < every.notes["log_loss"]


def overconfident(setting: Setting, much: float = 12.0) -> Setting:
    """The base surer of the training examples than of others, as networks are of what they were trained on."""
    train, held = setting.train, setting.validation
    most = (np.arange(len(train.labels)) % 4 > 0)[:, None]
    known = train.logits + much * np.eye(train.logits.shape[1], dtype=np.float32)[train.labels] * most
    return replace(setting, train=replace(train, logits=known), validation=replace(held, logits=4 * held.logits))


def test_a_base_that_is_too_sure_is_damped():
    setting = overconfident(made_up(n=1500))
    columns = np.arange(50)
    free = fitted(setting, "fit", columns)
    full = fitted(setting, "fit", columns, dampings=(1.0,))
    assert free.notes["damping"] < 1
    assert free.notes["log_loss"] < full.notes["log_loss"] - 0.02
    table = setting.validation
    expected = table.logits * free.notes["damping"] + table.features @ free.delta.terms[0].head.weight.numpy() + free.delta.bias.numpy()
    np.testing.assert_allclose(free.logits, expected, rtol=1e-4, atol=1e-3)
    own = free.delta.terms[1].head.weight.numpy()
    np.testing.assert_allclose(own, (free.notes["damping"] - 1) * np.eye(6), atol=1e-7)


@pytest.mark.parametrize("much", [0.0, 3.0, 12.0])
def test_damping_and_penalty_are_the_best_of_all_on_validation(much):
    setting = overconfident(made_up(n=1500), much)
    columns = np.arange(50)
    every = {
        (damping, l2): fitted(setting, "fit", columns, [l2], dampings=(damping,)).notes["log_loss"]
        for damping in DAMPINGS
        for l2 in L2_GRID
    }
    chosen = fitted(setting, "fit", columns)
    assert chosen.notes["log_loss"] <= min(every.values()) + 1e-3
    assert max(every.values()) > min(every.values()) + 0.02


def test_a_matrix_of_many_classes_is_not_worth_damping():
    setting = overconfident(made_up(n=1500, limit=100))
    made = fitted(setting, "fit", np.arange(50))
    assert made.notes["damping"] == 1.0
    assert made.delta.parameters <= 100


def test_a_rare_class_of_a_handful_of_examples():
    setting = made_up(c=4, counts=[12, 700, 300, 100])
    found = table_candidates("best", setting)
    assert any(c.point.feasible for c in found)
    assert all(np.isfinite(c.logits).all() for c in found)


def test_a_class_without_training_examples_gets_no_synapse():
    setting = made_up(c=5)
    keep = np.flatnonzero(setting.train.labels != 3)
    setting = replace(setting, train=setting.train.rows(keep))
    made = best_linear(setting)
    assert 3 not in made.delta.touched


# -- AAN -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["dense", "grouped"])
def test_a_preset_reads_as_many_neurons_and_has_as_many_hidden_ones(form):
    neurons, hidden = PRESETS["resnet20-cifar10"]
    setting = made_up(n=300, widths=(200, 200, 100))
    setting = replace(setting, train=_shaped(setting.train), validation=_shaped(setting.validation))
    delta = aan(setting, "aan", AANChoice("resnet20-cifar10", form)).delta
    head = delta.terms[0].head
    assert (head.inputs, head.b1.numel()) == (neurons, hidden)
    assert len(head.w1) == (3 if form == "grouped" else 1)
    if form == "grouped":  # Table 4.3 counts one hidden group a stage
        assert sum(w.numel() for w in head.w1) < neurons * hidden / 2


def _shaped(table: PooledTable) -> PooledTable:
    """Three layers of three resolutions: three stages."""
    reads = tuple(replace(read, shape=(read.shape[0], 8 // 2**k, 8 // 2**k)) for k, read in enumerate(table.reads))
    return replace(table, reads=reads)


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({"hidden": "resnet21"}, "neither a number of hidden neurons nor one of"),
        ({"hidden": 0}, "at least one hidden"),
        ({"form": "round"}, "dense, grouped"),
    ],
)
def test_an_impossible_choice(choice, said):
    with pytest.raises(InputError, match=said):
        AANChoice(**choice)


def test_a_size_beyond_the_limit_is_refused_with_the_largest_that_fits():
    with pytest.raises(InputError, match=r"may have 3000. Take at most 52"):
        aan(made_up(limit=3000), "aan", AANChoice(60))
    assert aan(made_up(limit=3000), "aan", AANChoice(52)).delta.parameters <= 3000


def test_an_aan_is_the_same_for_the_same_seed():
    one, two = (aan(made_up(n=300), "aan").logits for _ in range(2))
    np.testing.assert_array_equal(one, two)


# -- what is read ----------------------------------------------------------------------------------------------------


def test_a_network_too_wide_for_memory_is_read_at_its_end(monkeypatch):
    from torchvision.models import resnet50

    reader = Reader(resnet50(weights=None, num_classes=5), torch.zeros(1, 3, 64, 64))
    everything = reading("best", reader, 100)
    assert {r.reduction for r in everything} == {"mean", "max", "grid2"}
    monkeypatch.setattr(reading_module, "MEMORY", 4 * 1000 * 9000)
    some = reading("best", reader, 1000)
    width = sum(int(r.index.numel()) for r in some)
    assert width <= 9000
    names = [r.layer for r in some]
    assert names[-1] == reader.layers[-1].name
    assert any(name.startswith("layer1") for name in names), "the end of every stage is worth more than a stage's insides"
    assert [layer.name for layer in reader.layers if layer.name in names] == names, "in the order of the network"
    monkeypatch.setattr(reading_module, "MEMORY", 1)
    assert [r.layer for r in reading("best", reader, 1000)] == [reader.layers[-1].name]


def test_default_views_are_for_pictures_and_nets():
    picture, row = torch.zeros(2, 3, 8, 8), torch.zeros(2, 9)
    assert views_of("best", None, None, picture, 5000)[0] == VIEWS
    assert views_of("best", None, None, picture, 4999)[0] == VIEWS + 1, "few examples need more"
    assert views_of("fit", None, None, picture, 9000)[0] == 0
    assert views_of("best", None, None, row, 9000) == (0, None)
    assert views_of("best", None, "noise", row, 9000)[0] == VIEWS
    assert views_of("best", 0, "flip", picture, 9000) == (0, None)
    with pytest.raises(InputError, match="noise"):
        views_of("best", 1, None, row, 9000)
    with pytest.raises(InputError, match="for pictures"):
        views_of("best", 1, "flip", row, 9000)


def test_views_are_the_same_whenever_they_are_read():
    batches = [(torch.zeros(4, 1, 6, 6), torch.zeros(4)), (torch.ones(4, 1, 6, 6), torch.zeros(4))]
    views = Views(batches, lambda x, g: x + torch.rand(x.shape, generator=g), 7)
    first, second = ([x for x, _ in views] for _ in range(2))
    assert len(views) == 2
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], first[1] - 1)


def test_views_are_kept_in_table_t_and_another_augmentation_is_read_anew(tmp_path, monkeypatch):
    data = digits(0)
    model = train_base(*data.base, epochs=3)

    def fit(augment):
        join = SynapticJoin(method="best", views=1, augment=augment, table=tmp_path / "t", base_saw="none")
        return join.fit(model, data.train, data.validation, targets=[str(RARE)], classes=CLASSES)

    first = fit("shift")
    seen = []
    run = Reader.__call__
    monkeypatch.setattr(Reader, "__call__", lambda self, x, sink: seen.append(len(x)) or run(self, x, sink))
    again = fit("shift")
    assert max(seen, default=0) <= 1
    np.testing.assert_array_equal(first.candidates[0].logits, again.candidates[0].logits)
    seen.clear()
    fit("noise")
    assert sum(seen) >= len(data.train[1])


def test_on_the_command_line(tmp_path, capsys):
    from tweaknn.cli.app import run

    data = digits(0)
    torch.save(train_base(*data.base).state_dict(), tmp_path / "base.pt")
    (tmp_path / "net.py").write_text(
        "from tweaknn.demo import DigitsCNN as make\ndef darker(x, generator):\n    return x * 0.9\n"
    )
    assert DigitsCNN
    for name in ("train", "validation"):
        x, y = getattr(data, name)
        pixels = (x[:, 0] * 255).round().to(torch.uint8).numpy()
        np.savez(tmp_path / f"{name}.npz", x=pixels, y=y.numpy(), classes=np.array(CLASSES))
    command = [
        "join", "--model", f"{tmp_path}/net.py:make", "--weights", f"{tmp_path}/base.pt", "--train", f"{tmp_path}/train.npz",
        "--validation", f"{tmp_path}/validation.npz", "--worst", "1", "--out", str(tmp_path / "x.delta.safetensors"),
    ]  # fmt: skip
    own = f"{tmp_path}/net.py:darker"
    assert run([*command, "--views", "1", "--augment", own, "--method", "aan", "--hidden", "8", "--aan-form", "grouped"]) == 0
    assert "aan" in capsys.readouterr().out
    for wrong, said in (
        (["--augment", "mirror"], "--augment takes"),
        (["--hidden", "many"], "Table 4.1"),
        (["--hidden", "100000000", "--method", "aan"], "may have 250000"),
        (["--method", "fit", "--solver", "sgd"], "solved otherwise"),
    ):
        assert run([*command, *wrong]) == 2, wrong
        captured = capsys.readouterr()
        assert said in " ".join(captured.err.split())
        assert "Traceback" not in captured.err


def test_the_control_of_random_neurons_is_a_quarter_of_them_by_lot():
    setting = made_up()
    f = setting.train.features.shape[1]
    drawn = by_lot(setting)
    assert len(set(drawn.tolist())) == f // 4
    assert not np.array_equal(drawn, by_lot(replace(setting, seed=1)))
    found = next(c for c in controls(setting) if c.name == "random-neurons")
    offsets = np.cumsum([0, *(int(read.index.numel()) for read in setting.train.reads)])
    start = {(read.layer, read.reduction): at for read, at in zip(setting.train.reads, offsets)}
    reads = [r for term in found.delta.terms for r in term.reads if (r.layer, r.reduction) in start]
    read = np.concatenate([r.index.numpy() + start[r.layer, r.reduction] for r in reads])
    assert set(read.tolist()) <= set(drawn.tolist())
