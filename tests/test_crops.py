"""Training crops: pictures from folders and tars, samples by number, and how ranks share them."""

import pickle
import tarfile
from itertools import chain, islice

import numpy as np
import pytest
import torch
from PIL import Image

from codiffuse.data.crops import CropDataset, PictureStore, luma
from codiffuse.errors import InputError


def write_picture(path, seed, size=(30, 40), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (*size, 3) if mode == "RGB" else size
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return torch.from_numpy(np.broadcast_to(pixels.reshape(*size, -1), (*size, 3)).copy()).permute(2, 0, 1)


@pytest.fixture
def pictures(tmp_path):
    """A folder with five pictures, one of them gray, and what is none; and the pictures in order of their names."""
    root = tmp_path / "pictures"
    names = ["a.png", "b/c.PNG", "b/d.bmp", "e.tif"]
    found = [write_picture(root / name, seed) for seed, name in enumerate(names)]
    found.append(write_picture(root / "f.png", 9, mode="L"))
    (root / "notes.txt").write_text("no picture")
    return root, found


@pytest.fixture
def ramp(tmp_path):
    """A store of one 64 x 64 picture: red grows with the row, green with the column, four levels a pixel."""
    levels = np.arange(64, dtype=np.uint8) * 4
    pixels = np.stack([*np.meshgrid(levels, levels, indexing="ij"), np.zeros((64, 64), np.uint8)], -1)
    (tmp_path / "ramp").mkdir()
    Image.fromarray(pixels).save(tmp_path / "ramp" / "ramp.png")
    return PictureStore(tmp_path / "ramp")


def crops(store, count=40, **options):
    dataset = CropDataset(store, **options)
    return torch.stack([dataset[i] for i in range(count)])


# Where pictures come from


def test_a_folder_and_a_tar_hold_the_same_pictures(pictures, tmp_path):
    root, expected = pictures
    with tarfile.open(tmp_path / "pictures.tar", "w") as tar:
        tar.add(root, "pictures")
    for path in (root, str(root), tmp_path / "pictures.tar"):
        store = PictureStore(path)
        assert len(store) == 5
        for index in (4, 0, 2, 1, 3, 2):
            assert store[index].dtype == torch.uint8
            assert torch.equal(store[index], expected[index]), (path, index)


@pytest.mark.parametrize("cache_mib", [0, 1])
def test_the_cache_holds_what_fits(pictures, cache_mib):
    root, expected = pictures
    store = PictureStore(root, cache_mib)
    first, again = store[0], store[0]
    assert (first is again) == (cache_mib > 0)
    assert torch.equal(again, expected[0])


def test_a_worker_process_opens_its_own_tar(pictures, tmp_path):
    root, expected = pictures
    with tarfile.open(tmp_path / "pictures.tar", "w") as tar:
        tar.add(root, "pictures")
    store = PictureStore(tmp_path / "pictures.tar")
    assert torch.equal(store[1], expected[1])
    copy = pickle.loads(pickle.dumps(store))
    assert torch.equal(copy[1], expected[1])
    assert torch.equal(store[2], copy[2])


def test_places_without_pictures_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no picture")
    tarfile.open(tmp_path / "empty.tar", "w").close()
    (tmp_path / "no.tar").write_text("no tar")
    for name, words in [("empty", "pictures.*empty"), ("empty.tar", "pictures.*empty"), ("no.tar", "tar of pictures")]:
        with pytest.raises(InputError, match=words):
            PictureStore(tmp_path / name)
    with pytest.raises(InputError, match="CODIFFUSE_DATA"):
        PictureStore(tmp_path / "missing")


# Samples by number


@pytest.mark.parametrize("scale", [(1.0, 1.0), (0.5, 1.0), (0.5, 2.0)])
def test_crops_are_pictures_in_0_1(pictures, scale):
    found = crops(PictureStore(pictures[0]), crop=16, scale=scale, gray=0.3)
    assert found.shape == (40, 3, 16, 16)
    assert found.dtype == torch.float32
    assert found.min() >= 0
    assert found.max() <= 1
    assert found.max() > 0.9


def test_white_stays_within_1_when_turned_to_gray():
    assert luma(torch.ones(3, 2, 2)).max() <= 1


def test_a_sample_depends_on_its_seed_and_number_alone(pictures):
    root = pictures[0]
    in_order = crops(PictureStore(root), crop=16, gray=0.5)
    other = CropDataset(PictureStore(root, cache_mib=0), crop=16, gray=0.5)
    for index in (17, 3, 3, 39):
        assert torch.equal(other[index], in_order[index])
    assert len({tuple(crop.flatten().tolist()) for crop in in_order}) == 40
    assert not torch.equal(crops(PictureStore(root), crop=16, gray=0.5, seed=1), in_order)
    assert CropDataset(PictureStore(root), crop=16)[2**39].shape == (3, 16, 16)


def test_only_the_named_pictures_are_used(ramp, tmp_path):
    write_picture(tmp_path / "ramp" / "a.png", 0)
    both = PictureStore(tmp_path / "ramp")
    chosen = crops(both, crop=16, scale=(1.0, 1.0), gray=0.0, used=[1])
    assert (chosen[:, 2] == 0).all()
    assert not (crops(both, crop=16, scale=(1.0, 1.0), gray=0.0)[:, 2] == 0).all()


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_gray_share_has_three_equal_channels_of_the_luma(ramp, share):
    options = {"crop": 8, "scale": (1.0, 1.0)}
    coloured, mixed = (crops(ramp, 400, gray=gray, **options) for gray in (0.0, share))
    gray = (mixed[:, 0] == mixed[:, 1]).flatten(1).all(1)
    assert float(gray.float().mean()) == pytest.approx(share, abs=0.08)
    torch.testing.assert_close(mixed[gray], luma(coloured[gray]).expand(-1, 3, -1, -1))
    assert torch.equal(mixed[~gray], coloured[~gray])


def test_without_scaling_crops_are_cut_out_of_the_picture_and_half_are_mirrored(ramp):
    found = (crops(ramp, 200, crop=16, scale=(1.0, 1.0), gray=0.0) * 255).round()
    rows, columns = found[:, 0].diff(dim=-2), found[:, 1].diff(dim=-1)
    assert (rows == 4).all()
    mirrored = (columns == -4).flatten(1).all(1)
    assert ((columns == 4).flatten(1).all(1) | mirrored).all()
    assert 70 < mirrored.sum() < 130
    # Corners are uniform: every row and nearly every column of the picture comes up.
    assert set((found[:, 0, 0, 0] / 4).int().tolist()) <= set(range(49))
    assert len(set(found[:, 0, 0, 0].tolist())) > 40


def test_scale_is_the_reduction_of_the_picture(ramp):
    found = crops(ramp, 200, crop=16, scale=(0.5, 1.0), gray=0.0) * 255 / 4
    # Rows advance by 1 / scale source rows a pixel, away from the edges of the resampled crop.
    reduction = 1 / found[:, 0, 4:-4].diff(dim=-2).mean((1, 2))
    assert 0.49 < reduction.min() < 0.55
    assert 0.93 < reduction.max() < 1.01
    assert reduction.log().mean() == pytest.approx(0.5 * np.log(0.5), abs=0.06)


def test_reduction_averages_instead_of_skipping_pixels(tmp_path):
    write_picture(tmp_path / "noise.png", 0, (64, 64))
    store = PictureStore(tmp_path)
    whole, half = (crops(store, crop=16, scale=(s, s), gray=0.0).var() for s in (1.0, 0.5))
    # Half as large, a pixel is about the mean of four: a quarter of the variance of white noise or less.
    assert half < 0.25 * whole


@pytest.mark.parametrize("size", [(5, 40), (40, 5), (16, 16), (1, 1)])
def test_tiny_pictures_are_enlarged(tmp_path, size):
    write_picture(tmp_path / "tiny.png", 0, size)
    found = crops(PictureStore(tmp_path), 5, crop=16)
    assert found.shape == (5, 3, 16, 16)
    assert ((found >= 0) & (found <= 1)).all()


# How ranks share the stream


@pytest.mark.parametrize(("start", "world_size"), [(0, 1), (10, 3), (2**33, 4)])
def test_ranks_share_the_stream_without_gap_or_overlap(start, world_size):
    from codiffuse.training.datamodules import CountedSampler

    parts = [list(islice(CountedSampler(start, rank, world_size), 5)) for rank in range(world_size)]
    assert sorted(chain(*parts)) == list(range(start, start + 5 * world_size))
    assert len(set(map(len, parts))) == 1


def test_validation_pictures_are_not_trained_on(pictures, tmp_path):
    from codiffuse.training.datamodules import image_crops

    root, expected = pictures
    module = image_crops(str(root), crop=8, holdout=2, validation_crop=16)
    assert list(module.train.used) == [0, 1, 2]
    assert len(module.validation) == 2
    for index, picture in enumerate(expected[-2:]):
        assert torch.equal(module.validation[index], picture[:, 7:23, 12:28].float() / 255)
    for holdout in (0, 5):
        with pytest.raises(InputError, match="holdout between 1 and 4"):
            image_crops(str(root), holdout=holdout)
