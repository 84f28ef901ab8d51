from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from wsss_nb.data.voc import colorize, read_label_map, save_label_map, voc_colormap
from wsss_nb.system.errors import InputError


def test_colormap_is_pascal_vocs() -> None:
    # the colours printed on VOC's own legend
    known = {
        0: (0, 0, 0),
        1: (128, 0, 0),
        2: (0, 128, 0),
        3: (128, 128, 0),
        4: (0, 0, 128),
        8: (64, 0, 0),
        9: (192, 0, 0),
        15: (192, 128, 128),
        16: (0, 64, 0),
        20: (0, 64, 128),
        255: (224, 224, 192),
    }
    for label, color in known.items():
        assert tuple(voc_colormap()[label]) == color
    assert len({tuple(color) for color in voc_colormap()}) == 256


def test_colormap_cannot_be_changed_by_a_caller() -> None:
    with pytest.raises(ValueError, match="read-only"):
        voc_colormap()[0] = 1


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_written_maps_read_back_exactly(tmp_path_factory: pytest.TempPathFactory, h: int, w: int, seed: int) -> None:
    label_map = np.random.default_rng(seed).integers(0, 256, (h, w))
    path = tmp_path_factory.mktemp("maps") / "map.png"
    save_label_map(path, label_map)
    restored = read_label_map(path)
    assert restored.dtype == np.uint8
    np.testing.assert_array_equal(restored, label_map)
    with Image.open(path) as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.array(image.convert("RGB")), colorize(label_map))


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "map.png"
    save_label_map(path, np.zeros((2, 2), dtype=np.uint8))
    before = path.read_bytes()

    def broken(self: Image.Image, file: str, **options: object) -> None:
        Path(file).write_bytes(b"half")
        raise RuntimeError("killed")

    monkeypatch.setattr(Image.Image, "save", broken)
    with pytest.raises(RuntimeError, match="killed"):
        save_label_map(path, np.ones((2, 2), dtype=np.uint8))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["map.png"]


def test_saving_does_not_change_the_array(tmp_path: Path) -> None:
    label_map = np.array([[0, 7], [255, 1]], dtype=np.uint8)
    label_map.setflags(write=False)
    save_label_map(tmp_path / "map.png", label_map)
    assert label_map.tolist() == [[0, 7], [255, 1]]


@pytest.mark.parametrize(
    ("label_map", "message"),
    [
        (np.zeros((1, 2, 3), dtype=np.uint8), r"label_map: expected shape \(H, W\), got \(1, 2, 3\)"),
        (np.zeros((0, 3), dtype=np.uint8), r"label_map: expected shape \(H, W\), got \(0, 3\)"),
        (np.zeros((2, 3)), "label_map: expected integers, got float64"),
        (np.array([[0, 256]]), r"label_map: expected labels 0\.\.255, got 0\.\.256"),
        (np.array([[-1, 5]]), r"label_map: expected labels 0\.\.255, got -1\.\.5"),
    ],
)
def test_what_is_no_label_map_is_refused(tmp_path: Path, label_map: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        save_label_map(tmp_path / "map.png", label_map)
    assert not list(tmp_path.iterdir())


def test_grey_and_binary_files_are_label_maps_too(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 20, 255]], dtype=np.uint8)).save(tmp_path / "grey.png")
    assert read_label_map(tmp_path / "grey.png").tolist() == [[0, 20, 255]]
    Image.fromarray(np.array([[False, True]])).save(tmp_path / "binary.png")
    assert read_label_map(tmp_path / "binary.png").tolist() == [[0, 1]]


def _grey_png(labels: list[list[int]], bits: int, color_type: int = 0) -> bytes:
    """A grey (or, with colour type 3, palette) PNG of 1, 2, 4 or 8 bits a pixel, to the letter of its standard."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b""
    for row in labels:
        line = "".join(f"{label:0{bits}b}" for label in row)
        line += "0" * (-len(line) % 8)
        rows += b"\0" + bytes(int(line[i : i + 8], 2) for i in range(0, len(line), 8))
    header = struct.pack(">IIBBBBB", len(labels[0]), len(labels), bits, color_type, 0, 0, 0)
    palette = chunk(b"PLTE", bytes(range(3 << bits))[: 3 << bits]) if color_type == 3 else b""
    chunks = chunk(b"IHDR", header) + palette + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize(("bits", "color_type"), [(1, 0), (2, 0), (4, 0), (8, 0), (1, 3), (2, 3), (4, 3)])
def test_labels_are_the_stored_numbers_whatever_the_bits(tmp_path: Path, bits: int, color_type: int) -> None:
    top = 2**bits - 1
    labels = [[0, 1, top, 0, 1], [top, top // 2, 1, 0, top]]
    path = tmp_path / "map.png"
    path.write_bytes(_grey_png(labels, bits, color_type))
    assert read_label_map(path).tolist() == labels
    assert read_label_map(path, path.read_bytes()).tolist() == labels


def test_unreadable_label_maps_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.png: expected a readable label map \(PNG\), got no file"):
        read_label_map(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(
        InputError, match=r"text\.png: expected a readable label map \(PNG\), got cannot identify image file$"
    ):
        read_label_map(tmp_path / "text.png")
    save_label_map(tmp_path / "cut.png", np.random.default_rng(0).integers(0, 256, (64, 64)))
    whole = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"cut\.png: expected a readable label map \(PNG\), got ") as caught:
        read_label_map(tmp_path / "cut.png")
    assert "\n" not in str(caught.value)
    Image.new("RGB", (3, 2)).save(tmp_path / "color.png")
    with pytest.raises(InputError, match=r"color\.png: expected a palette or 8-bit grey PNG, .* mode RGB"):
        read_label_map(tmp_path / "color.png")


def test_an_unwritable_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="expected a writable place"):
        save_label_map(tmp_path / "file" / "map.png", np.zeros((2, 2), dtype=np.uint8))
