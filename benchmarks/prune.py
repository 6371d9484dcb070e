"""Complexity-aware training beside what a user would do instead. Writes one JSON; finished runs are kept and reused.

    python benchmarks/prune.py --quick --json out.json            # CIFAR-10 JPEG, 27 % of the FLOPs, three seeds
    python benchmarks/prune.py --json out.json                    # both data sets, three targets, every rival, ablations

ResNet-20 is scaled to what two cores train in minutes: a stride-2 stem (16x16 feature maps, a quarter of the FLOPs),
10,000 training images, 15 epochs. Every method has the same seeds, batches, augmentation, epochs and learning-rate
schedule; accuracy is the last epoch's on the test split, looked at once; choices were made on validation images.
`ours-half` has a second budget, half the narrow network's parameters, `ours-mild` leaves more blocks (`beta` 0.2). Where `ours` and
`ours-units` are both run, `ours-chosen` is what `tweaknn train --beta 0,0.5` hands over: of the two the one that is better on
validation, for both their times; `ours-chosen-mild` is that of `--beta 0.2,0.5`.
`narrow-time` is the narrow network trained for ours's time, in fewer epochs or in more, `ours-time` ours for Torch-Pruning's;
`gate_overhead` what gates add to a step. Times are process times (one thread a run), compared within one run of
this script only.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import pickle
import platform
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

QUICK = ("full", "narrow", "tp-uniform", "random", "ours", "narrow-time")
MENDED = ("full", "ours", "narrow")  # on clothing10
RIVALS = ("narrow", "tp-uniform", "tp-global", "random")
ALL = (*QUICK, "ours-half", "ours-time", "tp-global", "ours-units", "ours-mild", "ours-layers")
EQUAL_TIME = {"narrow-time": ("narrow", "ours"), "ours-time": ("ours", "tp-uniform")}
"""A method again, for as many epochs, more or fewer, as make its time that of another."""
CHOSEN = {"ours-chosen": "ours-units", "ours-chosen-mild": "ours-mild"}
"""Of ours and of another method the one better on validation, seed by seed: what several values of ``--beta`` hand over."""
ABLATIONS: dict[str, dict[str, Any]] = {
    "no-concave": {"rho": 0.0},
    "warm-up-5": {"warmup": 0.05, "layers": 0.07},
    "no-rewind": {"rewind": False},
    "no-shrink": {"shrink": False},
    "straight-through": {"estimator": "straight-through"},
    "weighted-trapezoid": {"estimator": "weighted"},
    "attraction": {"attraction": True},
    "theta0-0.99": {"theta0": 0.99},
    "theta0-0.7": {"theta0": 0.7},
    "beta-0.2": {"beta": 0.2},
    "beta-0.37": {"beta": 0.37},
}


def worker(text: str) -> None:
    """One run, in a process of its own with one thread; prints its result as JSON."""
    import torch

    torch.set_num_threads(1)
    job = json.loads(text)
    with open(job["task_file"], "rb") as stream:
        task = pickle.load(stream)
    from benchmarks.pruning.jobs import run_job

    print(json.dumps(run_job(task, job)))


def prepare(name: str, shared: Path, folder: Path, small: bool = False) -> Path:
    """Decode a data set once, into a file of this run's own."""
    from benchmarks.pruning.data import cifar, clothing, digits

    file = folder / f"{name}.pkl"
    if not file.is_file():
        if name == "cifar10":
            task = cifar(shared, *((1_000, 500) if small else ()))
        else:
            task = clothing(shared) if name == "clothing10" else digits()
        part = file.with_suffix(".part")
        with open(part, "wb") as stream:
            pickle.dump(task, stream)
        os.replace(part, file)
    return file


def key_of(job: dict[str, Any]) -> str:
    return json.dumps({k: v for k, v in sorted(job.items()) if k != "task_file"})


