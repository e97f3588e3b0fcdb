"""What `input=` means: which pictures a word names, under which ids, and what is said when it names none."""

import os
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from codiffuse.data.sources import Source, centre_crop, data_root, downscale, evaluation_set, sample_names, sources
from codiffuse.errors import InputError


def put(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), "red").save(path, format="PNG")


def ids(spec):
    return [source.id for source in sources(spec)]


def refused(spec, *words):
    with pytest.raises(InputError) as caught:
        sources(spec)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in ("expected", *words)), message


def test_a_file_is_itself_whatever_its_suffix(tmp_path):
    put(tmp_path / "photo.JPG", tmp_path / "scan.dat")
    for name in ("photo.JPG", "scan.dat"):
        (source,) = sources(str(tmp_path / name))
        assert (source.id, source.path) == (name[:-4].rstrip("."), tmp_path / name)
        assert source.load().pixels.shape == (3, 40, 40)


def test_a_folder_gives_its_own_pictures_sorted_by_name(tmp_path):
    put(*(tmp_path / name for name in ("b.png", "a.JPG", "c.Tiff", ".hidden.png", "inner/d.png", "folder.png/e.png")))
    (tmp_path / "notes.txt").write_text("text")
    np.save(tmp_path / "d.npy", np.zeros((40, 40)))
    assert ids(tmp_path) == ["a", "b", "c", "d"]


def test_globs(tmp_path, monkeypatch):
    put(*(tmp_path / name for name in ("b1.png", "b2.png", "c1.png", "in/b3.png")))
    (tmp_path / "b4.txt").write_text("text")
    assert ids(f"{tmp_path}/b*") == ["b1", "b2"]
    assert ids(f"{tmp_path}/[bc]1.png") == ["b1", "c1"]
    assert ids(f"{tmp_path}/**/*") == ["b1", "b2", "c1", "b3"]
    monkeypatch.chdir(tmp_path)
    assert ids("b?.png") == ["b1", "b2"]
    assert ids("i*/*.png") == ["b3"]


def test_brackets_and_stars_in_names_that_exist_are_no_pattern(tmp_path):
    folder = tmp_path / "trip [1] *"
    put(folder / "a[2].png", folder / "b.png", tmp_path / "trip 1 x" / "wrong.png")
    assert ids(folder) == ["a_2_", "b"]
    assert ids(f"{folder}/*.png") == ["a_2_", "b"]
    assert [source.path for source in sources(str(folder / "a[2].png"))] == [folder / "a[2].png"]


def test_the_home_folder_may_be_a_tilde(tmp_path, monkeypatch):
    put(tmp_path / "a.png")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert sources("~/a.png")[0].path == tmp_path / "a.png"


def test_a_list_keeps_its_order_and_takes_a_file_once(tmp_path):
    put(*(tmp_path / name for name in ("a.png", "b.png", "in/c.png")))
    spec = [tmp_path / "b.png", f"{tmp_path}/*.png", str(tmp_path / "in"), "sample:coffee"]
    assert ids(spec) == ["b", "a", "c", "coffee"]


def test_equal_stems_are_told_apart_by_their_suffixes(tmp_path):
    put(tmp_path / "x.jpg", tmp_path / "x.PNG", tmp_path / "y.png")
    before = {source.id: source.path.name for source in sources(tmp_path)}
    assert before == {"x-jpg": "x.jpg", "x-png": "x.PNG", "y": "y.png"}
    put(tmp_path / "x.bmp", tmp_path / "more" / "x.png")
    after = {source.id: source.path.name for source in sources(tmp_path)}
    assert after == before | {"x-bmp": "x.bmp"}
    # of two with one name in two folders neither is called what the first one was before
    assert ids([tmp_path, tmp_path / "more"]) == [f"x-png-{tmp_path.name}", "x-bmp", "x-jpg", "y", "x-more"]


