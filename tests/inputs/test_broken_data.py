"""Data that is broken in ordinary ways: each is one clear sentence."""

from __future__ import annotations

import numpy as np
import pytest

from tweaknn.errors import DataError
from tweaknn.inputs import load_data

from .conftest import encoded, picture


def write_npz(path, **arrays):
    np.savez(path, **arrays)
    return path


BAD_NPZ = {
    "no array 'y'": {"x": np.zeros((2, 3))},
    "no array 'x'": {"y": [0, 1]},
    "2 examples but y 3": {"x": np.zeros((2, 3)), "y": [0, 1, 1]},
    "no examples": {"x": np.zeros((0, 3)), "y": np.zeros(0, int)},
    "first is row 1": {"x": np.array([[0.0], [np.nan], [np.inf]]), "y": [0, 1, 0]},
    "lies outside its 2 classes": {"x": np.zeros((2, 3)), "y": [0, 2], "classes": np.array(["a", "b"])},
    "'z' at example 1": {"x": np.zeros((2, 3)), "y": np.array(["a", "z"]), "classes": np.array(["a", "b"])},
    "whole numbers": {"x": np.zeros((2, 3)), "y": [0.5, 1.0]},
    "1, 3 or 4 channels": {"x": np.zeros((2, 3, 8, 8), np.uint8), "y": [0, 1]},
    "must be uint8 images": {"x": np.zeros(2), "y": [0, 1]},
}


@pytest.mark.parametrize("message", BAD_NPZ)
def test_bad_npz(tmp_path, message):
    with pytest.raises(DataError, match=message):
        load_data(write_npz(tmp_path / "d.npz", **BAD_NPZ[message]))


def test_pickled_npz_is_refused(tmp_path):
    with pytest.raises(DataError, match="pickled"):
        load_data(write_npz(tmp_path / "d.npz", x=np.array([{}, {}], dtype=object), y=[0, 1]))


def test_broken_files_and_folders(folder, parquet, tmp_path):
    path = parquet()
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match="not a readable Parquet"):
        load_data(path)
    npz = write_npz(tmp_path / "d.npz", x=np.zeros((50, 30)), y=np.zeros(50, int))
    npz.write_bytes(npz.read_bytes()[:300])
    with pytest.raises(DataError, match=r"not a readable .npz"):
        load_data(npz)
    with pytest.raises(DataError, match="no file or folder"):
        load_data(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="is empty"):
        load_data(tmp_path / "empty")
    (tmp_path / "empty" / "a").mkdir()
    with pytest.raises(DataError, match="not one image"):
        load_data(tmp_path / "empty")
    (tmp_path / "s" / "train" / "a").mkdir(parents=True)
    (tmp_path / "s" / "test").mkdir()
    with pytest.raises(DataError, match="splits"):
        load_data(tmp_path / "s")
    (tmp_path / "x.txt").write_text("hello")
    with pytest.raises(DataError, match="neither"):
        load_data(tmp_path / "x.txt")


def test_parquet_without_what_is_needed(tmp_path, parquet):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"a": [1], "label": [0]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"no image column .*; its columns are: a, label"):
        load_data(tmp_path / "a.parquet")
    pq.write_table(pa.table({"image": [{"bytes": b"", "path": ""}]}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match="no column 'label'"):
        load_data(tmp_path / "b.parquet")
    with pytest.raises(DataError, match="row 1 has no label"):
        load_data(parquet(labels=[0, None, 1, 1, 1, 1]))
    with pytest.raises(DataError, match="label 7 at example 2 lies outside its 3 classes"):
        load_data(parquet(labels=[0, 1, 7, 0, 0, 0]))
    pq.write_table(
        pa.table(
            {"image": [{"bytes": None, "path": None}, {"bytes": encoded(picture(0)), "path": None}], "label": [0, 1]}
        ),
        tmp_path / "c.parquet",
    )
    with pytest.raises(DataError, match="row 0: this row has no image"):
        load_data(tmp_path / "c.parquet").batch([0, 1])
    assert load_data(tmp_path / "c.parquet", skip_unreadable=True).skipped == 1
