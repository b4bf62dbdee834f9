import io
import os
import struct
import zlib

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from srnas_fast.data import find_images, read_image, read_with_alpha, write_image
from srnas_fast.errors import InputError

SAVING = {"png": {}, "bmp": {}, "tif": {}, "webp": {"lossless": True, "exact": True}, "jpg": {"quality": 100}}


def random_pixels(*shape, high=256, seed=0):
    return np.random.default_rng(seed).integers(0, high, shape)


def save(path, array, mode=None, **options):
    array = np.asarray(array, np.uint8)
    image = Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def png16(array):
    """A 16-bit PNG, which Pillow reads but does not write in colour."""
    height, width, channels = array.shape
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp"])
@pytest.mark.parametrize("size", [(1, 1), (5, 8), (33, 17)])
def test_colour_is_read_exactly(tmp_path, suffix, size):
    pixels = random_pixels(*size, 3)
    Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"a.{suffix}", **SAVING[suffix])
    found = read_image(tmp_path / f"a.{suffix}")
    assert found.dtype == np.uint8 and np.array_equal(found, pixels)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
def test_gray_is_read_exactly(tmp_path, suffix):
    pixels = random_pixels(5, 8, 1)
    found = read_image(save(tmp_path / f"a.{suffix}", pixels))
    assert found.shape == (5, 8, 1) and np.array_equal(found, pixels)


def test_jpeg_is_close(tmp_path):
    ramp = np.broadcast_to(np.arange(0, 250, 5)[None, :, None], (40, 50, 3))
    found = read_image(save(tmp_path / "a.jpg", ramp, quality=100, subsampling=0))
    assert found.shape == (40, 50, 3) and np.abs(found.astype(int) - ramp).max() <= 3
    assert read_image(save(tmp_path / "b.jpeg", ramp[..., :1])).shape == (40, 50, 1)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
def test_one_bit_is_black_and_white(tmp_path, suffix):
    bits = random_pixels(9, 13, 1, high=2)
    found = read_image(save(tmp_path / f"a.{suffix}", bits * 255, "1"))
    assert np.array_equal(found, bits * 255)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
def test_palette_gives_its_colours(tmp_path, suffix):
    colours = random_pixels(4, 3)
    indices = random_pixels(6, 7, high=4)
    image = Image.fromarray(indices.astype(np.uint8), "P")
    image.putpalette(colours.astype(np.uint8).tobytes())
    image.save(tmp_path / f"a.{suffix}")
    assert np.array_equal(read_image(tmp_path / f"a.{suffix}"), colours[indices])


def test_transparent_palette_entry_becomes_alpha(tmp_path):
    image = Image.fromarray(np.array([[0, 1, 1]], np.uint8), "P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.save(tmp_path / "a.png", transparency=1)
    pixels, alpha = read_with_alpha(tmp_path / "a.png")
    assert pixels.tolist() == [[[10, 20, 30], [40, 50, 60], [40, 50, 60]]]
    assert alpha.tolist() == [[255, 0, 0]]


def test_cmyk_is_colour(tmp_path):
    image = Image.new("CMYK", (4, 3), (0, 255, 255, 0))
    image.save(tmp_path / "a.tif")
    assert np.array_equal(read_image(tmp_path / "a.tif"), np.full((3, 4, 3), (255, 0, 0)))
    image.save(tmp_path / "a.jpg", quality=100)
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - (255, 0, 0)).max() <= 3


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
@pytest.mark.parametrize("channels", [1, 3])
def test_alpha_is_dropped_or_kept_not_composited(tmp_path, suffix, channels):
    pixels, alpha = random_pixels(5, 8, channels), random_pixels(5, 8, seed=1)
    path = tmp_path / f"a.{suffix}"
    write_image(path, pixels, alpha)
    expected = pixels if suffix != "webp" else np.broadcast_to(pixels, (5, 8, 3))  # WebP knows no gray
    assert np.array_equal(read_image(path), expected)
    found, found_alpha = read_with_alpha(path)
    assert np.array_equal(found, expected) and np.array_equal(found_alpha, alpha)


