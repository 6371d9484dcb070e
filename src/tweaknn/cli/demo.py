"""``tweaknn demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from torch.utils.data import DataLoader, TensorDataset

from tweaknn.cli import options as o
from tweaknn.cli.console import bar, note, out
from tweaknn.errors import InputError, NothingHelps


def command(
    out_dir: Annotated[Path, typer.Option("--out", help="Folder for the delta, the picture and the figures.")] = Path(
        "tweaknn-demo"
    ),
    seed: o.Seed = 0,
    json: o.Json = None,
) -> None:
    """All of it on scikit-learn's real handwritten digits, with a small CNN trained here."""
    from tweaknn.cli.evaluate import show_comparison
    from tweaknn.cli.join import show
    from tweaknn.delta import Delta
    from tweaknn.demo import CLASSES, RARE, digits, train_base
    from tweaknn.join.comparison import compare_logits
    from tweaknn.join.run import SynapticJoin
    from tweaknn.network.fingerprint import fingerprint
    from tweaknn.network.outputs import collect_logits
    from tweaknn.report.picture import before_after

    o.check_writable(json, "--json")
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out_dir}: {error.strerror or error}.") from None
    o.seed_everything(seed)
    data = digits(seed)
    note(f"{len(data.base[1])} digits train a small CNN; only 4 of them are {RARE}s, as rare classes are in real data")
    model = train_base(*data.base, seed=seed)
    before = fingerprint(model)

    def loader(part: tuple[torch.Tensor, torch.Tensor]) -> DataLoader[tuple[torch.Tensor, ...]]:
        return DataLoader(TensorDataset(*part), batch_size=128)

    join = SynapticJoin(seed=seed, base_saw="none", bar=bar)
    result = join.fit(model, loader(data.train), loader(data.validation), worst=1, classes=CLASSES)
    show(result)
    if result.delta is None:
        raise NothingHelps(result.sentence)
    path = out_dir / "digits.delta.safetensors"
    result.delta.save(str(path))

    tweaked = Delta.load(str(path)).attach(model)
    base_logits, labels = collect_logits(model, loader(data.test))
    logits, _ = collect_logits(tweaked, loader(data.test))
    comparison = compare_logits(base_logits, logits, labels, CLASSES)
    out.print("\nOn test digits that nothing was chosen on:", style="bold")
    show_comparison(comparison, mark=result.targets)
    picture = out_dir / "before-after.png"
    before_after(comparison, picture, targets=result.targets)
    torch.save(model.state_dict(), out_dir / "base.pt")
    out.print(
        f"\nbase untouched: {fingerprint(model) == before};  delta: {path} ({path.stat().st_size / 1024:.0f} KB);  "
        f"picture: {picture}",
        markup=False,
        soft_wrap=True,
    )
    figures = {"join": result.to_dict(), "test": comparison.to_dict(), "delta": str(path), "picture": str(picture)}
    o.write_json(json or out_dir / "figures.json", figures)