def test_equal_names_are_told_apart_by_their_folders_and_then_by_number(tmp_path):
    files = [tmp_path / name for name in ("one/x.png", "two/x.png", "two/X.jpg", "two/x.jpg", "y.png")]
    put(*files)
    assert ids(files) == ["x-one", "x-png-two", "X-jpg-two", "x-jpg-two-2", "y"]
    assert ids(files[:2]) == ["x-one", "x-two"]
    assert ids([files[0], files[3]]) == ["x-png", "x-jpg"]
    # the order of the list does not move a name from one file to another
    assert {source.id: source.path for source in sources(files[1::-1])} == {"x-one": files[0], "x-two": files[1]}


def test_ids_differ_by_more_than_case(tmp_path):
    files = [tmp_path / "one" / "A.png", tmp_path / "two" / "a.png"]
    put(*files)
    assert ids(files) == ["A-one", "a-two"]


def test_ids_never_clash_with_a_stem_that_looks_like_one(tmp_path):
    files = [tmp_path / "one" / name for name in ("x-one.png", "x.png", "x.jpg", "x-one-2.png")]
    put(*files)
    found = ids(files)
    assert found[0] == "x-one"
    assert len(set(found)) == 4
    files = [tmp_path / "one" / name for name in ("x.png", "x.jpg", "x-png.bmp")]
    put(*files)
    assert ids(files) == ["x-png-one", "x-jpg", "x-png"]


def test_ids_are_safe_file_names(tmp_path):
    names = ["été 1.png", "a?b#c%d:e.png", "...png", "写真.png", "v1.2.png", "写" * 80 + ".png"]
    put(*(tmp_path / name for name in names))
    found = [ids(str(tmp_path / name))[0] for name in names]
    assert found[:5] == ["été_1", "a_b_c_d_e", "picture", "写真", "v1.2"]
    assert 20 < len(found[5]) < 80
    for name in found:
        (tmp_path / "out" / name).mkdir(parents=True)

    undecodable = os.fsdecode(b"caf\xe9.png")
    put(tmp_path / undecodable)
    assert ids(str(tmp_path / undecodable)) == ["caf_"]


def test_ids_of_long_equal_names_fit_a_file_name(tmp_path):
    files = [tmp_path / (folder * 60) / ("写" * 60 + "." + "真" * 15) for folder in ("写", "真")]
    put(*files, files[0].with_suffix(".png"), files[0].with_suffix(""))
    found = ids([*files, files[0].with_suffix(".png"), files[0].with_suffix("")])
    assert len(set(found)) == 4
    assert all(len(name.encode()) < 240 for name in found)


def test_the_hash_of_a_picture_is_that_of_its_bytes(tmp_path):
    put(tmp_path / "a.png", tmp_path / "b.png")
    (source,), (other,) = sources(tmp_path / "a.png"), sources(tmp_path / "b.png")
    first = source.input_hash()
    assert len(first) == 12
    assert first == other.input_hash() == source.input_hash()
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes() + b"\0")
    assert source.input_hash() != first
    (tmp_path / "a.png").unlink()
    assert source.input_hash() is None
    assert Source("a", None, source.load).input_hash() is None


def test_samples_are_packaged_and_readable():
    assert {"astronaut", "camera", "chelsea", "coffee"} <= set(sample_names())
    for name in sample_names():
        (source,) = sources(f"sample:{name}")
        assert source.id == name
        assert source.path.is_file()
    assert ids("sample") == ["astronaut"]
    assert sources("sample:camera")[0].load().pixels.shape == (1, 512, 512)