def test_opaque_formats_have_no_alpha(tmp_path):
    assert read_with_alpha(save(tmp_path / "a.png", random_pixels(5, 8, 3)))[1] is None


def test_gray_is_matlabs_luma(tmp_path):
    pixels = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [1, 2, 3], [77, 77, 77]]])
    found = read_image(save(tmp_path / "a.png", pixels), gray=True)
    # .2989 * 255 = 76.22, .587 * 255 = 149.69, .114 * 255 = 29.07, .2989 + 1.174 + .342 = 1.81
    assert found.shape == (1, 6, 1) and found.ravel().tolist() == [76, 150, 29, 255, 2, 77]


def test_16_bit_gray_keeps_its_precision(tmp_path):
    values = random_pixels(6, 7, high=65536).astype(np.uint16)
    expected = values[..., None] * (255 / 65535)
    Image.fromarray(values).save(tmp_path / "a.png")
    Image.fromarray(values).save(tmp_path / "a.tif")
    Image.fromarray(values).save(tmp_path / "b.tif", compression="tiff_lzw")
    tifffile.imwrite(tmp_path / "c.tif", values, byteorder=">")
    tifffile.imwrite(tmp_path / "d.tif", 65535 - values, photometric="miniswhite")
    for name in ("a.png", "a.tif", "b.tif", "c.tif", "d.tif"):
        found = read_image(tmp_path / name)
        assert found.dtype == np.float32 and found.shape == (6, 7, 1), name
        assert np.abs(found - expected).max() < 1e-4, name


@pytest.mark.parametrize("channels", [2, 3, 4])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_16_bit_colour_and_alpha_tiff_keep_their_precision(tmp_path, channels, planar):
    values = random_pixels(6, 7, channels, high=65536).astype(np.uint16)
    stored = values if planar == "contig" else np.moveaxis(values, 2, 0)
    tifffile.imwrite(
        tmp_path / "a.tif",
        stored,
        photometric="rgb" if channels > 2 else "minisblack",
        planarconfig=planar,
        extrasamples=["unassalpha"] if channels in (2, 4) else None,
        compression="zlib",
        predictor=True,
    )
    pixels, alpha = read_with_alpha(tmp_path / "a.tif")
    colours = 3 if channels > 2 else 1
    assert pixels.dtype == np.float32 and pixels.flags["C_CONTIGUOUS"]
    assert pixels.shape == (6, 7, colours)
    assert np.abs(pixels - values[..., :colours] * (255 / 65535)).max() < 1e-4
    if channels in (2, 4):
        assert np.array_equal(alpha, np.rint(values[..., -1] / 257))
    else:
        assert alpha is None
        luma = values @ np.array([0.2989, 0.5870, 0.1140]) * (255 / 65535)
        assert np.abs(read_image(tmp_path / "a.tif", gray=True)[..., 0] - luma).max() < 1e-3


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_16_bit_colour_png_keeps_8_bits(tmp_path, channels):
    gray_or_colour = 1 if channels == 2 else 3
    values = random_pixels(6, 7, channels, high=65536)
    (tmp_path / "a.png").write_bytes(png16(values))
    pixels, alpha = read_with_alpha(tmp_path / "a.png")
    assert np.array_equal(pixels, values[..., :gray_or_colour] >> 8)
    assert alpha is None if channels == 3 else np.array_equal(alpha, values[..., -1] >> 8)


