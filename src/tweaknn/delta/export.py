"""Carry a tweaked network to other runtimes: ONNX and PyTorch's own ``pt2``, with a batch of any size."""

from __future__ import annotations

import io
import os
import secrets
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tweaknn.delta.attach import Tweaked, example_input
from tweaknn.delta.hooked import HookedNet
from tweaknn.errors import InputError, ModelError
from tweaknn.network.modes import call, output_of, placement

FORMATS = ("onnx", "pt2")
TOLERANCE = 1e-3
"""Largest difference, as a share of the largest logit, that the check of an export lets pass."""


class LogitsOnly(nn.Module):
    """A network whose output is the logits alone, whatever else the wrapped one returns."""

    def __init__(self, net: nn.Module, head: int | str | None = None) -> None:
        super().__init__()
        self.net = net
        self.head = head

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return output_of(self.net(*args, **kwargs), self.head)


def _taking(net: LogitsOnly, names: Sequence[str]) -> nn.Module:
    """``net`` with the keyword arguments ``names`` in its signature.

    torch.export writes guards about ``**kwargs`` that its own loaded programs cannot evaluate (``L['kwargs'][...]``).
    """
    if not all(name.isidentifier() for name in names):
        raise InputError(f"Inputs must be named as Python names its arguments, not {', '.join(names)}.")
    space: dict[str, Any] = {}
    exec(f"def forward(self, {', '.join(names)}):\n    return self.run({', '.join(f'{n}={n}' for n in names)})", space)

    class Named(nn.Module):
        forward = space["forward"]

        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def run(self, **kwargs: Any) -> Tensor:
            return self.net(**kwargs)

    return Named().eval()


def export(
    tweaked: nn.Module,
    path: str | os.PathLike[str],
    format: str = "onnx",
    *,
    example_x: Any = None,
    input_shape: Sequence[int] | None = None,
    check: bool = True,
) -> float:
    """Write a tweaked (or any) network to ``path``; it takes ``(batch, *input_shape)`` and gives logits ``(batch, c)``.

    Args:
        tweaked: what ``delta.attach`` returned, or a plain network with ``example_x`` or ``input_shape``.
        format: ``onnx`` (opset of PyTorch's exporter, weights inside) or ``pt2`` (``torch.export.load`` opens it).
        example_x: an input of at least two examples, for networks whose input is not one tensor.
        input_shape: of one example, in place of the shape the delta knows.
        check: run the written file (in onnxruntime for ONNX) on batches of two sizes and compare.

    Returns:
        The largest difference between the file's logits and the network's, in logits; 0 without ``check``.

    Raises:
        InputError: an unknown format, or no input shape is known.
        ModelError: the network cannot be exported, or the file computes something else; nothing is written then.
    """
    if format not in FORMATS:
        raise InputError(f"Format {format!r} is none of {', '.join(FORMATS)}.")
    delta = tweaked.delta if isinstance(tweaked, Tweaked) else None
    x = _example(tweaked, delta, example_x, input_shape)
    net: nn.Module = LogitsOnly(tweaked, delta.head if delta is not None else None).eval()
    if isinstance(x, dict):
        net = _taking(net, list(x))  # type: ignore[arg-type]
    target = Path(path)
    temporary = target.parent / f".{target.name}.{secrets.token_hex(8)}.{format}"
    if not target.parent.is_dir() or target.is_dir():
        raise InputError(f"{target}: cannot be written; its folder must exist and it must not be a folder itself.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            (_to_onnx if format == "onnx" else _to_pt2)(net, x, temporary)
            difference = _difference(net, x, temporary, format) if check else 0.0
        os.replace(temporary, target)
        return difference
    except OSError as error:
        raise InputError(f"{target}: cannot be written: {error.strerror or error}.") from None
    finally:
        temporary.unlink(missing_ok=True)


def _example(net: nn.Module, delta: Any, example_x: Any, input_shape: Sequence[int] | None) -> Any:
    if example_x is not None:
        return example_x
    device, dtype = placement(net)
    if input_shape is not None:
        x = torch.zeros(2, *input_shape, device=device, dtype=dtype)
    elif delta is not None:
        x = example_input(delta, device, dtype)
    else:
        raise InputError("The network's input shape is not known; give example_x or input_shape.")
    if x.is_floating_point():  # zeros would hide a wrong export behind zero activations
        x.normal_(generator=torch.Generator(device).manual_seed(0))
    return x


def _dynamic(x: Any) -> Any:
    batch = torch.export.Dim("batch", min=1, max=1 << 20)
    if isinstance(x, dict):
        return {key: {0: batch} for key in x}
    return {0: batch}


def _program(net: nn.Module, x: Any) -> torch.export.ExportedProgram:
    args, kwargs = ((), dict(x)) if isinstance(x, dict) else ((x,), None)
    shapes = _dynamic(x) if isinstance(x, dict) else {"args": (_dynamic(x),)}
    problem: Exception | None = None
    # hooks are plain Python, which only the non-strict way follows; the strict way sees through more of the rest
    for strict in (False,) if any(isinstance(m, HookedNet) for m in net.modules()) else (False, True):
        try:
            with torch.no_grad():
                return torch.export.export(net, args, kwargs, dynamic_shapes=shapes, strict=strict)
        except Exception as error:
            problem = problem or error
    reason = (str(problem).strip().splitlines() or [type(problem).__name__])[0][:200]
    raise ModelError(f"torch.export cannot follow this network: {reason}")


def _to_pt2(net: nn.Module, x: Any, path: Path) -> None:
    buffer = io.BytesIO()
    torch.export.save(_program(net, x), buffer)
    path.write_bytes(buffer.getvalue())


def _to_onnx(net: nn.Module, x: Any, path: Path) -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError:
        raise ModelError("Writing ONNX needs more packages: pip install 'tweaknn[export]'.") from None
    program = _program(net, x)
    names = list(x) if isinstance(x, dict) else ["input"]
    try:
        written = torch.onnx.export(program, dynamo=True, input_names=names, output_names=["logits"], verbose=False)
        assert written is not None
        written.save(str(path), external_data=False)
    except OSError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ModelError(f"This network cannot be written as ONNX: {reason}") from None


def _difference(net: nn.Module, x: Any, path: Path, format: str) -> float:
    """Largest difference of logits between the network and the file, on batches of 2 and 3 examples."""
    run = _onnx_runner(path) if format == "onnx" else _pt2_runner(path)
    largest = 0.0
    for n in (2, 3):
        batch = _take(x, n)
        with torch.inference_mode():
            expected = call(net, batch).float().cpu()
        found = run(batch).float().cpu()
        gap = float((found - expected).abs().max())
        if found.shape != expected.shape or not gap <= TOLERANCE * max(1.0, float(expected.abs().max())):
            raise ModelError(f"The exported network computes something else: logits differ by {gap:.3g}.")
        largest = max(largest, gap)
    return largest


def _take(x: Any, n: int) -> Any:
    if isinstance(x, dict):
        return {key: _take(value, n) for key, value in x.items()}
    return x.repeat(n, *[1] * (x.ndim - 1))[:n]


def _pt2_runner(path: Path) -> Any:
    module = torch.export.load(str(path)).module()
    return lambda x: call(module, x)


def _onnx_runner(path: Path) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise ModelError("Checking ONNX needs onnxruntime: pip install 'tweaknn[export]', or check=False.") from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]

    def run(x: Any) -> Tensor:
        values = list(x.values()) if isinstance(x, dict) else [x]
        feed = {name: value.detach().cpu().numpy() for name, value in zip(names, values, strict=True)}
        return torch.from_numpy(session.run(None, feed)[0])

    return run
