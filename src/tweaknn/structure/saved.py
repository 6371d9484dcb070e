"""A trained directory: ``weights.safetensors`` and ``structure.json``. No pickle, and nothing in it is executed.

The JSON names the network it was cut from (``file.py:function``, ``torchvision:NAME``, ``timm:NAME``), the branches
taken out, the attributes changed and the shape of every tensor. Loading builds the original, repeats the cuts, and
checks each of them against what the original has.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import math
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ModelError, TweaknnError
from .analyse import HEAD_NAMES, WIDTH_NAMES
from .blocks import remove_branches
from .layers import HeadAttention
from .surgery import refresh

FORMAT, VERSION = "tweaknn-structure", 1
WEIGHTS, STRUCTURE = "weights.safetensors", "structure.json"


@dataclass
class Origin:
    """Where a network came from and what has been cut from it since, in order."""

    spec: str
    num_classes: int | None = None
    branches: list[tuple[str, str]] = field(default_factory=list)
    attention: list[str] = field(default_factory=list)
    attributes: dict[str, int] = field(default_factory=dict)


def architecture(spec: str, num_classes: int | None = None) -> nn.Module:
    """An untrained network from its spec, with ``num_classes`` outputs where the maker takes such an argument.

    Raises:
        ModelError: unknown name, missing file, or a maker that fails.
    """
    from ..inputs.userfile import call_user, load_function, split_spec

    extra: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    if split_spec(spec) is not None:
        function = load_function(spec, ModelError)
        with contextlib.suppress(TypeError, ValueError):
            if extra and "num_classes" not in inspect.signature(function).parameters:
                extra = {}
        made = call_user(function, spec, ModelError, **extra)
    elif spec.startswith("torchvision:"):
        from torchvision.models import get_model

        made = _named(lambda name: get_model(name, weights=None, **extra), spec)
    elif spec.startswith("timm:"):
        try:
            import timm
        except ImportError:
            raise ModelError(f"'{spec}' needs timm: pip install 'tweaknn[timm]'.") from None
        made = _named(lambda name: timm.create_model(name, pretrained=False, **extra), spec)
    else:
        raise ModelError(f"'{spec}' is not a network: give file.py:function, torchvision:NAME or timm:NAME.")
    if not isinstance(made, nn.Module):
        raise ModelError(f"'{spec}' must return an nn.Module, not {type(made).__name__}.")
    return made


def _named(make: Any, spec: str) -> nn.Module:
    try:
        return make(spec.partition(":")[2])
    except Exception as problem:
        raise ModelError(f"'{spec}' cannot be built: {(str(problem).splitlines() or [''])[0][:160]}") from problem


def origin_of(pruner: Any, spec: str, num_classes: int | None = None) -> Origin:
    """The cuts a :class:`ComplexityAware` made, on top of those its model was loaded with.

    Args:
        pruner: after :meth:`ComplexityAware.compact`.
        spec: how the *full* network is made again: ``file.py:function``, ``torchvision:NAME`` or ``timm:NAME``.
        num_classes: handed to that maker where it takes such an argument.
    """
    model, plan = pruner.model, pruner.original
    before = getattr(model, "tweaknn_origin", None)
    base = before if isinstance(before, Origin) else Origin(spec, num_classes)
    gone = [
        (b.owner, b.last) for i, b in enumerate(plan.blocks) if not pruner.possible[plan.n_units + i]
    ]
    heads = [path for path, m in model.named_modules() if isinstance(m, HeadAttention)]
    present = dict(model.named_modules())
    attributes = {f"{a.module}.{a.name}": int(getattr(present[a.module], a.name)) for a in plan.attributes
                  if a.module in present}  # fmt: skip
    return Origin(base.spec, base.num_classes, [*base.branches, *gone], heads, {**base.attributes, **attributes})


def save_directory(
    path: str | Path, model: nn.Module, origin: Origin, *, classes: list[str] | None = None, preprocess: Any = None,
    facts: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    """Write ``model`` as a directory that is a ``--model``, whole or not at all.

    Args:
        path: the folder, made where it is missing.
        model: the compacted network.
        origin: of :func:`origin_of`; ``Origin(spec)`` for a network nothing was cut from.
        classes: names of the logits, in their order.
        preprocess: a :class:`tweaknn.inputs.Preprocess`, what pictures (or rows) go through before the network.
        facts: whatever is to be kept beside it and fits JSON (complexity, history).

    Raises:
        ModelError: the network holds NaN or infinite parameters, or the folder cannot be written.
    """
    from safetensors.torch import save_file

    target = Path(path)
    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    bad = [k for k, v in state.items() if v.is_floating_point() and not bool(torch.isfinite(v).all())]
    if bad:
        raise ModelError(f"the network holds NaN or infinite values in {bad[0]}; it was not saved")
    seen: dict[int, str] = {}
    for name in list(state):  # tied weights: safetensors wants each its own memory
        pointer = state[name].data_ptr()
        if pointer and pointer in seen:
            state[name] = state[name].clone()
        seen[pointer] = name
    record = {
        "format": FORMAT,
        "version": VERSION,
        "spec": _portable(origin.spec, target),
        "num_classes": origin.num_classes,
        "source_sha256": _source_hash(origin.spec),
        "branches": [list(b) for b in origin.branches],
        "attention": origin.attention,
        "attributes": origin.attributes,
        "shapes": {k: list(v.shape) for k, v in state.items()},
        "classes": classes,
        "preprocess": asdict(preprocess) if is_dataclass(preprocess) and not isinstance(preprocess, type) else None,
        "facts": _plain(facts or {}),
    }
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            save_file(state, work / WEIGHTS)
            # Two files cannot be replaced at once: a crash between them must not leave one network's weights under another's description.
            record["weights_sha256"] = hashlib.sha256((work / WEIGHTS).read_bytes()).hexdigest()
            (work / STRUCTURE).write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
            target.mkdir(exist_ok=True)
            for name in (WEIGHTS, STRUCTURE):
                os.chmod(work / name, 0o644)
                os.replace(work / name, target / name)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise ModelError(f"{target} cannot be written: {error.strerror or error}") from None


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _file_of(spec: str) -> Path | None:
    from ..inputs.userfile import split_spec

    parts = split_spec(spec)
    return None if parts is None else parts[0]


def _source_hash(spec: str) -> str | None:
    file = _file_of(spec)
    return hashlib.sha256(file.read_bytes()).hexdigest() if file is not None and file.is_file() else None


def _portable(spec: str, target: Path) -> str:
    """A user file's path relative to the directory, so that both can move together."""
    file = _file_of(spec)
    if file is None:
        return spec
    return f"{os.path.relpath(file.resolve(), target.resolve())}:{spec.rpartition(':')[2]}"


