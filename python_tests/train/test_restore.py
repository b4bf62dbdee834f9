from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from srnas_fast.cli import main
from srnas_fast.data import read_image, read_with_alpha, resize
from srnas_fast.errors import InputError
from srnas_fast.train import load, load_network, restore
from srnas_fast.train.denoising import restore_pixels
from srnas_fast.train.super_resolution import _free_memory, upscale_pixels

CPU = torch.device("cpu")


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(path, **options)
    return path


def expected(trained, pixels):
    """What the network makes of them, in 8 bits."""
    return np.clip(np.rint(restore_pixels(load_network(trained).network, pixels, CPU, 0)), 0, 255)


def assert_restored(path, trained, pixels):
    found = read_image(path)
    assert found.shape == pixels.shape
    assert np.abs(found.astype(float) - expected(trained, pixels)).max() <= 1  # rounding
    assert np.abs(found.astype(float) - pixels).mean() > 1  # it does something


@pytest.mark.parametrize("size", [(37, 53), (1, 1), (5, 300), (300, 5), (1, 40)])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_size_gray_and_colour(trained, pixels, tmp_path, size, channels):
    image = pixels(*size, channels)
    source = save(tmp_path / "in" / "a.png", image)
    (written,) = restore(str(trained), [source], out=str(tmp_path / "out"), tile=64)
    assert written == str(tmp_path / "out" / "a.png")
    assert_restored(written, trained, image)


def test_colour_is_restored_channel_by_channel(trained, pixels):
    net, image = load_network(trained).network, pixels(20, 30, 3)
    whole = restore_pixels(net, image, CPU)
    for channel in range(3):
        alone = restore_pixels(net, image[..., channel : channel + 1], CPU)
        np.testing.assert_allclose(whole[..., channel : channel + 1], alone, atol=1e-3)


@pytest.mark.parametrize("tile", [16, 40, 512])
def test_tiles_change_nothing(trained, pixels, tile):
    net, image = load_network(trained).network, pixels(75, 61, 3).astype(np.float32)
    np.testing.assert_allclose(restore_pixels(net, image, CPU, tile), restore_pixels(net, image, CPU, 0), atol=1e-3)


@pytest.mark.parametrize("channels", [1, 3])
def test_transparency_is_kept(trained, pixels, tmp_path, channels):
    image = pixels(21, 34, channels)
    alpha = np.random.default_rng(1).integers(0, 256, (21, 34), dtype=np.uint8)
    save(tmp_path / "in" / "glass.png", np.concatenate([image, alpha[..., None]], axis=2))
    (written,) = restore(str(trained), [tmp_path / "in"], out=str(tmp_path / "out"))
    found, found_alpha = read_with_alpha(written)
    assert np.array_equal(found_alpha, alpha) and found.shape == image.shape
    assert np.abs(found - expected(trained, image)).max() <= 1


def test_a_palette_is_colour(trained, pixels, tmp_path):
    source = tmp_path / "in" / "p.png"
    source.parent.mkdir()
    Image.fromarray(pixels(20, 30, 3)).convert("P", palette=Image.Palette.ADAPTIVE, colors=64).save(source)
    (written,) = restore(str(trained), [source], out=str(tmp_path / "out"))
    assert_restored(written, trained, read_image(source))


def test_16_bits(trained, pixels, tmp_path):
    deep = pixels(20, 30)[..., 0].astype(np.uint16) * 257
    folder = tmp_path / "in"
    folder.mkdir()
    Image.fromarray(deep).save(folder / "gray.png")
    tifffile.imwrite(folder / "colour.tif", np.stack([deep] * 3, axis=2), photometric="rgb")
    written = restore(str(trained), [folder], out=str(tmp_path / "out"))
    assert [path.split("/")[-1] for path in written] == ["colour.tif", "gray.png"]
    assert_restored(written[0], trained, np.repeat(pixels(20, 30), 3, axis=2))
    assert_restored(written[1], trained, pixels(20, 30))


