"""Pictures of tilt fields: what a colour, an arrow and the wheel say."""

import pytest
import torch

from codiffuse.inference.fields import tilt_picture, tilt_pictures


def constant(right, down, size=(64, 64)):
    return torch.tensor([right, down], dtype=torch.float32).view(2, 1, 1).expand(2, *size)


def background(picture):
    """The commonest colour."""
    colours, counts = picture.flatten(1).T.unique(dim=0, return_counts=True)
    return colours[counts.argmax()].tolist()


def ink(picture):
    """Where the picture is dark, but for the corner with the wheel."""
    dark = picture.amax(0) < 0.75  # colours have a channel of 1
    dark[-dark.shape[0] // 3 :, -dark.shape[1] // 3 :] = False
    return dark


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((64, 64), (256, 256)),
        ((30, 90), (90, 270)),
        ((1, 1), (264, 264)),
        ((600, 400), (264, 176)),
        ((300, 150), (264, 132)),
        ((1, 3000), (1, 264)),
    ],
)
def test_side_is_that_of_the_longer_axis(size, expected):
    picture = tilt_picture(torch.randn(2, *size), 264)
    assert picture.shape == (3, *expected)
    assert picture.min() >= 0
    assert picture.max() <= 1


def test_hue_is_the_direction_and_white_is_none():
    assert background(tilt_picture(constant(2, 0), 256)) == [1, 0, 0]
    assert background(tilt_picture(constant(-2, 0), 256)) == [0, 1, 1]
    red, green, blue = background(tilt_picture(constant(0, 2), 256))
    assert (green, blue) == (1, 0)
    assert red == pytest.approx(0.5, abs=0.01)
    assert background(tilt_picture(constant(0, 0), 256)) == [1, 1, 1]
    assert not ink(tilt_picture(constant(0, 0), 256)).any()


def test_saturation_is_the_length():
    tilt = constant(4, 0).clone()
    tilt[:, :, :32] /= 4
    picture = tilt_picture(tilt, 256)
    expected = torch.tensor([1, 0.75, 0.75])
    left, right = background(picture[..., :128]), background(picture[..., 128:])
    torch.testing.assert_close(torch.tensor(left), expected, atol=0.01, rtol=0)
    assert right == [1, 0, 0]


def test_arrows_point_to_where_a_pixel_is_read():
    tilt = constant(0, 0, (48, 48)).clone()
    tilt[0, 4:8, 4:8] = 1.0  # the cell in the second row and column
    rows, columns = ink(tilt_picture(tilt, 480)).nonzero(as_tuple=True)
    assert rows.float().mean() == pytest.approx(60, abs=1.5)
    assert columns.min() == pytest.approx(60, abs=2)
    assert columns.max() == pytest.approx(100, abs=3)  # as long as the cell
    downwards = ink(tilt_picture(tilt.flip(0), 480))
    assert (downwards.T != ink(tilt_picture(tilt, 480))).float().mean() < 1e-3


def test_the_wheel_stands_for_a_round_length_that_nearly_all_tilts_stay_below():
    wheel = tilt_picture(constant(0, 0), 256)[:, -48:, -38:]  # with "1 px"
    for length in (1.0, 0.97):
        torch.testing.assert_close(tilt_picture(constant(length, 0), 256)[:, -48:, -38:], wheel)
    assert (tilt_picture(constant(1.2, 0), 256)[:, -48:, -38:] - wheel).abs().max() > 0.5  # "1.5 px"
    spike = constant(0.97, 0).clone()
    spike[0, 0, 0] = 1000
    assert background(tilt_picture(spike, 256)) == pytest.approx([1, 0.03, 0.03], abs=0.01)


def test_what_is_not_finite_is_drawn_as_no_tilt():
    tilt = constant(1, 0).clone()
    tilt[:, :32] = float("nan")
    tilt[0, :32, :32] = float("inf")
    picture = tilt_picture(tilt, 256)
    assert background(picture[:, :128]) == [1, 1, 1]
    assert background(picture[:, 128:]) == [1, 0, 0]


def test_fields_to_be_compared_share_a_scale_and_have_no_mean():
    tilt = torch.randn(2, 32, 32)
    pictures = tilt_pictures({"tilt": 0.1 * tilt + 7, "none": None, "true_tilt": tilt}, 256)
    assert list(pictures) == ["tilt", "true_tilt"]
    faint, strong = ((1 - picture[:, :192].amin(0)).mean() for picture in pictures.values())  # without the wheel
    assert faint < 0.3 * strong
    alone = tilt_pictures({"tilt": tilt - 2}, 256)["tilt"]
    torch.testing.assert_close(alone, pictures["true_tilt"], atol=0.01, rtol=0)
