"""What the benchmarks share: where the real data lies, the machine, results written whole."""

from __future__ import annotations

import datetime
import os
import platform
from pathlib import Path
from typing import Any

import torch

import tweaknn
from tweaknn.writing import json_text
from tweaknn.writing import write as whole

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
    """Write figures as JSON, floats to six digits, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole(path, json_text(figures, digits=6))
