"""Ordinary accidents that used to end in a traceback, an endless wait or a class too many."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from tweaknn.errors import DataError, InputError
from tweaknn.inputs import load_data
from tweaknn.inputs.preprocess import LARGEST_SIDE, resolve_preprocess

from .conftest import encoded, picture


@pytest.mark.parametrize("gives", [None, "a text", object()])
def test_preprocessing_that_gives_no_tensor_is_one_sentence(folder, gives):
    data = load_data(folder, preprocess=lambda image: gives)
    with pytest.raises(DataError, match=r"one\.png|two\.PNG.*must be a tensor or numbers"):
        data[0]


def test_a_slip_in_the_size_does_not_take_the_memory():
    with pytest.raises(InputError, match="at most"):
        resolve_preprocess(None, size=[LARGEST_SIDE + 1])
    resolve_preprocess(None, size=[LARGEST_SIDE])


def test_what_macos_leaves_in_archives_is_no_class(folder):
    shutil.copytree(folder / "ant", folder / "__MACOSX" / "ant")
    (folder / "ant" / "._one.png").write_bytes(b"\0\5")
    (folder / "ant" / ".DS_Store").write_bytes(b"x")
    data = load_data(folder)
    assert data.classes == ["ant", "bee", "cow"]
    assert data.counts().tolist() == [2, 2, 2]


def test_two_classes_of_one_name(tmp_path):
    x = np.zeros((3, 4, 4, 3), np.uint8)
    names = np.array(["crane", "bee", "crane"])
    np.savez(tmp_path / "numbers.npz", x=x, y=np.array([0, 1, 2]), classes=names)
    assert load_data(tmp_path / "numbers.npz").labels.tolist() == [0, 1, 2]  # ImageNet has two cranes
    np.savez(tmp_path / "words.npz", x=x, y=names, classes=names)
    with pytest.raises(DataError, match="two classes are named 'crane'"):
        load_data(tmp_path / "words.npz")


def test_damaged_image_in_a_parquet_file_names_its_row_and_no_address(tmp_path):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    rows = [{"bytes": encoded(picture(0)), "path": None}, {"bytes": b"junk", "path": None}]
    pq.write_table(pa.table({"image": rows, "label": [0, 1]}), tmp_path / "d.parquet")
    with pytest.raises(DataError, match="row 1: this image cannot be read") as caught:
        load_data(tmp_path / "d.parquet")[1]
    assert "0x" not in str(caught.value)


@pytest.mark.parametrize(
    ("batches", "said"),
    [
        ([(np.zeros((3, 4)), 1)], "must give batches"),
        ([(np.zeros((2, 4)), np.array([0]))], "must give batches"),
        ([(object(), np.array([0]))], "cannot be made a tensor"),
        ([(np.zeros((1, 4)), np.array([0])), (np.zeros((1, 5)), np.array([0]))], "different shapes"),
    ],
)
def test_iterators_of_anything_but_batches(batches, said):
    from tweaknn.inputs import as_examples

    with pytest.raises(DataError, match=said):
        as_examples(iter(batches), name="mine")


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "P", "LA", "1"])
def test_every_kind_of_picture_becomes_what_the_network_takes(tmp_path, mode):
    from PIL import Image

    from tweaknn.inputs import Preprocess

    made = Image.fromarray(np.full((6, 9, 3), 255, np.uint8)).convert(mode)
    name = "a.tif" if mode == "CMYK" else "a.png"
    (tmp_path / "ant").mkdir()
    made.save(tmp_path / "ant" / name)
    x, _ = load_data(tmp_path, preprocess=Preprocess(channels=3)).batch([0])
    assert x.shape == (1, 3, 6, 9)
    assert float(x.min()) == 1.0


def test_orientation_is_left_as_the_file_has_it(tmp_path):
    from PIL import Image

    from tweaknn.inputs import Preprocess

    image = Image.fromarray(np.zeros((6, 9, 3), np.uint8))
    exif = image.getexif()
    exif[274] = 6  # a quarter turn
    (tmp_path / "ant").mkdir()
    image.save(tmp_path / "ant" / "a.jpg", exif=exif)
    x, _ = load_data(tmp_path, preprocess=Preprocess(channels=3)).batch([0])
    assert x.shape == (1, 3, 6, 9)
