"""The reader of MXNet's .params files: a real file, all versions of the format, and hostile bytes."""

from __future__ import annotations

import pickle
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mxnet_file import array_bytes, file_bytes, mxnet_name

from wsss_nb.models.checkpoint import read_mxnet_params, resnet38_names
from wsss_nb.models.resnet38 import ResNet38
from wsss_nb.system.errors import InputError

GOLDEN = Path(__file__).parent / "golden"
REAL = (GOLDEN / "mxnet_tiny.params").read_bytes()


@pytest.fixture
def write(tmp_path):
    def write_bytes(data: bytes) -> Path:
        path = tmp_path / "some.params"
        path.write_bytes(data)
        return path

    return write_bytes


def test_a_file_written_by_mxnet():
    params = read_mxnet_params(GOLDEN / "mxnet_tiny.params")
    with np.load(GOLDEN / "mxnet_tiny.npz") as expected:
        assert set(params) == set(expected)
        for name, tensor in params.items():
            assert tensor.dtype == torch.float32
            np.testing.assert_array_equal(tensor.numpy(), expected[name])


@pytest.mark.parametrize("version", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype", ["<f4", "<f8", "<f2", "u1", "<i4", "i1", "<i8", "?"])
def test_versions_and_types(write, version, dtype):
    rng = np.random.default_rng(0)
    arrays = {"arg:a_weight": rng.integers(0, 2, (2, 3, 4)).astype(dtype), "aux:ü": rng.integers(0, 2, 5).astype(dtype)}
    params = read_mxnet_params(write(file_bytes(arrays, version)))
    assert list(params) == list(arrays)
    for name, array in arrays.items():
        assert params[name].numpy().dtype == array.dtype
        np.testing.assert_array_equal(params[name].numpy(), array)


def test_what_was_read_is_writable_and_needs_no_file(write):
    path = write(file_bytes({"x": np.arange(3, dtype="<f4")}))
    tensor = read_mxnet_params(path)["x"]
    path.unlink()
    tensor += 1
    assert tensor.tolist() == [1, 2, 3]


def test_every_truncation_of_the_real_file_is_an_input_error(write):
    for length in [*range(0, 700), *range(700, len(REAL), 7), len(REAL) - 1]:
        with pytest.raises(InputError, match=r"some\.params: expected"):
            read_mxnet_params(write(REAL[:length]))


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.integers(0, len(REAL) - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_damaged_bytes_give_tensors_or_an_input_error(tmp_path_factory, changes):
    data = bytearray(REAL)
    for position, value in changes:
        data[position] = value
    path = tmp_path_factory.mktemp("damaged") / "some.params"
    path.write_bytes(data)
    try:
        params = read_mxnet_params(path)
    except InputError:
        return
    assert sum(t.numel() * t.element_size() for t in params.values()) < len(REAL)


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=300))
def test_any_bytes_after_a_good_header_are_an_input_error_or_an_empty_list(tmp_path_factory, tail):
    path = tmp_path_factory.mktemp("any") / "some.params"
    path.write_bytes(struct.pack("<QQ", 0x112, 0) + tail)
    if tail == bytes(16):
        assert read_mxnet_params(path) == {}
        return
    try:
        params = read_mxnet_params(path)
    except InputError as error:
        assert str(error).startswith(f"{path}: expected")
    else:
        assert sum(t.numel() * t.element_size() for t in params.values()) <= len(tail)


ONE = np.ones(2, "<f4")
HEAD = struct.pack("<QQQ", 0x112, 0, 1)