def run_all(jobs: list[dict[str, Any]], kept: Path, workers: int) -> dict[str, dict[str, Any]]:
    """Results by job key; every finished run is appended to ``kept`` at once."""
    done: dict[str, dict[str, Any]] = {}
    if kept.is_file():
        for line in kept.read_text().splitlines():
            row = json.loads(line)
            done[row["key"]] = row["result"]
    todo = [j for j in jobs if key_of(j) not in done]
    print(f"{len(jobs) - len(todo)} runs kept, {len(todo)} to do", file=sys.stderr)

    def one(job: dict[str, Any]) -> None:
        prefix = os.environ.get("TWEAKNN_RUN_PREFIX", "").split()
        command = [*prefix, sys.executable, str(Path(__file__).resolve()), "--worker", json.dumps(job)]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        ended = subprocess.run(command, env=env, capture_output=True, text=True)
        if ended.returncode:
            raise RuntimeError(ended.stderr[-2000:])
        result = json.loads(ended.stdout.splitlines()[-1])
        done[key_of(job)] = result
        with open(kept, "a") as stream:
            stream.write(json.dumps({"key": key_of(job), "result": result}) + "\n")
        print(f"{job['task']} {job['method']} {job.get('target', '')} seed {job['seed']}: test {result['test']:.4f} "
              f"FLOPs {result['flops']:.3f} params {result['params']:.3f} {result['seconds']:.0f} s", file=sys.stderr)  # fmt: skip

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(one, todo))
    return {key_of(j): done[key_of(j)] for j in jobs}


def by_method(job: dict[str, Any], method: str) -> dict[str, Any]:
    """The same task, seed and budget by another method, with what is asked of that method beside its accuracy."""
    found = {k: v for k, v in job.items() if k != "mend"} | {"method": method}
    return found | {"mend": True} if job["task"] == "clothing10" and method in MENDED else found


def jobs_for(
    task: str, file: Path, methods: tuple[str, ...], targets: list[float], seeds: list[int], epochs: float
) -> list:
    base = {"task": task, "task_file": str(file), "epochs": epochs}
    jobs = []
    for seed in seeds:  # seed by seed, so that an interrupted run leaves whole comparisons
        for target in targets:
            for method in methods:
                if method in EQUAL_TIME or (method == "full" and target != targets[0]):
                    continue
                job = by_method({**base, "seed": seed}, method)
                jobs.append(job if method == "full" else {**job, "target": target})
    return jobs


def with_equal_time(jobs: list, results: dict, methods: tuple[str, ...]) -> list:
    """The jobs of :data:`EQUAL_TIME`, whose epochs follow from what the first runs took."""
    more = []
    for name, (method, other) in EQUAL_TIME.items():
        if name not in methods:
            continue
        for job in (j for j in jobs if j["method"] == method):
            own, theirs = (results[key_of(j)]["seconds"] for j in (job, by_method(job, other)))
            again = by_method(job, name) | {"epochs": max(1.0, round(job["epochs"] * theirs / own, 1))}
            if again["epochs"] == job["epochs"]:  # the very run that is there
                results[key_of(again)] = results[key_of(job)]
            more.append(again)
    return more


def spread(values: list[float]) -> dict[str, Any]:
    return {"mean": mean(values), "sd": stdev(values) if len(values) > 1 else 0.0, "values": values}


def healed(run: dict[str, Any]) -> dict[str, float]:
    """What mending gave a run's target classes, what it cost the others (the root mean square of their losses), on the test split."""
    after = run["mended"].get("per_class", run["per_class"])  # nothing was handed over where no candidate kept the promise
    moved = [b - a for a, b in zip(run["per_class"], after)]
    targets = [int(t) for t in run["mended"]["targets"]]
    losses = [min(d, 0.0) for j, d in enumerate(moved) if j not in targets]
    return {
        "targets_before": mean(run["per_class"][t] for t in targets), "targets_gain": mean(moved[t] for t in targets),
        "E": (mean(d * d for d in losses)) ** 0.5, "overall_gain": run["mended"].get("test", run["test"]) - run["test"],
        "balanced_gain": mean(moved),
    }  # fmt: skip