def read_structure(path: str | Path) -> dict[str, Any]:
    """The checked contents of ``structure.json``.

    Raises:
        ModelError: missing, truncated, of a newer format, or not of this format.
    """
    file = Path(path) / STRUCTURE
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"'{path}' is not a trained directory: it has no {STRUCTURE}") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"'{file}' cannot be read (damaged or incomplete): {error}") from None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ModelError(f"'{file}' is not a {FORMAT} file")
    if not isinstance(record.get("version"), int) or record["version"] > VERSION:
        raise ModelError(f"'{file}' has version {record.get('version')!r}; this tweaknn reads up to {VERSION}: update it")
    _check_types(record, file)
    return record


def _check_types(record: dict[str, Any], file: Path) -> None:
    def text_list(v: Any) -> bool:
        return isinstance(v, list) and all(isinstance(x, str) for x in v)

    def whole(v: Any) -> bool:
        return isinstance(v, int) and not isinstance(v, bool)

    checks = {
        "spec": lambda v: isinstance(v, str),
        "num_classes": lambda v: v is None or (whole(v) and v > 0),
        "branches": lambda v: isinstance(v, list) and all(text_list(b) and len(b) == 2 for b in v),
        "attention": text_list,
        "attributes": lambda v: isinstance(v, dict) and all(whole(x) and x > 0 for x in v.values()),
        "shapes": lambda v: isinstance(v, dict)
        and all(isinstance(s, list) and all(whole(x) and x >= 0 for x in s) for s in v.values()),
        "classes": lambda v: v is None or text_list(v),
        "preprocess": lambda v: v is None or isinstance(v, dict),
    }
    for name, ok in checks.items():
        if name not in record or not ok(record[name]):
            raise ModelError(f"'{file}': the entry '{name}' is missing or has the wrong form")


def load_directory(path: str | Path) -> nn.Module:
    """The network of a directory of :func:`save_directory`, in evaluation mode, with ``.classes`` and ``.preprocess``.

    Raises:
        ModelError: something is missing, damaged, or does not fit the network the directory says it was cut from.
    """
    from safetensors.torch import load_file

    root = Path(path)
    record = read_structure(root)
    spec = record["spec"]
    file = _file_of(spec)
    if file is not None:
        real = (root / file).resolve() if not file.is_absolute() else file.resolve()
        if root.resolve() in real.parents:
            raise ModelError(f"'{root}' points at code inside itself ({file.name}), which is not run; keep it elsewhere")
        if not real.is_file():
            raise ModelError(f"'{root}' was cut from {file.name}, which is not at {real}; put it back there")
        spec = f"{real}:{spec.rpartition(':')[2]}"
    model = architecture(spec, record["num_classes"])
    try:
        _repeat_cuts(model, record)
    except TweaknnError as error:
        raise ModelError(f"'{root}' does not fit {spec}: {error}") from None
    except Exception as error:
        raise ModelError(f"'{root}' does not fit {spec}: {(str(error).splitlines() or [''])[0][:160]}") from error
    try:
        state = load_file(root / WEIGHTS)
    except FileNotFoundError:
        raise ModelError(f"'{root}' has no {WEIGHTS}") from None
    except Exception as error:
        raise ModelError(f"'{root / WEIGHTS}' cannot be read (truncated or altered): {error}") from None
    _check_pair(root, record)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        lines = str(error).splitlines()
        raise ModelError(f"'{root / WEIGHTS}' does not fit its {STRUCTURE}: {lines[-1].strip()[:200]}") from None
    model.eval()
    model.classes = record["classes"]  # type: ignore[assignment]
    model.preprocess = _preprocess(record["preprocess"], root)  # type: ignore[assignment]
    model.tweaknn_origin = Origin(spec, record["num_classes"], [(a, b) for a, b in record["branches"]],
                                  list(record["attention"]), dict(record["attributes"]))  # type: ignore[assignment]  # fmt: skip
    return model


