"""Regenerate the dissertation's tables and figures, one command each, its numbers beside ours.

    python -m benchmarks.dissertation base  --network cnn3 --data cifar10-jpeg --root DIR --weights cnn3.safetensors
    python -m benchmarks.dissertation 3.3   --network cnn3 --data cifar10-jpeg --root DIR --weights cnn3.safetensors
    python -m benchmarks.dissertation fig3.5 --network cnn3 --data cifar10-jpeg --root DIR --weights cnn3.safetensors

``base`` trains a network as section 3.3.1 describes it, for as many iterations as ``--iterations`` allows (the
dissertation's
own: 115,000 for SVHN, 50,000 for CIFAR-10). Data sets other than ``cifar10-jpeg`` come from torchvision's loaders.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from benchmarks.common import machine, write
from benchmarks.dissertation import data as datasets
from benchmarks.dissertation.bases import recipe
from benchmarks.dissertation.figures import FIGURES, means_of
from benchmarks.dissertation.networks import build
from benchmarks.dissertation.tables import SAME, TABLES, Bench
from tweaknn.baselines import Training
from tweaknn.baselines.task import stratified
from tweaknn.baselines.training import train
from tweaknn.measure import measure
from tweaknn.network.outputs import collect_logits


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", help="base, or one of " + ", ".join([*TABLES, *SAME, *FIGURES]))
    parser.add_argument("--network", default="cnn3")
    parser.add_argument("--data", default="cifar10-jpeg", choices=datasets.NAMES)
    parser.add_argument("--root", type=Path, default=Path("."))
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--iterations", type=int, help="of base training, or of each retraining")
    parser.add_argument("--lr", type=float)
    parser.add_argument("--tail", type=int, help="3.10, fig3.10: iterations of training from the beginning on the long tail")
    parser.add_argument("--take", type=int, help="at most so many training examples, stratified")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("dissertation"))
    parser.add_argument("--boxes", type=Path, help="fig6.2 of the JSON of fig6.1, whose trainings are the same, without training")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    table = SAME.get(given.table, given.table)
    if table == "4.2":
        return report(given, TABLES["4.2"](None))  # type: ignore[arg-type]
    if table == "fig6.2" and given.boxes is not None:
        found = json.loads(given.boxes.read_text())
        given = argparse.Namespace(**{**vars(given), **{k: v for k, v in found["settings"].items() if k != "table"}})
        return report(given, means_of({k: found[k] for k in ("classes", "target", "rows", "boxes")}))
    examples, test = datasets.load(given.data, given.root)
    model = build(given.network, len(examples.classes or []))
    if table == "base":
        return report(given, make_base(given, model, examples, test))
    if table not in TABLES and table not in FIGURES:
        raise SystemExit(f"no table {given.table!r}; choose one of {', '.join([*TABLES, *SAME, *FIGURES])}")
    if given.weights is None:
        raise SystemExit("--weights: the base network; make it with `base` first")
    model.load_state_dict(load_file(given.weights))
    if given.take:
        examples = examples.subset(stratified(examples.labels, given.take, 0))
    training = Training(iterations=given.iterations, lr=given.lr or 1e-3, penalties=(2.0,), schedule="constant")
    bench = Bench(given.network, given.data, model.eval(), examples, test, training, given.out, given.seed, tail=given.tail)
    return report(given, {**TABLES, **FIGURES}[table](bench))


def make_base(given: argparse.Namespace, model: torch.nn.Module, examples: object, test: object) -> dict:
    """Train the base; the learning rate falls to a tenth after two thirds, as at 75 k of 115 k."""
    steps = given.iterations or 50_000
    torch.manual_seed(given.seed)
    model = build(given.network, len(test.classes))  # type: ignore[attr-defined]
    settings = recipe(steps, given.lr)
    train(model, examples, settings, torch.Generator().manual_seed(given.seed))  # type: ignore[arg-type]
    given.weights.parent.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), given.weights)
    logits, labels = collect_logits(model, test.loader(256))  # type: ignore[attr-defined]
    return {
        "base": measure(logits, labels).to_dict(test.classes),
        "settings": replace(settings, schedule="constant").to_dict(),
    }  # type: ignore[attr-defined]


def report(given: argparse.Namespace, found: dict) -> None:
    """Print, and keep beside settings and machine."""
    settings = {
        k: v.name if isinstance(v, Path) else v for k, v in vars(given).items() if k not in ("json", "out", "root", "boxes")
    }
    whole = {"table": given.table, "settings": settings, "machine": machine(), **found}
    print(json.dumps({k: v for k, v in whole.items() if k not in ("machine", "settings")}, indent=1, default=float))
    if given.json is not None:
        write(given.json, whole)


if __name__ == "__main__":
    main()