def with_chosen(jobs: list, results: dict) -> list[dict[str, Any]]:
    """The jobs of :data:`CHOSEN`, where both methods were run; they take both times."""
    more = []
    for name, other in CHOSEN.items():
        for job in (j for j in jobs if j["method"] == "ours"):
            rival = key_of(by_method(job, other))
            if rival not in results:
                continue
            pair = [results[key_of(job)], results[rival]]
            again = {**job, "method": name}
            best = max(pair, key=lambda r: (r["validation"], -r["flops"]))
            results[key_of(again)] = {**best, "seconds": sum(r["seconds"] for r in pair)}
            more.append(again)
    return more


def table(jobs: list, results: dict) -> list[dict[str, Any]]:
    """Mean and spread over seeds of every (task, method, target)."""
    groups: dict[tuple, list[dict]] = {}
    for job in jobs:
        groups.setdefault((job["task"], job["method"], job.get("target")), []).append(results[key_of(job)])
    rows = []
    for (task, method, target), runs in groups.items():
        row: dict[str, Any] = {"task": task, "method": method, "target": target, "seeds": len(runs)}
        for name in ("test", "validation", "flops", "params", "seconds"):
            row[name] = spread([r[name] for r in runs])
        for name in ("undecided", "gate_overhead", "latency_1", "latency_128", "frozen_at", "blocks"):
            if all(name in r and r[name] is not None for r in runs):
                row[name] = [r[name] for r in runs]
        if method in EQUAL_TIME:
            row["epochs"] = [j["epochs"] for j in jobs if (j["task"], j["method"], j.get("target")) == (task, method, target)]
        if all("mended" in r for r in runs):
            row["mended"] = [r["mended"] for r in runs]
            row["healed"] = [healed(r) for r in runs]
        row["per_class"] = [mean(v) for v in zip(*(r["per_class"] for r in runs))]
        rows.append(row)
    return rows


def summary(rows: list[dict[str, Any]], task: str, target: float) -> dict[str, Any]:
    """The keys people compare, for one data set and one FLOPs target."""
    by = {r["method"]: r for r in rows if r["task"] == task and r["target"] in (None, target)}
    ours, full = by["ours"], by["full"]
    out: dict[str, Any] = {
        "task": task,
        "flops_target": target,
        "flops_reached": ours["flops"]["mean"],
        "params_reached": ours["params"]["mean"],
        "accuracy": ours["test"]["mean"],
        "accuracy_sd": ours["test"]["sd"],
        "full_accuracy": full["test"]["mean"],
        "full_accuracy_sd": full["test"]["sd"],
        "training_time_ratio": mean(a / b for a, b in zip(ours["seconds"]["values"], full["seconds"]["values"])),
        "undecided": max(ours.get("undecided", [0.0])),
    }
    names = {"narrow": "narrow", "tp-uniform": "torch_pruning", "tp-global": "torch_pruning_global", "random": "random",
             "narrow-time": "narrow_equal_time", "ours-units": "units_only", "ours-layers": "layers_only",
             "ours-chosen": "beta_chosen", "ours-mild": "beta_0.2", "ours-chosen-mild": "beta_0.2_chosen",
             "ours-half": "half_parameters", "ours-time": "equal_time"}  # fmt: skip
    for method, name in names.items():
        if method in by:
            r = by[method]
            out |= {f"{name}_accuracy": r["test"]["mean"], f"{name}_accuracy_sd": r["test"]["sd"],
                    f"{name}_flops": r["flops"]["mean"], f"{name}_params": r["params"]["mean"]}  # fmt: skip
    if "narrow-time" in by:
        out |= {"narrow_equal_time_epochs": mean(by["narrow-time"]["epochs"]),
                "narrow_equal_time_seconds": by["narrow-time"]["seconds"]["mean"], "seconds": ours["seconds"]["mean"]}  # fmt: skip
    if "gate_overhead" in ours:
        out["gate_overhead"] = mean(ours["gate_overhead"])
    rivals = [by[m]["test"]["mean"] for m in RIVALS if m in by]
    out["points_over_best_rival"] = 100 * (out["accuracy"] - max(rivals))
    if "narrow" in by:
        out["params_to_narrow"] = out["params_reached"] / by["narrow"]["params"]["mean"]
    return out