def test_float_tiff_is_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.ones((4, 5), np.float32))
    with pytest.raises(InputError, match=r"a\.tif: .*convert"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif", "webp", "jpg"])
def test_exif_orientation_is_applied(tmp_path, suffix, orientation):
    upright = np.kron([[10, 90, 200], [50, 250, 130]], np.ones((8, 8)))[..., None].repeat(3, axis=2)
    # How each orientation is stored, by the EXIF standard's rows and columns.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright, 1),
        7: np.rot90(upright, 1)[::-1],
        8: np.rot90(upright, -1),
    }[orientation]
    stored = stored if orientation != 7 else upright[::-1, ::-1].swapaxes(0, 1)
    exif = Image.Exif()
    exif[274] = orientation
    path = save(tmp_path / f"a.{suffix}", stored, exif=exif, **SAVING[suffix])
    found = read_image(path)
    assert found.shape == upright.shape
    assert np.abs(found - upright).max() <= (2 if suffix == "jpg" else 0)
    if suffix == "tif":  # 16-bit colour goes another way
        deep = (stored * 257).astype(np.uint16)
        tifffile.imwrite(path, deep, photometric="rgb", extratags=[(274, "H", 1, orientation, True)])
        assert np.abs(read_image(path) - upright).max() < 1e-4


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "tif", "webp"])
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.95])
def test_truncated_file_is_an_error(tmp_path, suffix, kept):
    path = save(tmp_path / f"a.{suffix}", random_pixels(64, 64, 3), **SAVING[suffix])
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(InputError, match=rf"a\.{suffix}: "):
        read_image(path)


def test_truncated_16_bit_tiff_is_an_error(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, random_pixels(64, 64, 3, high=65536).astype(np.uint16), photometric="rgb")
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(InputError, match=r"a\.tif: "):
        read_image(path)


def test_progressive_jpeg_truncated_is_an_error(tmp_path):
    path = save(tmp_path / "a.jpg", random_pixels(64, 64, 3), progressive=True)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match="truncated"):
        read_image(path)


def test_unreadable_files_are_named(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "noise.jpg").write_bytes(random_pixels(500).astype(np.uint8).tobytes())
    with pytest.raises(InputError, match=r"empty\.png: the file is empty"):
        read_image(tmp_path / "empty.png")
    with pytest.raises(InputError, match=r"noise\.jpg: not a readable PNG"):
        read_image(tmp_path / "noise.jpg")
    with pytest.raises(InputError, match=r"none\.png: No such file"):
        read_image(tmp_path / "none.png")
    with pytest.raises(InputError, match="Is a directory"):
        read_image(tmp_path)


def test_write_rounds_and_clips(tmp_path):
    write_image(tmp_path / "a.png", np.array([[[-3.0], [0.6], [254.4], [300.0]]]))
    assert read_image(tmp_path / "a.png").ravel().tolist() == [0, 1, 254, 255]


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".bmp", ".tif", ".tiff", ".webp"])
def test_write_and_read_without_loss(tmp_path, suffix):
    pixels = random_pixels(5, 8, 3)
    write_image(tmp_path / f"new/folder/a{suffix}", pixels)
    assert np.array_equal(read_image(tmp_path / f"new/folder/a{suffix}"), pixels)


def test_write_refuses_what_it_cannot_keep(tmp_path):
    pixels = np.zeros((2, 2, 3))
    with pytest.raises(InputError, match=r"a\.gif: cannot write '\.gif'.*\.png"):
        write_image(tmp_path / "a.gif", pixels)
    with pytest.raises(InputError, match=r"a\.jpg: JPEG keeps no transparency"):
        write_image(tmp_path / "a.jpg", pixels, alpha=np.zeros((2, 2)))
    assert not list(tmp_path.iterdir())


def test_failed_write_leaves_the_old_file(tmp_path):
    write_image(tmp_path / "a.webp", np.full((2, 2, 3), 7))
    with pytest.raises((ValueError, OSError)):
        write_image(tmp_path / "a.webp", np.zeros((1, 20000, 3)))  # wider than WebP can be
    assert np.array_equal(read_image(tmp_path / "a.webp"), np.full((2, 2, 3), 7))
    assert [path.name for path in tmp_path.iterdir()] == ["a.webp"]


