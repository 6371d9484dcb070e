"""Comparisons: resumable, one failure costs no other method, results as promised."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import threading
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from threadpoolctl import threadpool_limits

from tweaknn.baselines import Plan, Training, compare, make_task, parse, run
from tweaknn.baselines.outcome import NotApplicable
from tweaknn.baselines.registry import _METHODS, Method, names
from tweaknn.baselines.worker import Failed, Pool, TimedOut
from tweaknn.cli.app import run as command
from tweaknn.errors import InputError

from .conftest import digits

FAST = Training(iterations=6, lr=0.02, penalties=(2.0,), checkpoints=2)
KEYS = {"name", "target", "overall", "balanced", "E", "worst_drop", "seconds", "parameters", "applicable", "reason"}


def plan(*methods, **options):
    return Plan(("digit 8",), methods, training=FAST, **{"jobs": 0, **options})


def test_result_has_what_was_promised(net, tmp_path):
    result = compare(net, digits("train"), digits("test"), plan("calibration", "retraining-1", seeds=2), tmp_path)
    assert result == json.loads((tmp_path / "result.json").read_text())
    for entry in result["methods"]:
        assert set(entry) >= KEYS | {"sd", "p_overall", "p_target", "under", "curve", "auroc"}
        assert entry["applicable"]
        assert entry["seeds"] == 2
        assert entry["sd"]["target"] is not None
        runs = [r for r in result["runs"] if r["name"] == entry["name"]]
        assert entry["target"] == pytest.approx(np.mean([r["target"] for r in runs]))
        assert entry["sd"]["E"] == pytest.approx(np.std([r["E"] for r in runs], ddof=1))
        assert len(entry["per_class_sd"]) == 10
        for mode in (entry, entry["under"]["floors"]):
            assert 0 <= mode["validation"]["target"] <= 1
        assert entry["under"]["floors"]["validation"]["worst_drop"] >= 0  # there the promise is kept, to the letter
        assert entry["versus"]["base"]["floors"]["target"]["tests"] == 2
        assert len(entry["versus"]["base"]["own"]["overall"]["p_seeds"]) == 2
        assert entry["curve"] == [] or entry["curve"][0]["sd"]["target"] is not None
    assert all("right" not in run for run in result["runs"])
    assert "training data validates" in result["settings"]["spread"]
    trained = result["methods"][1]
    assert trained["checkpoints"]["n"] == 2  # Table 3.4: mean and spread of E over checkpoints
    assert trained["checkpoints"]["E_sd"] >= 0
    assert result["methods"][0]["checkpoints"] is None
    flat = pq.read_table(tmp_path / "result.parquet").to_pylist()
    assert {(r["name"], r["seed"]) for r in flat} == {(n, s) for n in ("calibration", "retraining-1") for s in (0, 1)}
    assert flat[0]["floors_target"] is not None


def test_given_validation_and_a_tolerance(net, tmp_path):
    held = digits("train").subset(np.arange(600, 1000))
    data = digits("train").subset(np.arange(600)), digits("test")
    results = [
        compare(net, *data, plan("bias", seeds=2, tolerance=t), tmp_path, validation=held) for t in (0.0, 0.2)
    ]
    strict, loose = (r["methods"][0]["under"]["floors"] for r in results)
    assert strict["sd"]["target_gain"] == 0  # nothing a constant depends on differs between these seeds
    assert "the same in every seed" in results[0]["settings"]["spread"]
    assert loose["validation"]["target"] > strict["validation"]["target"]
    assert -0.2 - 1e-9 <= loose["validation"]["worst_drop"] < 0
    assert len(list((tmp_path / "runs").iterdir())) == 4  # one promise's rows are not taken for the other's


def test_trainings_tell_how_they_go_on(net, tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    pytest.importorskip("torch.utils.tensorboard")
    task = make_task(net, digits("train"), digits("test"), ["digit 8"], training=FAST)
    task.live = f"tensorboard:{tmp_path}"
    run("oversampling", task)
    run("oversampling", task)
    for name in ("oversampling-seed-0", "oversampling-seed-0-training-2"):
        seen = events.EventAccumulator(str(tmp_path / name)).Reload().Scalars("loss")
        assert [e.step for e in seen] == list(range(1, 7))
        assert all(np.isfinite(e.value) for e in seen)


def test_running_again_continues(net, tmp_path):
    said: list[str] = []
    first = compare(net, digits("train"), digits("test"), plan("bias", "last-layer"), tmp_path)
    stamps = {f: f.stat().st_mtime_ns for f in (tmp_path / "logits").iterdir()}
    more = plan("bias", "last-layer", "calibration")
    again = compare(net, digits("train"), digits("test"), more, tmp_path, say=said.append)
    assert sum("already done" in line for line in said) == 2
    assert {f: f.stat().st_mtime_ns for f in stamps} == stamps
    assert again["methods"][0]["target"] == first["methods"][0]["target"]
    # Other targets reuse what does not depend on them, and only that.
    other = Plan(("digit 3",), ("bias", "last-layer"), training=FAST, jobs=0)
    compare(net, digits("train"), digits("test"), other, tmp_path)
    assert len(list((tmp_path / "logits").iterdir())) == len(stamps) + 2


def test_collecting_runs_nothing(net, tmp_path):
    compare(net, digits("train"), digits("test"), plan("bias"), tmp_path)
    found = compare(net, digits("train"), digits("test"), plan("bias", "da", seeds=2, collect=True), tmp_path)
    assert [(m["name"], m["seeds"], m["reason"]) for m in found["methods"]] == [
        ("bias", 1, ""),
        ("da", 0, "it was not run"),
    ]
    assert len(list((tmp_path / "logits").iterdir())) == 1


def test_damaged_files_are_made_again(net, tmp_path):
    first = compare(net, digits("train"), digits("test"), plan("calibration"), tmp_path)
    for folder in ("runs", "logits", "tables"):
        for file in (tmp_path / folder).iterdir():
            file.write_bytes(file.read_bytes()[:50])
    assert compare(net, digits("train"), digits("test"), plan("calibration"), tmp_path)["methods"] == _but_time(
        first["methods"]
    )


def _but_time(methods):
    class Any:
        def __eq__(self, other):
            return True

    def free(m):
        return {**m, "seconds": Any(), "cpu_seconds": Any(), "sd": Any()}

    return [free(m) for m in methods]


@pytest.fixture
def misfits(monkeypatch):
    """Methods that crash, hang, die, or do not apply."""

    def crash(task):
        raise RuntimeError("no luck")

    def hang(task):
        time.sleep(60)

    def die(task):
        os.kill(os.getpid(), 9)

    def refuse(task):
        raise NotApplicable("its head is a convolution")

    for name, function in (("wa", crash), ("da", hang), ("lora", die), ("head2toe", refuse)):
        monkeypatch.setitem(_METHODS, name, Method(name, function, "misfit"))


def test_one_failure_costs_no_other(net, tmp_path, misfits):
    methods = ("wa", "da", "lora", "head2toe", "bias")
    result = compare(net, digits("train"), digits("test"), plan(*methods, jobs=2, time_limit=3), tmp_path)
    by_name = {m["name"]: m for m in result["methods"]}
    assert by_name["bias"]["target"] > 0
    assert by_name["wa"]["reason"] == "crashed: RuntimeError: no luck"
    assert by_name["da"]["reason"] == "stopped after 3 s (--time-limit)"
    assert by_name["lora"]["reason"] == "crashed: its process ended with code -9"
    assert by_name["head2toe"]["reason"] == "not applicable: its head is a convolution"
    assert not by_name["head2toe"]["applicable"]
    assert by_name["wa"]["applicable"]
    assert by_name["wa"]["target"] is None


def test_jobs_at_once_give_the_same_bits(net, tmp_path):
    # This process has used every thread pool there is: forked children used to hang or die of that.
    threads = torch.get_num_threads()
    run("theta", make_task(net, digits("train"), digits("test"), ["digit 8"], training=FAST))
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            made = [
                compare(net, digits("train"), digits("test"), plan("retraining-1", "theta", jobs=n), tmp_path / str(n))
                for n in (0, 2)
            ]
    finally:
        torch.set_num_threads(threads)
    for a, b in zip(made[0]["methods"], made[1]["methods"]):
        assert b["reason"] == ""
        assert (a["target"], a["overall"], a["E"]) == (b["target"], b["overall"], b["E"])
    assert not list((tmp_path / "2").glob(".shared*"))


def test_worker_time_limit_and_order():
    with Pool(2, 1.0) as pool:
        jobs = [("slow", lambda shared: time.sleep(30)), ("fast", lambda shared: shared + 2)]
        found = {name: answer for name, _, answer in pool.run(5, jobs)}
        assert found["fast"] == 7
        assert isinstance(found["slow"], TimedOut)
        again = [(str(k), lambda shared, k=k: shared * k) for k in range(5)]  # the killed one is replaced
        assert sorted(answer for _, _, answer in pool.run(3, again)) == [0, 3, 6, 9, 12]


def test_no_job_sees_what_another_changed():
    def spoil(shared):
        shared.append(1)
        return len(shared)

    with Pool(1) as pool:
        assert [answer for *_, answer in pool.run([0], [("a", spoil), ("b", spoil)])] == [2, 2]


def test_what_cannot_be_handed_over_runs_here():
    said: list[str] = []
    with Pool(2, say=said.append) as pool:
        lock = threading.Lock()  # no process can be given a lock
        found = [answer for *_, answer in pool.run(lock, [("a", lambda shared: shared.locked())])]
        assert found == [False]
        assert "cannot be handed" in said[0]

    class Unreadable:
        def __reduce__(self):
            return int, ("no number",)

    said.clear()
    with Pool(1, say=said.append) as pool:
        found = [answer for *_, answer in pool.run(Unreadable(), [("a", lambda s: 1), ("b", lambda s: 2)])]
        assert found == [1, 2]
        assert "ValueError" in said[0]


def test_results_that_cannot_be_handed_back_are_failures():
    with Pool(1) as pool:
        found = [answer for *_, answer in pool.run(0, [("a", lambda shared: threading.Lock()), ("b", lambda shared: 1)])]
    assert isinstance(found[0], Failed)
    assert found[1] == 1


def test_workers_end_with_their_parent(tmp_path):
    program = (
        "from tweaknn.baselines.worker import Pool\nimport os, time, pathlib\n"
        f"def job(shared):\n    pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))\n    time.sleep(60)\n"
        "with Pool(1) as pool:\n    list(pool.run(0, [('a', job)]))\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    wait_for(lambda: (tmp_path / "pid").is_file() and (tmp_path / "pid").read_text(), 200)
    child = int((tmp_path / "pid").read_text())
    parent.kill()
    parent.wait()
    wait_for(lambda: not alive(child), 60)


def wait_for(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.1)


def alive(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def test_groups_stay_together(net, tmp_path):
    seen = []

    def look(task):
        seen.append((set(task.train.column("g")), set(task.validation.column("g"))))
        raise NotApplicable("only looking")

    train = digits("train")
    train.columns["g"] = np.arange(len(train)) // 5
    names()  # methods are registered when first asked for
    _METHODS_before = _METHODS["bias"]
    _METHODS["bias"] = Method("bias", look, "")
    try:
        compare(net, train, digits("test"), plan("bias"), tmp_path, groups=train.column("g"))
    finally:
        _METHODS["bias"] = _METHODS_before
    assert not seen[0][0] & seen[0][1]


def test_bad_input(net, tmp_path):
    with pytest.raises(InputError, match="Unknown method"):
        parse("bias,nothing")
    assert parse("bias, bias ,oversampling+theta") == ["bias", "oversampling+theta"]
    with pytest.raises(InputError, match="at least one"):
        parse("")
    with pytest.raises(InputError, match="Unknown class"):
        compare(net, digits("train"), digits("test"), Plan(("dog",), ("bias",), jobs=0), tmp_path)
    (tmp_path / "version").write_text("99\n")
    with pytest.raises(InputError, match="format 99"):
        compare(net, digits("train"), digits("test"), plan("bias"), tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="--out"):
        compare(net, digits("train"), digits("test"), plan("bias"), tmp_path / "file")


NET = """
import torch, torch.nn.functional as F
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.fc = nn.Conv2d(8, 16, 3, padding=1), nn.Linear(16, 10)
    def forward(self, x):
        return self.fc(F.relu(self.conv2(F.max_pool2d(F.relu(self.bn(self.conv1(x))), 2))).mean((2, 3)))
