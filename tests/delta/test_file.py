"""The file: whole or refused, and saved whole or not at all."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import struct
import threading

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.delta.nets import Small, delta_for, examples, network
from tweaknn.delta import Delta
from tweaknn.delta import file as deltafile
from tweaknn.delta.file import content_hash, from_bytes, to_bytes
from tweaknn.errors import DeltaError
from tweaknn.network import Reader

NET = network(Small)
READER = Reader(NET, examples(2))
TINY = delta_for(NET, READER, per_layer=1)
DELTA = delta_for(NET, READER, reductions=("mean", "position"), mlp=True, columns=(0, 1))
PAYLOAD = to_bytes(TINY)


def resealed(change) -> bytes:
    """The tiny file with its header changed and its hash made right again: what an attacker would write."""
    tensors = safetensors.torch.load(PAYLOAD)
    length = struct.unpack("<Q", PAYLOAD[:8])[0]
    header = json.loads(json.loads(PAYLOAD[8 : 8 + length])["__metadata__"]["tweaknn"])
    header.pop("sha256")
    result = change(header, tensors)
    tensors = result if isinstance(result, dict) else tensors
    header["sha256"] = content_hash(header, tensors)
    return safetensors.torch.save(tensors, {"tweaknn": json.dumps(header, sort_keys=True)})


def test_every_single_flipped_bit_is_noticed():
    for position in range(len(PAYLOAD)):
        for bit in range(8):
            damaged = bytearray(PAYLOAD)
            damaged[position] ^= 1 << bit
            with pytest.raises(DeltaError):
                from_bytes(bytes(damaged))


def test_every_truncation_is_noticed():
    for length in range(len(PAYLOAD)):
        with pytest.raises(DeltaError):
            from_bytes(PAYLOAD[:length])
    with pytest.raises(DeltaError):
        from_bytes(PAYLOAD + b"\0")


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=400))
def test_arbitrary_bytes_raise_the_one_error(payload):
    with pytest.raises(DeltaError):
        from_bytes(payload)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = (
    "format kind base below classes input_shape input_dtype how head terms meta terms.0 terms.0.reads terms.0.head "
    "terms.0.reads.0 terms.0.reads.0.layer terms.0.reads.0.shape terms.0.reads.0.reduction terms.0.reads.0.channel_axis"
).split()


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(FIELDS), JSON)
def test_a_header_with_any_field_replaced_is_a_delta_or_the_one_error(field, value):
    def change(header, tensors):
        place = header
        *way, last = [int(part) if part.isdigit() else part for part in field.split(".")]
        for part in way:
            place = place[part]
        place[last] = value

    with contextlib.suppress(DeltaError):  # any other error fails the test
        assert isinstance(from_bytes(resealed(change)), Delta)


def test_newer_and_impossible_formats():
    with pytest.raises(DeltaError, match="newer"):
        from_bytes(resealed(lambda header, tensors: header.update(format=2)))
    for version in (0, True, "1", None, 1.0):
        with pytest.raises(DeltaError, match="format"):
            from_bytes(resealed(lambda header, tensors, v=version: header.update(format=v)))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["bias", "term.0.head.weight"])
def test_values_that_are_not_finite(name, bad):
    with pytest.raises(DeltaError, match=r"finite|NaN"):
        from_bytes(resealed(lambda header, tensors: tensors[name].view(-1)[:1].fill_(bad) is None))


@pytest.mark.parametrize(
    "change",
    [
        lambda h, t: {**t, "more": torch.zeros(1)},
        lambda h, t: {**t, "term.0.read.0": torch.tensor([-1])},
        lambda h, t: {**t, "term.0.read.0": torch.tensor([6])},
        lambda h, t: {**t, "term.0.read.0": torch.tensor([0.0])},
        lambda h, t: {**t, "term.0.read.0": torch.tensor([0], dtype=torch.int32)},
        lambda h, t: {**t, "bias": torch.zeros(4, dtype=torch.int64)},
        lambda h, t: {**t, "bias": torch.zeros(2, 2)},
        lambda h, t: {**t, "term.0.head.columns": torch.tensor([4])},
        lambda h, t: {**t, "term.0.head.weight": torch.zeros(0, 1 << 40)},
        lambda h, t: {name: value for name, value in t.items() if name != "bias"},
        lambda h, t: h.update(input_shape=[1 << 39, 1 << 39]),
        lambda h, t: h.update(input_dtype="save"),
        lambda h, t: h["terms"][0]["reads"][0].update(shape=[1 << 39] * 4),
        lambda h, t: h["terms"][0]["reads"][0].update(shape=[6, -8, -8]),
        lambda h, t: h.update(terms=[]),
        lambda h, t: h.update(terms=h["terms"] * 2),
        lambda h, t: h.update(base="../../etc/passwd"),
    ],
)
def test_inconsistent_content_is_refused(change):
    with pytest.raises(DeltaError):
        from_bytes(resealed(change))


def test_foreign_files(tmp_path):
    with pytest.raises(DeltaError, match="tweaknn"):
        from_bytes(safetensors.torch.save({"weight": torch.zeros(3)}))
    torch.save({"weight": torch.zeros(3)}, tmp_path / "a.pt")
    (tmp_path / "empty").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe")
    for name in ("a.pt", "empty", "pipe", "missing", "."):
        with pytest.raises(DeltaError) as caught:
            Delta.load(str(tmp_path / name))
        assert name in str(caught.value)
    with pytest.raises(DeltaError):
        Delta.load("\0")


def test_an_oversized_file_is_refused_unread(tmp_path):
    path = tmp_path / "huge.delta"
    with open(path, "wb") as stream:
        stream.truncate(deltafile.LARGEST + 1)  # sparse: takes no room
    with pytest.raises(DeltaError, match="never larger"):
        Delta.load(str(path))


def test_saving_onto_the_loaded_path(tmp_path):
    path = str(tmp_path / "a.delta")
    DELTA.save(path)
    loaded = Delta.load(path)
    (loaded * 2).save(path)
    assert to_bytes(Delta.load(path)) == to_bytes(DELTA * 2)
    assert to_bytes(loaded) == to_bytes(DELTA)


@pytest.mark.parametrize("fail", ["fsync", "replace", "write"])
def test_a_failure_in_mid_save_leaves_the_old_file(tmp_path, monkeypatch, fail):
    path = tmp_path / "a.delta"
    TINY.save(str(path))
    old = path.read_bytes()

    def broken(*args, **kwargs):
        raise OSError(28, "No space left on device")

    if fail == "write":
        monkeypatch.setattr(deltafile.os, "fdopen", broken)
    else:
        monkeypatch.setattr(deltafile.os, fail, broken)
    with pytest.raises(DeltaError, match="No space"):
        DELTA.save(str(path))
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["a.delta"]


def _crash(path: str) -> None:
    deltafile.os.replace = lambda *a: os._exit(9)  # type: ignore[assignment]
    DELTA.save(path)


def _save_often(path: str, strength: float) -> None:
    for _ in range(40):
        (TINY * strength).save(path)


def test_a_process_that_dies_in_mid_save_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.delta"
    TINY.save(str(path))
    process = multiprocessing.get_context("fork").Process(target=_crash, args=(str(path),))
    process.start()
    process.join()
    assert process.exitcode == 9
    assert path.read_bytes() == PAYLOAD


def test_two_processes_on_one_path_leave_one_whole_file(tmp_path):
    path = tmp_path / "a.delta"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_save_often, args=(str(path), s)) for s in (1.0, 2.0)]
    for process in processes:
        process.start()
    allowed = {to_bytes(TINY), to_bytes(TINY * 2)}
    seen = 0
    while any(process.is_alive() for process in processes):
        if path.exists():
            assert path.read_bytes() in allowed
            seen += 1
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert seen
    assert os.listdir(tmp_path) == ["a.delta"]


def test_threads_saving_and_loading(tmp_path):
    path = str(tmp_path / "a.delta")
    TINY.save(path)
    wrong = []

    def work(strength):
        try:
            for _ in range(10):
                (TINY * strength).save(path)
                Delta.load(path)
        except Exception as error:
            wrong.append(repr(error))

    threads = [threading.Thread(target=work, args=(float(s),)) for s in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_where_nothing_can_be_written(tmp_path):
    with pytest.raises(DeltaError, match="Cannot write"):
        TINY.save(str(tmp_path / "missing" / "a.delta"))


def test_metadata_that_is_no_json():
    broken = Delta(**{**{n: getattr(TINY, n) for n in TINY.__dataclass_fields__}, "meta": {"x": float("nan")}})
    with pytest.raises(DeltaError, match="JSON"):
        to_bytes(broken)


def test_a_key_given_twice_is_refused():
    raw = PAYLOAD.replace(b'{\\"base\\"', b'{\\"how\\": \\"fx\\", \\"base\\"')
    length = struct.unpack("<Q", PAYLOAD[:8])[0] + len(raw) - len(PAYLOAD)
    with pytest.raises(DeltaError, match="twice"):
        from_bytes(struct.pack("<Q", length) + raw[8:])


def test_terms_that_share_tensors_are_saved():
    twice = TINY + TINY
    assert to_bytes(from_bytes(to_bytes(twice))) == to_bytes(twice)
