"""Saturated pixels: which are found, which are not, and that they reach the method as a mask."""

import pytest
import torch
from PIL import Image
from test_runner import Copy
from toys import picture

from codiffuse.data.measurements import Photographs, Sample
from codiffuse.data.saturation import unsaturated
from codiffuse.errors import InputError
from codiffuse.inference.restorer import Restorer
from codiffuse.inference.scoring import Scorer
from codiffuse.operators.blur import BlurOperator


def gray_picture(channels=3, value=0.4):
    return torch.full((channels, 40, 48), value)


def test_a_lamp_goes_with_two_pixels_around_it():
    y = gray_picture()
    y[:, 10:14, 20:25] = 1
    mask = unsaturated(y)
    expected = torch.ones(1, 40, 48)
    expected[:, 8:16, 18:27] = 0
    assert torch.equal(mask, expected)


def test_deep_inside_a_highlight_pixels_count():
    y = gray_picture()
    y[:, 10:30, 20:] = 1  # it goes on beyond the frame
    expected = torch.ones(1, 40, 48)
    expected[:, 8:32, 18:] = 0
    expected[:, 13:27, 23:] = 1
    assert torch.equal(unsaturated(y), expected)


def test_one_clipped_channel_is_enough():
    y = gray_picture()
    y[0, 10:14, 20:25] = 1
    assert unsaturated(y)[0, 12, 22] == 0
    assert unsaturated(y[1:2]) is None


def test_a_light_streak_one_pixel_wide_goes():
    y = gray_picture(1)
    y[0, 20, 5:30] = 1
    y[0, range(25, 35), range(5, 15)] = 1
    mask = unsaturated(y)
    assert (mask[0, 20, 5:30] == 0).all()
    assert (mask[0, range(26, 34), range(6, 14)] == 0).all()


def test_noise_on_a_bright_wall_matters_little():
    generator = torch.Generator().manual_seed(0)
    y = (0.95 + 5 / 255 * torch.randn(1, 200, 200, generator=generator)).clamp(0, 1)
    assert (y >= 0.98).float().mean() > 0.05
    mask = unsaturated(y)
    assert mask is None or mask.mean() > 0.8


def test_black_counts_and_a_picture_that_was_never_clipped_too():
    assert unsaturated(torch.zeros(3, 40, 40)) is None
    assert unsaturated(gray_picture(value=0.97)) is None
    y = gray_picture()
    y[:, 10:20, 10:20] = 1
    y[:, 30, 30] = 1.05
    assert unsaturated(y) is None


def test_a_picture_that_is_all_white_is_refused():
    y = torch.ones(3, 40, 40)
    with pytest.raises(InputError, match=r"below full scale, got 0%; .*saturation=null"):
        unsaturated(y)
    y[:, :6] = 0.4
    assert unsaturated(y).mean() > 0.5  # 4 of 40 rows are left beside the rim
    with pytest.raises(InputError, match=r"saturation=0\.98"):
        unsaturated(y, 1.5)


def test_photographs_carry_the_mask(tmp_path):
    pixels = picture(0).copy() // 2
    pixels[10:16, 10:16] = 255
    Image.fromarray(pixels).save(tmp_path / "lamp.png")
    Image.fromarray(picture(1) // 2).save(tmp_path / "no_lamp.png")
    lamp, no_lamp = (Photographs(str(tmp_path), sigma=0.02).load(index) for index in range(2))
    assert lamp.mask.shape == (1, 40, 48)
    assert lamp.mask[0, 12, 12] == 0
    assert no_lamp.mask is None
    assert Photographs(str(tmp_path), 0.02, saturation=None).load(0).mask is None
    assert Photographs(str(tmp_path), 0.02, crop=32, saturation=0.98).load(0).mask.shape == (1, 32, 32)


def masks_seen(*samples: Sample):
    seen = []

    class Method(Copy):
        def __call__(self, measurement, **options):
            seen.append(measurement.mask)
            return super().__call__(measurement, **options)

    operator = BlurOperator()
    list(Restorer(Method(), "toy", operator, Scorer(operator), num_frames=0)(samples))
    return seen


def test_the_method_gets_the_mask_and_none_where_all_pixels_count():
    y, mask = torch.rand(3, 32, 32), torch.ones(1, 32, 32)
    mask[:, :4] = 0
    lamp, no_lamp = Sample("lamp", y, 0.02, mask=mask), Sample("no_lamp", y, 0.02)
    assert masks_seen(no_lamp, no_lamp) == [None]
    assert torch.equal(masks_seen(lamp, no_lamp)[0], torch.stack([mask, torch.ones_like(mask)]))