def test_what_cannot_be_found_is_said_before_the_run(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.txt").write_text("text")
    refused(tmp_path / "none.png", "none.png", "nothing is there")
    refused(tmp_path / ("x" * 300), "nothing is there")
    refused(tmp_path / "empty", "empty", ".png", "none among 0 files")
    refused(tmp_path, ".png", "none among 1 files")
    refused(f"{tmp_path}/*.png", "*.png", "match")
    refused("nowhere/**x/*.png", "match")
    refused("sample:lena", "lena", "astronaut", "coffee")
    refused([], "empty list")
    refused("", "empty string")
    refused(["sample", tmp_path / "none.png"], "none.png")


def test_reading_waits_so_a_bad_file_does_not_stop_the_others(tmp_path):
    put(tmp_path / "a.png", tmp_path / "c.png")
    (tmp_path / "b.png").write_text("no picture")
    good, bad, also_good = sources(tmp_path)
    with pytest.raises(InputError, match=r"b\.png"):
        bad.load()
    for source in (good, also_good):
        again = pickle.loads(pickle.dumps(source))  # as a worker process gets it
        assert torch.equal(again.load().pixels, source.load().pixels)


def test_evaluation_sets_lie_below_the_folder_that_the_environment_names(tmp_path, monkeypatch):
    put(*(tmp_path / "bsd100" / f"{name}.jpg" for name in ("2", "10", "1")))
    monkeypatch.setenv("CODIFFUSE_DATA", str(tmp_path))
    assert data_root() == tmp_path
    assert [source.id for source in evaluation_set("bsd100")] == ["1", "10", "2"]
    assert [source.id for source in evaluation_set("bsd100", limit=2)] == ["1", "10"]
    with pytest.raises(InputError, match="at least 1, got 0"):
        evaluation_set("bsd100", limit=0)
    with pytest.raises(InputError) as caught:
        evaluation_set("levin09")
    assert all(word in str(caught.value) for word in (str(tmp_path / "levin09"), "CODIFFUSE_DATA"))


def test_without_the_variable_data_is_looked_for_here(tmp_path, monkeypatch):
    monkeypatch.delenv("CODIFFUSE_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "data" / "mine" / "a.png")
    assert [source.id for source in evaluation_set("mine")] == ["a"]
    with pytest.raises(InputError, match=str(tmp_path / "data" / "bsd100")):
        evaluation_set("bsd100")


def test_bsd100_has_its_hundred_pictures(data_dir, monkeypatch):
    monkeypatch.setenv("CODIFFUSE_DATA", str(data_dir))
    found = evaluation_set("bsd100")
    assert len({source.id for source in found}) == 100
    assert sorted(found[0].load().pixels.shape) == [3, 321, 481]


@pytest.mark.parametrize(
    ("shape", "size", "corner"), [((6, 8), 4, (1, 2)), ((7, 8), (2, 8), (2, 0)), ((6, 6), 6, (0, 0))]
)
def test_the_centre_crop_is_in_the_middle(shape, size, corner):
    pixels = torch.arange(3 * shape[0] * shape[1]).reshape(3, *shape)
    height, width = (size, size) if isinstance(size, int) else size
    crop = centre_crop(pixels, size)
    assert crop.shape == (3, height, width)
    assert crop[0, 0, 0] == pixels[0, corner[0], corner[1]]
    assert centre_crop(pixels[None], size).shape == (1, 3, height, width)


@pytest.mark.parametrize("size", [33, (33, 1), (1, 41)])
def test_a_crop_larger_than_the_picture_is_refused(size):
    with pytest.raises(InputError, match="32 x 40"):
        centre_crop(torch.zeros(3, 32, 40), size)


def test_downscale_keeps_proportion_mean_and_small_pictures():
    pixels = torch.rand(3, 120, 80, generator=torch.Generator().manual_seed(0))
    small = downscale(pixels, 60)
    assert small.shape == (3, 60, 40)
    torch.testing.assert_close(small.mean(), pixels.mean(), rtol=0, atol=5e-3)
    assert downscale(pixels, 120) is pixels
    assert downscale(torch.zeros(1, 1000, 3), 100).shape == (1, 100, 1)

    checkerboard = (torch.arange(63)[:, None] + torch.arange(63)).remainder(2).float()[None]
    assert (downscale(checkerboard, 21) - 0.5).abs().max() < 0.1  # plain sampling finds every third pixel, 0 or 1
