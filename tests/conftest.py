"""Shared fixtures: the development data, when it is at hand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("TWEAKNN_SHARED", Path(__file__).resolve().parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real data and third-party networks kept beside the checkout; skips, loudly, where it is missing."""
    if not (SHARED / "data" / "README.md").is_file():
        pytest.skip(f"REAL DATA MISSING: {SHARED} not found; set TWEAKNN_SHARED to run this test")
    return SHARED
