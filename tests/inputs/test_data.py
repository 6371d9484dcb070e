"""Every kind of data a user may bring."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from tweaknn.errors import DataError, InputError
from tweaknn.inputs import Examples, Preprocess, as_examples, load_data

from .conftest import encoded, picture


def expected(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def test_folder(folder):
    data = load_data(folder)
    assert data.classes == ["ant", "bee", "cow"]
    assert data.labels.tolist() == [0, 0, 1, 1, 2, 2]
    x, y = data[1]
    assert y == 0
    assert x.dtype == torch.float32
    torch.testing.assert_close(x, expected(picture(1)))
    torch.testing.assert_close(data[0][0], expected(picture(11)))  # deep/two.PNG sorts first


def test_folder_with_an_empty_class_keeps_it(folder):
    (folder / "bat").mkdir()
    data = load_data(folder)
    assert data.classes == ["ant", "bat", "bee", "cow"]
    assert data.counts().tolist() == [2, 0, 2, 2]
    assert any("bat" in note for note in data.notes)


def test_folder_columns_come_from_metadata_csv(folder):
    rows = [
        f"{name}/{file},p{k}" for k, name in enumerate(("ant", "bee", "cow")) for file in ("one.png", "deep/two.PNG")
    ]
    (folder / "metadata.csv").write_text("\n".join(["file_name,patient", *rows]))
    assert load_data(folder, group="patient").column("patient").tolist() == ["p0", "p0", "p1", "p1", "p2", "p2"]
    with pytest.raises(DataError, match="no column 'lesion'; it has: patient"):
        load_data(folder, group="lesion")
    (folder / "metadata.csv").write_text("\n".join(["file_name,patient", *rows[1:]]))
    with pytest.raises(DataError, match=r"no row for 1 images; the first is ant/one.png"):
        load_data(folder)


def test_parquet(parquet):
    path = parquet(patient=list("aabbcc"), weight=[0.5] * 6)
    data = load_data(path, group="patient")
    assert data.classes == ["ant", "bee", "cow"]
    assert data.labels.tolist() == [0, 1, 2, 0, 1, 2]
    torch.testing.assert_close(data[4][0], expected(picture(4)))
    assert data.column("patient").tolist() == list("aabbcc")
    assert set(data.columns) == {"patient", "weight"}


def test_parquet_shards_and_patterns(parquet, tmp_path):
    parquet("shards/a-0.parquet", n=3)
    parquet("shards/a-1.parquet", n=6)
    for spec in (tmp_path / "shards", tmp_path / "shards" / "a-*.parquet"):
        data = load_data(spec)
        assert data.labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2]
        torch.testing.assert_close(data[5][0], expected(picture(2)))
    parquet("mixed/train-0.parquet")
    parquet("mixed/test-0.parquet")
    with pytest.raises(DataError, match="several splits"):
        load_data(tmp_path / "mixed")
    with pytest.raises(DataError, match="no file matches"):
        load_data(tmp_path / "shards" / "b-*.parquet")


def test_parquet_text_labels(parquet):
    data = load_data(parquet(labels=["cow", "ant", "cow", "ant", "bee", "bee"], metadata=False))
    assert data.classes == ["ant", "bee", "cow"]
    assert data.labels.tolist() == [2, 0, 2, 0, 1, 1]
    assert load_data(parquet(labels=["3", "0", "1", "2", "10", "1"], metadata=False)).labels.tolist() == [
        3,
        0,
        1,
        2,
        10,
        1,
    ]


def test_parquet_image_by_path(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    picture(3).save(tmp_path / "x.png")
    pq.write_table(
        pa.table(
            {"image": [{"bytes": None, "path": "x.png"}, {"bytes": encoded(picture(4)), "path": None}], "label": [0, 1]}
        ),
        tmp_path / "d.parquet",
    )
    torch.testing.assert_close(load_data(tmp_path / "d.parquet")[0][0], expected(picture(3)))


def test_grey_images_keep_one_channel_unless_wanted_otherwise(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "g" / name).mkdir(parents=True)
        picture(ord(name), mode="L").save(tmp_path / "g" / name / "x.png")
    assert load_data(tmp_path / "g")[0][0].shape == (1, 8, 8)
    assert load_data(tmp_path / "g", preprocess=Preprocess(channels=3))[0][0].shape == (3, 8, 8)
    picture(7).save(tmp_path / "g" / "b" / "colour.png")
    assert load_data(tmp_path / "g")[0][0].shape == (3, 8, 8)
    assert load_data(tmp_path / "g", preprocess=Preprocess(channels=1))[2][0].shape == (1, 8, 8)


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    (tmp_path / "g" / "a").mkdir(parents=True)
    Image.fromarray(np.full((4, 4), 32896, dtype=np.uint16)).save(tmp_path / "g" / "a" / "x.png")
    assert load_data(tmp_path / "g")[0][0].mean().item() == pytest.approx(128 / 255)


@pytest.mark.parametrize(
    ("shape", "out"), [((6, 5, 4), (1, 5, 4)), ((6, 5, 4, 3), (3, 5, 4)), ((6, 5, 4, 1), (1, 5, 4))]
)
def test_npz_images(tmp_path, shape, out):
    x = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.savez(tmp_path / "d.npz", x=x, y=np.arange(6) % 3, classes=np.array(["a", "b", "c"]), patient=np.arange(6) // 2)
    data = load_data(tmp_path / "d.npz", preprocess=Preprocess(mean=(0.5,), std=(0.25,)))
    assert data[2][0].shape == out
    reference = (x[2].reshape(5, 4, -1).transpose(2, 0, 1) / 255 - 0.5) / 0.25
    np.testing.assert_allclose(data[2][0].numpy(), reference, atol=1e-6)
    assert data.classes == ["a", "b", "c"]
    assert data.column("patient").tolist() == [0, 0, 1, 1, 2, 2]
    assert data.image(0).shape[:2] == (5, 4)


def test_npz_grey_to_three_channels(tmp_path):
    np.savez(tmp_path / "d.npz", x=np.full((2, 4, 4), 51, dtype=np.uint8), y=[0, 1])
    x = load_data(tmp_path / "d.npz", preprocess=Preprocess(channels=3))[0][0]
    assert x.shape == (3, 4, 4)
    assert x.unique().tolist() == pytest.approx([0.2])


def test_npz_tables_are_not_scaled(tmp_path):
    x = np.arange(12.0).reshape(4, 3)
    np.savez(tmp_path / "d.npz", x=x, y=np.array(["no", "yes", "no", "yes"]))
    data = load_data(tmp_path / "d.npz")
    assert data.classes == ["no", "yes"]
    assert data[3][0].tolist() == [9.0, 10.0, 11.0]
    assert data[3][1] == 1
    shifted = load_data(tmp_path / "d.npz", preprocess=Preprocess(mean=(1.0, 2.0, 3.0), std=(2.0,)))
    assert shifted[0][0].tolist() == [-0.5, -0.5, -0.5]
    with pytest.raises(DataError, match="no images"):
        data.image(0)


def test_file_function(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch\nfrom torch.utils.data import TensorDataset\n"
        "def make():\n    return TensorDataset(torch.arange(8.0).reshape(4, 2), torch.tensor([0, 1, 1, 0]))\n"
        "def text():\n    return 'no'\ndef broken():\n    return 1 / 0\n"
    )
    data = load_data(f"{tmp_path}/mine.py:make")
    assert data.labels.tolist() == [0, 1, 1, 0]
    assert data[2][0].tolist() == [4.0, 5.0]
    with pytest.raises(DataError, match="ZeroDivisionError"):
        load_data(f"{tmp_path}/mine.py:broken")
    with pytest.raises(DataError, match=r"no function 'other'; it has:.*make"):
        load_data(f"{tmp_path}/mine.py:other")
    with pytest.raises(DataError):
        load_data(f"{tmp_path}/mine.py:text")


class Squares(torch.utils.data.Dataset):
    """A dataset whose ``targets`` lie, as one with a target transform does."""

    targets = (9, 9, 9)
    classes = ("even", "odd")

    def __len__(self):
        return 3

    def __getitem__(self, i):
        return np.full((2,), float(i * i)), i % 2


def test_user_datasets_and_loaders():
    data = as_examples(Squares())
    assert data.labels.tolist() == [0, 1, 0]
    assert data.classes == ["even", "odd"]
    assert data[2][0].dtype == torch.float32
    x, y = torch.randn(10, 3), torch.arange(10) % 2
    for source in (
        (x, y),
        (x.numpy(), y.numpy()),
        TensorDataset(x, y),
        DataLoader(TensorDataset(x, y), 4, shuffle=True),
    ):
        data = as_examples(source)
        torch.testing.assert_close(data.batch([3, 1])[0], x[[3, 1]])
        assert data.labels.tolist() == y.tolist()
    batches = [(x[:6], y[:6]), (x[6:], y[6:])]
    torch.testing.assert_close(as_examples(iter(batches)).batch(range(10))[0], x)

    class Stream(IterableDataset):
        def __iter__(self):
            return iter(zip(x, y))

    assert as_examples(Stream()).labels.tolist() == y.tolist()
    with pytest.raises(DataError, match="whole numbers"):
        as_examples((x, torch.rand(10)))
    with pytest.raises(DataError, match="10 examples but 3 labels"):
        as_examples((x, y[:3]))
    with pytest.raises(DataError, match="negative"):
        as_examples((x, y - 1))
    with pytest.raises(DataError, match="not int"):
        as_examples(3)


def test_loader_order_subset_and_cache(folder):
    data = load_data(folder)
    xs = torch.cat([x for x, _ in data.loader(4)])
    assert [len(y) for _, y in data.loader(4)] == [4, 2]
    part = data.subset([5, 0]).subset([1])
    assert part.labels.tolist() == [0]
    torch.testing.assert_close(part[0][0], xs[0])
    mask = data.subset(data.labels == 2)
    torch.testing.assert_close(torch.cat([x for x, _ in mask.loader(1)]), xs[4:])
    torch.testing.assert_close(next(iter(data.loader(3, indices=[5, 1, 1])))[0], xs[[5, 1, 1]])
    (folder / "ant" / "one.png").unlink()
    torch.testing.assert_close(data[1][0], xs[1])  # decoded once, kept
    with pytest.raises(InputError):
        data.subset([])
    with pytest.raises(IndexError):
        data[6]
    with pytest.raises(InputError):
        data.loader(0)


def test_images_that_came_through_shared_memory(parquet):
    """Arrays out of a Ray object store are read-only: decoding goes on in a copy."""
    import pickle

    data = load_data(parquet())
    expected_last = data[5][0]
    sent = load_data(parquet())
    sent[0]  # one picture is decoded, the others are not
    buffers: list[pickle.PickleBuffer] = []
    body = pickle.dumps(sent, protocol=5, buffer_callback=buffers.append)
    arrived = pickle.loads(body, buffers=[bytes(b.raw()) for b in buffers])
    torch.testing.assert_close(arrived[5][0], expected_last)
    torch.testing.assert_close(arrived[0][0], data[0][0])


def test_beyond_the_cache_limit_images_are_decoded_again(folder, monkeypatch):
    kept = torch.cat([x for x, _ in load_data(folder).loader(4)])
    monkeypatch.setattr("tweaknn.inputs.examples.CACHE_BYTES", 10)
    lazy = load_data(folder)
    torch.testing.assert_close(torch.cat([x for x, _ in lazy.loader(4)]), kept)
    torch.testing.assert_close(lazy.batch([3, 3, 0])[0], kept[[3, 3, 0]])


def test_preprocess_function_of_a_user(folder, tmp_path):
    (tmp_path / "pre.py").write_text(
        "import torch\ndef tiny(image):\n    return torch.tensor([float(image.size[0])])\n"
        "def bad(image):\n    raise KeyError('x')\n"
    )
    assert load_data(folder, preprocess=f"{tmp_path}/pre.py:tiny")[0][0].tolist() == [8.0]
    with pytest.raises(DataError, match=r"two.PNG: the preprocessing fails: KeyError"):
        load_data(folder, preprocess=f"{tmp_path}/pre.py:bad")[0]


def test_content_hash_follows_content(folder, parquet, tmp_path):
    first, again = load_data(folder), load_data(folder)
    assert first.content_hash() == again.content_hash()
    assert first.subset(range(6)).content_hash() == first.content_hash()
    assert first.subset([1, 0, 2, 3, 4, 5]).content_hash() != first.content_hash()
    assert first.relabelled(first.labels[::-1], None).content_hash() != first.content_hash()
    picture(99).save(folder / "ant" / "one.png")
    assert load_data(folder).content_hash() != again.content_hash()
    assert load_data(parquet("a.parquet")).content_hash() == load_data(parquet("b.parquet")).content_hash()
    np.savez(tmp_path / "d.npz", x=np.zeros((2, 3)), y=[0, 1])
    np.savez(tmp_path / "e.npz", x=np.eye(2, 3), y=[0, 1])
    assert load_data(tmp_path / "d.npz").content_hash() != load_data(tmp_path / "e.npz").content_hash()


def test_classes_reorder_by_name(folder):
    data = load_data(folder, classes=["cow", "bee", "ant", "dog"])
    assert data.labels.tolist() == [2, 2, 1, 1, 0, 0]
    assert data.classes == ["cow", "bee", "ant", "dog"]
    assert load_data(folder, classes=["Cow", "BEE", "ant"]).labels.tolist() == [2, 2, 1, 1, 0, 0]
    with pytest.raises(DataError, match="bee"):
        load_data(folder, classes=["cow", "ant"])


def test_unreadable_images(folder):
    broken = folder / "bee" / "one.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(DataError, match=r"bee.one\.png.*--skip-unreadable"):
        list(load_data(folder).loader(8))
    data = load_data(folder, skip_unreadable=True)
    assert data.skipped == 1
    assert len(data) == 5
    assert data.labels.tolist() == [0, 0, 1, 2, 2]
    assert data.describe()["skipped_names"] == [str(broken)]
    list(data.loader(8))
    for file in folder.rglob("*.[pP][nN][gG]"):
        file.write_bytes(b"no image")
    with pytest.raises(DataError, match="none of the 6 images"):
        load_data(folder, skip_unreadable=True)


def test_truncated_jpeg_is_unreadable_too(tmp_path):
    (tmp_path / "d" / "a").mkdir(parents=True)
    (tmp_path / "d" / "a" / "x.jpg").write_bytes(encoded(picture(0, (64, 64)), "JPEG")[:-900])
    with pytest.raises(DataError, match=r"x\.jpg"):
        load_data(tmp_path / "d")[0]


def test_unequal_sizes_say_what_to_do(folder):
    picture(5, size=(9, 8)).save(folder / "cow" / "wide.png")
    with pytest.raises(DataError, match=r"8x9 with 3 channels.*8x8.*--size"):
        list(load_data(folder).loader(8))
    assert load_data(folder, preprocess=Preprocess(resize=4, crop=(4, 4))).batch(range(7))[0].shape == (7, 3, 4, 4)


def test_real_parquet(shared):
    data = load_data(shared / "data" / "usps" / "test.parquet")
    assert (len(data), data.classes[3], tuple(data[0][0].shape)) == (2007, "3", (1, 16, 16))
    assert isinstance(data, Examples)


def test_real_folder(shared):
    data = load_data(shared / "data" / "clothing10" / "test", preprocess=Preprocess(resize=32, crop=(32, 32)))
    assert len(data) == 372
    assert data.batch(range(20))[0].shape == (20, 3, 32, 32)
