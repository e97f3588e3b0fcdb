"""Writing PNG files: exactness, clipping, refusals, and that an interrupted write leaves nothing behind."""

import os

import pytest
import torch

from codiffuse.data.images import read_picture, write_png
from codiffuse.errors import InputError


def test_a_16_bit_png_round_trip_is_exact_and_8_bits_are_rounded(tmp_path):
    pixels = torch.linspace(0, 1, 64 * 64).reshape(64, 64)
    for bits, levels in ((8, 255), (16, 65535)):
        write_png(tmp_path / "a.png", pixels, bits=bits)
        back = read_picture(tmp_path / "a.png").pixels
        assert back.shape == (1, 64, 64)
        assert (back[0] - pixels).abs().max() <= 0.5 / levels + 1e-7
        write_png(tmp_path / "b.png", back, bits=bits)
        assert torch.equal(read_picture(tmp_path / "b.png").pixels, back)


def test_written_colour_keeps_its_order_and_is_clipped(tmp_path):
    pixels = torch.zeros(3, 32, 33)
    pixels[0], pixels[1] = 1.7, -0.3
    write_png(tmp_path / "a.png", pixels)
    back = read_picture(tmp_path / "a.png").pixels
    assert back.shape == pixels.shape
    assert back[:, 5, 6].tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("pixels", "bits"),
    [
        (torch.zeros(2, 8, 8), 8),
        (torch.zeros(1, 3, 8, 8), 8),
        (torch.zeros(3, 8, 8), 16),
        (torch.zeros(8, 8), 12),
        (torch.full((8, 8), torch.nan), 8),
    ],
)
def test_what_no_png_can_hold_is_refused(tmp_path, pixels, bits):
    with pytest.raises(InputError, match="expected"):
        write_png(tmp_path / "a.png", pixels, bits=bits)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_write_leaves_the_old_file_and_no_rest(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    write_png(path, torch.zeros(32, 32))
    old = path.read_bytes()
    seen = {}

    def killed(source, target):
        seen["same folder"] = os.path.dirname(source) == os.path.dirname(target)
        seen["complete"] = tuple(read_picture(source).pixels.shape)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    for target in (path, tmp_path / "new.png"):
        with pytest.raises(KeyboardInterrupt):
            write_png(target, torch.ones(32, 32))
    assert seen == {"same folder": True, "complete": (1, 32, 32)}
    assert path.read_bytes() == old
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]