def test_folders_in_folders_and_formats_with_loss(trained, pixels, tmp_path):
    for name in ("a.jpg", "b/a.bmp", "b/c/d.TIF", "e.webp"):
        save(tmp_path / "in" / name, pixels(20, 30, 3))
    (tmp_path / "in" / "notes.txt").write_text("no image")
    written = restore(str(trained), [tmp_path / "in"], out=str(tmp_path / "out"))
    found = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert found == ["a.png", "b/a.png", "b/c/d.TIF", "e.png"] and len(written) == 4


def test_two_images_that_would_become_one_file_are_refused_before_anything_is_written(trained, pixels, tmp_path):
    save(tmp_path / "in" / "a.jpg", pixels(20, 30))
    save(tmp_path / "in" / "a.png", pixels(20, 30))
    with pytest.raises(InputError, match="would both become"):
        restore(str(trained), [tmp_path / "in"], out=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("out", ["in", "in/../in", "link"])
def test_the_source_is_never_overwritten(trained, pixels, tmp_path, out):
    source = save(tmp_path / "in" / "a.png", pixels(20, 30))
    (tmp_path / "link").symlink_to(tmp_path / "in")
    before = source.read_bytes()
    with pytest.raises(InputError, match="exists already and would be overwritten"):
        restore(str(trained), [tmp_path / "in"], out=str(tmp_path / out))
    assert source.read_bytes() == before and len(list((tmp_path / "in").iterdir())) == 1


def test_an_older_file_is_never_overwritten(trained, pixels, tmp_path):
    save(tmp_path / "in" / "a.jpg", pixels(20, 30))
    other = save(tmp_path / "out" / "a.png", pixels(10, 10))
    before = other.read_bytes()
    with pytest.raises(InputError, match="a.png exists already"):
        restore(str(trained), [tmp_path / "in" / "a.jpg"], out=str(tmp_path / "out"))
    assert other.read_bytes() == before


def test_results_within_the_folder_are_no_input(trained, pixels, tmp_path):
    save(tmp_path / "a.png", pixels(20, 30))
    restore(str(trained), [tmp_path], out=str(tmp_path / "out"))
    (tmp_path / "a.png").unlink()
    with pytest.raises(InputError, match="no images beside those in .*out"):
        restore(str(trained), [tmp_path], out=str(tmp_path / "out"))
    save(tmp_path / "b.png", pixels(20, 30))
    assert restore(str(trained), [tmp_path], out=str(tmp_path / "out")) == [str(tmp_path / "out" / "b.png")]


def test_damaged_images_are_named_skipped_and_counted(trained, pixels, tmp_path, capsys):
    save(tmp_path / "in" / "good.png", pixels(20, 30))
    whole = save(tmp_path / "in" / "torn.jpg", pixels(200, 300, 3), quality=95).read_bytes()
    (tmp_path / "in" / "torn.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "in" / "none.png").write_bytes(b"")
    assert main(["restore", str(trained), str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 0
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 3 and error[-1] == "2 images skipped"
    assert error[0].startswith(f"skipped {tmp_path}/in/none.png: ")
    assert error[1].startswith(f"skipped {tmp_path}/in/torn.jpg: ")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good.png"]


def test_only_damaged_images_is_an_error(trained, tmp_path, capsys):
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert main(["restore", str(trained), str(tmp_path / "torn.png"), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.splitlines()
    assert error[0].startswith(f"skipped {tmp_path}/torn.png") and error[-1].startswith("error: none of the 1 images")
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_file_serves_as_well_as_its_folder(trained, images, tmp_path):
    a = restore(str(trained), [images], out=str(tmp_path / "a"))
    b = restore(str(trained / "checkpoint.pt"), [images], out=str(tmp_path / "b"))
    assert len(a) == 4 and [Path(path).read_bytes() for path in a] == [Path(path).read_bytes() for path in b]


def test_no_images_is_refused(trained):
    with pytest.raises(InputError, match="no images to restore"):
        restore(str(trained), [])


def enlarged(upscaler, pixels, **settings):
    """What a network that enlarges makes of colour images, in 8 bits."""
    return np.clip(np.rint(upscale_pixels(load(upscaler).network, pixels, CPU, **settings)), 0, 255)


@pytest.mark.parametrize("size", [(37, 53), (1, 1), (5, 40), (40, 15)])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_any_size_are_enlarged(upscaler, pixels, tmp_path, size, channels):
    image = pixels(*size, channels)
    source = save(tmp_path / "in" / "a.png", image)
    (written,) = restore(upscaler, [source], out=str(tmp_path / "out"))
    found = read_image(written)
    assert found.shape == (2 * size[0], 2 * size[1], channels)
    assert np.array_equal(found, enlarged(upscaler, image))
    if min(size) >= 15:  # the network itself
        x = torch.from_numpy(image.repeat(3 // channels, axis=2) / np.float32(255)).permute(2, 0, 1)[None]
        with torch.no_grad():
            expected = load(upscaler).network(x)[0].permute(1, 2, 0).numpy() * 255
        if channels == 1:
            expected = expected @ [[0.299], [0.587], [0.114]]
        np.testing.assert_allclose(upscale_pixels(load(upscaler).network, image, CPU), expected, atol=1e-3)


@pytest.mark.parametrize("channels", [1, 3])
def test_transparency_is_enlarged(upscaler, pixels, tmp_path, channels):
    image, alpha = pixels(21, 34, channels), pixels(21, 34)
    save(tmp_path / "in" / "glass.png", np.concatenate([image, alpha], axis=2))
    (written,) = restore(upscaler, [tmp_path / "in"], out=str(tmp_path / "out"))
    found, found_alpha = read_with_alpha(written)
    assert np.array_equal(found, enlarged(upscaler, image))
    assert np.array_equal(found_alpha, resize(alpha, 2)[..., 0])


@pytest.mark.parametrize("scale", [2, 3])
def test_tiles_of_enlarged_images_leave_no_seams(make_upscaler, pixels, scale):
    network, image = make_upscaler(scale), pixels(150, 233, 3)
    whole, tiled = (upscale_pixels(network, image, CPU, tile) for tile in (0, 126))
    assert whole.shape == (150 * scale, 233 * scale, 3)
    assert np.abs(tiled - whole).mean() <= 0.1 and np.abs(tiled - whole).max() <= 2


@pytest.mark.parametrize("tile", [-5, 50, 101])
def test_tiles_too_small_for_a_network_that_enlarges_are_refused(make_upscaler, pixels, tile):
    with pytest.raises(InputError, match=f"tile is {tile}; give 102 pixels or more, or 0 for no tiles"):
        upscale_pixels(make_upscaler(), pixels(20, 30, 3), CPU, tile)


@pytest.mark.parametrize(("free", "parts"), [(0, 2), (2**40, 1)])
def test_large_images_are_enlarged_whole_where_memory_allows(make_upscaler, pixels, monkeypatch, free, parts):
    network, sizes = make_upscaler(), []
    monkeypatch.setattr("srnas_fast.train.super_resolution._free_memory", lambda device: free)
    network.register_forward_pre_hook(lambda module, given: sizes.append(tuple(given[0].shape[2:])))
    upscale_pixels(network, pixels(20, 600, 3), CPU)
    assert len([size for size in sizes if size != (96, 96)]) == parts  # beside the probe
    sizes.clear()
    upscale_pixels(network, pixels(20, 512, 3), CPU)
    assert sizes == [(20, 512)]  # no larger than a tile


def test_free_memory_is_told_in_bytes():
    assert _free_memory(CPU) == 0 or 2**20 < _free_memory(CPU) < 2**50
