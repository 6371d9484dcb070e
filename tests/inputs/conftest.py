"""Small images and tables of every kind a user may bring."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image


def picture(seed: int, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(seed)
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    return Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes of two pictures, one of them nested."""
    root = tmp_path / "photos"
    for label, name in enumerate(("bee", "ant", "cow")):
        (root / name / "deep").mkdir(parents=True)
        picture(label).save(root / name / "one.png")
        picture(label + 10).save(root / name / "deep" / "two.PNG")
    return root


@pytest.fixture
def parquet(tmp_path: Path):
    """A writer of Parquet files of the Hugging Face convention."""

    def write(name="data.parquet", n=6, names=("ant", "bee", "cow"), labels=None, metadata=True, **columns):
        labels = [i % 3 for i in range(n)] if labels is None else labels
        images = [{"bytes": encoded(picture(i)), "path": f"{i}.png"} for i in range(n)]
        table = pa.table({"image": images, "label": labels, **columns})
        if metadata:
            features = {"image": {"_type": "Image"}, "label": {"names": list(names), "_type": "ClassLabel"}}
            table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        pq.write_table(table, path)
        return path

    return write