def machine() -> dict[str, Any]:
    import torch
    import torchvision

    return {"cpus": os.cpu_count(), "processor": platform.machine(), "python": platform.python_version(),
            "torch": torch.__version__, "torchvision": torchvision.__version__}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="CIFAR-10 JPEG (digits without it) at 27 %% only.")
    parser.add_argument("--smoke", action="store_true", help="A tiny run of everything, to see that it works.")
    parser.add_argument("--shared", type=Path, default=Path(os.environ.get("TWEAKNN_SHARED", ROOT.parent / "shared")))
    parser.add_argument("--tasks", nargs="+", default=["cifar10", "clothing10"], choices=["cifar10", "clothing10", "digits"])
    parser.add_argument("--targets", nargs="+", type=float, default=[0.5, 0.27, 0.14])
    parser.add_argument("--methods", nargs="+", default=list(ALL))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=float, default=15)
    parser.add_argument("--ablations", action="store_true", help="Ablations at 27 %% of the FLOPs on CIFAR-10 JPEG.")
    parser.add_argument("--workers", type=int, default=max(1, min(2, os.cpu_count() or 1)))
    parser.add_argument("--keep", type=Path, help="File of finished runs (default: beside --json).")
    args = parser.parse_args()
    if args.worker:
        return worker(args.worker)
    if args.json is None:
        parser.error("--json FILE is needed")
    if args.quick:
        args.tasks, args.targets, args.methods = ["cifar10"], [0.27], list(QUICK)
    if not (args.shared / "data" / "cifar10-jpeg").is_dir() and "cifar10" in args.tasks:
        print(f"no {args.shared / 'data' / 'cifar10-jpeg'}: scikit-learn's digits take its place", file=sys.stderr)
        args.tasks = ["digits" if t == "cifar10" else t for t in args.tasks]
    if args.smoke:
        args.tasks, args.targets, args.seeds, args.epochs = args.tasks[:1], [0.27], [0], 1
    kept = args.keep or args.json.with_suffix(".runs.jsonl")
    with tempfile.TemporaryDirectory() as folder:
        jobs: list[dict[str, Any]] = []
        for task in args.tasks:
            file = prepare(task, args.shared, Path(folder), args.smoke)
            epochs = args.epochs * {"cifar10": 1, "clothing10": 2, "digits": 4}[task]  # 10,000, 3,068 and 1,000 images
            jobs += jobs_for(task, file, tuple(args.methods), args.targets, args.seeds, epochs)
            if args.ablations and task == "cifar10":
                jobs += [
                    {"task": task, "task_file": str(file), "epochs": epochs, "method": f"ours:{name}", "seed": seed,
                     "target": 0.27, "options": options}
                    for seed in args.seeds for name, options in ABLATIONS.items()
                ]  # fmt: skip
        results = run_all(jobs, kept, args.workers)
        extra = with_equal_time(jobs, results, tuple(args.methods))
        results |= run_all([j for j in extra if key_of(j) not in results], kept, args.workers)
    extra += with_chosen(jobs, results)
    rows = table([*jobs, *extra], results)
    tops = [summary(rows, task, t) for task in args.tasks for t in args.targets] if {"ours", "full"} <= set(args.methods) else []
    first = next((s for s in tops if s["task"] != "clothing10" and s["flops_target"] == 0.27), tops[0] if tops else {})
    out = {**first, "seeds": len(args.seeds), "seed_values": args.seeds, "summaries": tops, "rows": rows,
           "settings": {"epochs": args.epochs, "batch_size": 128, "quick": args.quick, "network": "ResNet-20, stride-2 stem"},
           "machine": machine(), "date": datetime.date.today().isoformat()}  # fmt: skip
    part = args.json.with_suffix(".part")
    part.write_text(json.dumps(out, indent=1) + "\n")
    os.replace(part, args.json)
    for row in tops:
        print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}, indent=1))


if __name__ == "__main__":
    main()