@pytest.mark.parametrize(
    "data,message",
    [
        (b"", "expected 16 bytes for header, got 0 .file truncated"),
        (b"PK\x03\x04" + bytes(40), "expected an MXNet .params file beginning with 0x112, got 0x4034b50"),
        (b"\x80\x02}q\x00." + bytes(40), "beginning with 0x112"),
        (struct.pack("<QQQ", 0x112, 0, 1 << 60) + bytes(40), "for number of arrays, got 1152921504606846976"),
        (HEAD + struct.pack("<Iii2q", 0xF993FAC9, 0, 2, 1 << 40, 1 << 40) + bytes(40), "file truncated"),
        (HEAD + struct.pack("<Iiiq", 0xF993FAC9, 0, 1, -5) + bytes(40), "sizes of at least 1 .* got \\(-5,\\)"),
        (
            HEAD + struct.pack("<Iii3q3i", 0xF993FAC9, 0, 3, 0, 1 << 62, 1 << 62, 1, 0, 0) + bytes(40),
            "sizes of at least 1",
        ),
        (HEAD + struct.pack("<Iii", 0xF993FAC9, 0, 1 << 30) + bytes(40), "1 to 32 dimensions .* 1073741824"),
        (HEAD + struct.pack("<Iii", 0xF993FAC9, 0, -1) + bytes(40), "1 to 32 dimensions for array 0, got -1"),
        (HEAD + struct.pack("<Iii", 0xF993FAC9, 1, 1) + bytes(40), "dense storage .* got 1"),
        (HEAD + struct.pack("<I", 0xDEADBEEF) + bytes(40), "dimensions for array 0, got 3735928559"),
        (HEAD + struct.pack("<Iiiqiii", 0xF993FAC9, 0, 1, 2, 1, 0, 99) + bytes(40), "dtype flag .* got 99"),
        (file_bytes({"x": ONE}) + b"more", "expected the end of the file, got 4 more bytes"),
        (HEAD + array_bytes(ONE) + struct.pack("<Q", 0), "expected one name per array \\(1\\), got 0"),
        (HEAD + array_bytes(ONE) + struct.pack("<QQ", 1, 1 << 50), "length of name 0"),
        (HEAD + array_bytes(ONE) + struct.pack("<QQ", 1, 2) + b"\xff\xfe", "expected UTF-8 in name 0"),
        (
            struct.pack("<QQQ", 0x112, 0, 2)
            + 2 * array_bytes(ONE)
            + struct.pack("<Q", 2)
            + 2 * (struct.pack("<Q", 1) + b"x"),
            "expected every name once, got 'x' twice",
        ),
    ],
)
def test_foreign_and_hostile_files(write, data, message):
    path = write(data)
    tracemalloc.start()
    with pytest.raises(InputError, match=message):
        read_mxnet_params(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


class Payload:
    """Unpickling it writes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.write_text, (self.mark, "executed")


def test_nothing_in_a_foreign_file_is_executed(write, tmp_path):
    mark = tmp_path / "mark"
    pickled = pickle.dumps(Payload(mark))
    torch.save({"weight": torch.ones(2), "payload": Payload(mark)}, tmp_path / "net.pth")
    np.save(tmp_path / "array.npy", np.array([Payload(mark)], dtype=object))
    files = [pickled, (tmp_path / "net.pth").read_bytes(), (tmp_path / "array.npy").read_bytes()]
    # As a name and as the data of an array a payload is only bytes.
    files.append(HEAD + array_bytes(ONE) + struct.pack("<QQ", 1, len(pickled)) + pickled)
    for data in files:
        with pytest.raises(InputError, match=r"some\.params: expected"):
            read_mxnet_params(write(data))
    stored = file_bytes({"x": np.frombuffer(pickled, "u1")})
    assert bytes(read_mxnet_params(write(stored))["x"].tolist()) == pickled
    assert not mark.exists()
    pickle.loads(pickled)
    assert mark.exists()  # the payload works where something is executed


def test_oversized_and_missing_files(tmp_path):
    path = tmp_path / "huge.params"
    with open(path, "wb") as file:
        file.write(struct.pack("<QQQ", 0x112, 0, 1))
        file.truncate(5 << 30)
    with pytest.raises(InputError, match=r"huge\.params: expected at most 4294967296 bytes, got 5368709120"):
        read_mxnet_params(path)
    path.unlink()
    with pytest.raises(InputError, match=r"expected a checkpoint file, got none"):
        read_mxnet_params(path)
    with pytest.raises(InputError, match=r"expected a checkpoint file, got a folder"):
        read_mxnet_params(tmp_path)


def test_names_of_the_real_file():
    renamed = resnet38_names(read_mxnet_params(GOLDEN / "mxnet_tiny.params"))
    assert set(renamed) == {
        "conv1a.weight",
        "b2.conv_branch2a.weight",
        "b2.bn_branch2a.bias",
        "b2.bn_branch2a.weight",
        "b2.bn_branch2a.running_mean",
        "b2.bn_branch2a.running_var",
        "b3_1.conv_branch2a.weight",
        "bn7.weight",
        "bn7.bias",
        "arg:linear1000_weight",
        "arg:linear1000_bias",
    }
    assert renamed["b2.bn_branch2a.weight"].shape == (4,)


def test_every_tensor_of_resnet38_has_an_mxnet_name():
    with torch.device("meta"):
        backbone = ResNet38()
    state = {k: v for k, v in backbone.state_dict().items() if not k.endswith("num_batches_tracked")}
    assert mxnet_name("b4_5.bn_branch2b1.running_var") == "aux:bn4b5_branch2b1_moving_var"
    assert mxnet_name("b6.conv_branch1.weight") == "arg:res6a_branch1_weight"
    renamed = resnet38_names({mxnet_name(name): tensor for name, tensor in state.items()})
    assert {name: t.shape for name, t in renamed.items()} == {name: t.shape for name, t in state.items()}