def test_find_images_is_recursive_sorted_and_skips_hidden(tmp_path):
    names = ["b.png", "A/z.JPG", "a/deep/er/x.TIFF", "c.webp", "d.bmp", "e.jpeg", "f.tif"]
    for name in [*names, ".hidden.png", ".git/x.png", "a/._b.png", "notes.txt", "png"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = find_images(tmp_path)
    assert found == sorted(tmp_path / name for name in names)
    assert find_images(str(tmp_path)) == found
    assert find_images(tmp_path / "b.png") == [tmp_path / "b.png"]


def test_find_images_follows_links_once(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store/a.png").touch()
    (tmp_path / "root/sub").mkdir(parents=True)
    os.symlink(tmp_path / "store", tmp_path / "root/linked")
    os.symlink(tmp_path / "root", tmp_path / "root/sub/loop")
    assert find_images(tmp_path / "root") == [tmp_path / "root/linked/a.png"]


def test_find_images_says_what_is_missing(tmp_path):
    with pytest.raises(InputError, match="nowhere: no such file or folder"):
        find_images(tmp_path / "nowhere")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match=r"no images in this folder; looked for \*\.png, \*\.jpg"):
        find_images(tmp_path)


@settings(max_examples=60, deadline=None)
@given(
    mode=st.sampled_from(["1", "L", "LA", "RGB", "RGBA", "P", "I;16", "CMYK"]),
    suffix=st.sampled_from(["png", "bmp", "tif", "webp", "jpg"]),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    seed=st.integers(0, 2**32 - 1),
    gray=st.booleans(),
)
def test_whatever_pillow_writes_is_read(tmp_path_factory, mode, suffix, height, width, seed, gray):
    rng = np.random.default_rng(seed)
    if mode == "I;16":
        image = Image.fromarray(rng.integers(0, 65536, (height, width)).astype(np.uint16))
    else:
        image = Image.fromarray(rng.integers(0, 256, (height, width, 4)).astype(np.uint8)).convert(mode)
    path = tmp_path_factory.mktemp("images") / f"a.{suffix}"
    try:
        image.save(path, **SAVING[suffix])
    except (OSError, ValueError):  # the format has no such mode
        return
    pixels = read_image(path, gray)
    with Image.open(path) as stored:
        colour = stored.mode not in ("1", "L", "LA", "I", "I;16", "I;16B")
        expected = np.asarray(stored.convert("RGBA" if colour else "LA"))[..., : 3 if colour else 1]
        wide = stored.mode.startswith("I")
    assert pixels.shape == (height, width, 3 if colour and not gray else 1)
    assert pixels.dtype == (np.float32 if wide else np.uint8)
    assert 0 <= pixels.min() <= pixels.max() <= 255
    if not wide and not gray:
        assert np.array_equal(pixels, expected)
    if suffix in ("png", "tif") and mode == "I;16":
        assert np.abs(pixels[..., 0] * 257 - np.asarray(image)).max() < 0.05


@settings(max_examples=40, deadline=None)
@given(
    suffix=st.sampled_from([".png", ".bmp", ".tif", ".webp"]),
    size=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    colour=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_written_pixels_come_back(tmp_path_factory, suffix, size, colour, seed):
    pixels = random_pixels(*size, 3 if colour else 1, seed=seed)
    path = tmp_path_factory.mktemp("images") / f"a{suffix}"
    write_image(path, pixels)
    found = read_image(path)
    assert np.array_equal(found, np.broadcast_to(pixels, found.shape))
    assert found.shape[2] == pixels.shape[2] or suffix == ".webp"


@settings(max_examples=60, deadline=None)
@given(
    suffix=st.sampled_from(["png", "jpg", "tif", "bmp", "webp"]),
    damage=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=5),
    cut=st.integers(0, 2000),
)
def test_damaged_files_are_read_or_refused_in_one_way(tmp_path_factory, suffix, damage, cut):
    buffer = io.BytesIO()
    image = Image.fromarray(random_pixels(16, 16, 3).astype(np.uint8))
    image.save(buffer, {"jpg": "jpeg", "tif": "tiff"}.get(suffix, suffix), **SAVING[suffix])
    content = bytearray(buffer.getvalue())[: cut + 1]
    for place, value in damage:
        content[place % len(content)] = value
    path = tmp_path_factory.mktemp("images") / f"a.{suffix}"
    path.write_bytes(content)
    try:
        pixels = read_image(path)
    except InputError as error:
        assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
    else:
        assert pixels.ndim == 3 and pixels.size > 0