def make():
    return Net()
"""


def test_command_line_from_compare_to_page(net, tmp_path, capsys):
    (tmp_path / "net.py").write_text(NET)
    torch.save(net.state_dict(), tmp_path / "net.pt")
    for part in ("train", "test"):
        data = digits(part)
        np.savez(tmp_path / f"{part}.npz", x=data.source.images, y=data.labels, classes=np.array(data.classes))
    common = [
        *("compare", "--model", f"{tmp_path}/net.py:make", "--weights", f"{tmp_path}/net.pt", "--mean", "0.3"),
        *("--std", "0.4", "--train", f"{tmp_path}/train.npz", "--test", f"{tmp_path}/test.npz"),
        *("--out", f"{tmp_path}/out", "--jobs", "0", "--iterations", "3"),
    ]
    wanted = [*common, "--target", "digit 8", "--methods", "bias,retraining-4,da", "--json", f"{tmp_path}/r.json"]
    assert command([*wanted, "--track", f"tensorboard:{tmp_path}/tb"]) == 0
    result = json.loads((tmp_path / "r.json").read_text())
    assert [m["name"] for m in result["methods"]] == ["bias", "retraining-4", "da"]
    assert list((tmp_path / "tb").iterdir())
    assert "digit 8" in capsys.readouterr().out
    assert command(["report", f"{tmp_path}/out", "--out", f"{tmp_path}/page.html"]) == 0
    assert "<h1>" in (tmp_path / "page.html").read_text()
    assert command(["report", f"{tmp_path}/r.json", "--out", f"{tmp_path}/page2.html"]) == 0
    for bad in (
        [*common, "--target", "dog", "--methods", "bias"],
        [*common, "--target", "digit 8", "--methods", "magic"],
        [*common, "--target", "digit 8", "--methods", "bias", "--track", "paper:x"],
        [*common, "--target", "digit 8", "--optimiser", "magic"],
        ["report", f"{tmp_path}/nothing", "--out", f"{tmp_path}/x.html"],
        ["report", f"{tmp_path}/out", "--out", f"{tmp_path}/no/x.html"],
        ["report", f"{tmp_path}/out", "--out", f"{tmp_path}/x.html", "--model", "a.py:b"],
    ):
        assert command(bad) == 2, bad
    assert not (tmp_path / "x.html").exists()
    assert "Traceback" not in capsys.readouterr().err


def test_mlflow_is_told_by_its_own_api(monkeypatch):
    import sys
    from contextlib import contextmanager
    from types import SimpleNamespace

    from tweaknn.tracking import tracker

    told = []

    @contextmanager
    def start_run(run_name):
        told.append(run_name)
        yield

    fake = SimpleNamespace(
        set_experiment=told.append, start_run=start_run, log_params=told.append, log_metrics=told.append
    )
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    with tracker("mlflow:mine") as log:
        log(3, "bias", {"reason": "", "target": 0.5, "overall": None, "per_class": [1]})
    assert told == ["mine", "bias seed 3", {"method": "bias", "seed": 3, "reason": "none"}, {"target": 0.5}]
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(InputError, match="pip install mlflow"), tracker("mlflow:mine"):
        pass
