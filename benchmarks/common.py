"""What the benchmarks share: where the real data lies, the machine, results written whole."""

from __future__ import annotations

import datetime
import json
import os
import platform
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tweaknn

HERE = Path(__file__).resolve().parent
SHARED = Path(os.environ.get("TWEAKNN_SHARED", HERE.parents[1] / "shared"))
"""Real data and third-party networks, kept beside the checkout; set TWEAKNN_SHARED to another place."""


def machine() -> dict[str, Any]:
    """Where and when figures were taken."""
    return {
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "tweaknn": tweaknn.__version__,
        "date": datetime.date.today().isoformat(),
    }


def write(path: Path, figures: dict[str, Any]) -> None:
    """Write JSON whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(handle, "w") as stream:
        json.dump(plain(figures), stream, indent=1)
        stream.write("\n")
    os.chmod(temporary, 0o644)
    os.replace(temporary, path)


def plain(value: Any) -> Any:
    """Numpy values as Python's, NaN as null, floats to six digits."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, (float, np.floating)):
        return round(float(value), 6) if np.isfinite(value) else None
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, np.bool_):
        return bool(value)
    return value