def _check_pair(root: Path, record: dict[str, Any]) -> None:
    """Folders made before the hash was kept have none, and pass."""
    wanted = record.get("weights_sha256")
    if wanted is not None and hashlib.sha256((root / WEIGHTS).read_bytes()).hexdigest() != wanted:
        raise ModelError(
            f"'{root / WEIGHTS}' was altered, or is of another run than its {STRUCTURE} (was saving interrupted?); "
            "train again into this folder, with --resume where a checkpoint is left"
        )


def _preprocess(values: dict[str, Any] | None, root: Path) -> Any:
    if values is None:
        return None
    from ..inputs import Preprocess

    try:
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return Preprocess(**fields)
    except (TypeError, TweaknnError) as error:
        raise ModelError(f"'{root / STRUCTURE}': the preprocessing is unusable: {error}") from None


def _repeat_cuts(model: nn.Module, record: dict[str, Any]) -> None:
    by_owner: dict[str, list[str]] = {}
    for owner, last in record["branches"]:
        by_owner.setdefault(owner, []).append(last)
    for owner in sorted(by_owner, key=lambda name: -name.count(".")):
        if not owner:
            raise ModelError("a branch of the outermost forward pass cannot be taken out")
        parts = dict(model.named_modules())
        if owner not in parts:  # it was inside another branch that is gone by now
            raise ModelError(f"it has no part {owner!r}")
        lasts = [last for last in by_owner[owner] if last in dict(parts[owner].named_modules())]
        parent, _, child = owner.rpartition(".")
        model.get_submodule(parent).set_submodule(child, remove_branches(parts[owner], lasts))
    for path in record["attention"]:
        module = model.get_submodule(path)
        if isinstance(module, nn.MultiheadAttention):
            parent, _, child = path.rpartition(".")
            model.get_submodule(parent).set_submodule(child, HeadAttention.like(module))
        elif not isinstance(module, HeadAttention):
            raise ModelError(f"{path!r} is not an attention layer")
    for full, value in record["attributes"].items():
        path, _, name = full.rpartition(".")
        module = model.get_submodule(path)
        old = module.__dict__.get(name)
        if name not in (*HEAD_NAMES, *WIDTH_NAMES) or type(old) is not int or not 1 <= value <= old:
            raise ModelError(f"{full!r} cannot become {value}")
        setattr(module, name, value)
    _resize(model, record["shapes"])


def _resize(model: nn.Module, shapes: dict[str, list[int]]) -> None:
    state = model.state_dict(keep_vars=True)
    if state.keys() != shapes.keys():
        odd = sorted(state.keys() ^ shapes.keys())[0]
        raise ModelError(f"the tensor {odd!r} is in only one of them")
    owners = dict(model.named_modules())
    touched = set()
    for name, wanted in shapes.items():
        tensor = state[name]
        if list(tensor.shape) == wanted:
            continue
        if len(wanted) != tensor.dim() or any(not 1 <= w <= t for w, t in zip(wanted, tensor.shape)):
            raise ModelError(f"{name!r} has shape {tuple(tensor.shape)}, which cannot be cut to {tuple(wanted)}")
        path, _, own = name.rpartition(".")
        smaller = _corner(tensor.detach(), wanted)
        if own in owners[path]._parameters:
            tensor.data = smaller
        else:
            owners[path]._buffers[own] = smaller
        touched.add(path)
    for path in touched:
        refresh(owners[path])
    for path in record_heads(model):
        refresh(owners[path])


def record_heads(model: nn.Module) -> list[str]:
    """Paths of attention layers with heads cut."""
    return [path for path, m in model.named_modules() if isinstance(m, HeadAttention)]


def _corner(tensor: Tensor, shape: list[int]) -> Tensor:
    for dim, size in enumerate(shape):
        tensor = tensor.narrow(dim, 0, size)
    return tensor.clone(memory_format=torch.contiguous_format)
