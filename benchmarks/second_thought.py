"""How much target gain to give up for everybody else: `python benchmarks/second_thought.py --json FILE`.

The choice behind ``tweaknn.join.settle.SLACK``, made on thirds of CIFAR-10's training split only (fit on one, operate
on the second, look at the third); no test image is read.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).resolve().parent))
import networks
from common import SHARED, machine, write

from tweaknn import SynapticJoin, compare_logits
from tweaknn.inputs import Preprocess, load_data
from tweaknn.join import candidates, settle
from tweaknn.join.setting import Setting


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    model = networks.resnet20()
    model.load_state_dict(load_file(str(SHARED / "models/cifar10-resnet20.safetensors")))
    preprocess = Preprocess(mean=networks.MEAN, std=networks.STD)
    train = load_data(SHARED / "data/cifar10-jpeg/train.parquet", preprocess=preprocess)
    parts = np.array_split(np.random.default_rng(arguments.seed).permutation(len(train)), 3)
    join = SynapticJoin(base_saw="both", seed=arguments.seed)
    ready = join.prepare(model, train.subset(parts[0]), train.subset(parts[1]))
    held = join.prepare(model, train.subset(parts[2]), train.subset(parts[2])).train_table
    rows: list[dict[str, Any]] = []
    for slack in (0.0, 0.25, 0.5, 1.0, 2.0):
        settle.SLACK = slack
        for target in ("bird", "cat", "dog", "airplane"):
            j = train.classes.index(target)
            setting = Setting(
                ready.train_table, ready.validation_table, (j,), ready.classes, join._promise(), ready.frame, 0
            )
            made = candidates.linear(setting, "fit", np.arange(held.features.shape[1]))
            logits = held.logits + held.features @ made.delta.terms[0].head.weight.numpy() + made.delta.bias.numpy()
            c = compare_logits(held.logits, logits, held.labels, ready.classes)
            rows.append(
                {
                    "slack": slack,
                    "target": target,
                    "target_gain": c.tweaked.per_class[j] - c.base.per_class[j],
                    "overall_gain": c.tweaked.overall - c.base.overall,
                    "E": c.E,
                    "worst_drop": c.worst_drop,
                }
            )
        mean = {k: np.mean([r[k] for r in rows if r["slack"] == slack]) for k in ("target_gain", "overall_gain", "E")}
        print(slack, {k: round(float(v), 4) for k, v in mean.items()}, flush=True)
    write(arguments.json, {"machine": machine(), "seed": arguments.seed, "rows": rows})


if __name__ == "__main__":
    main()
