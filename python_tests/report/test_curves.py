import pytest
from PIL import Image

from srnas_fast.errors import InputError
from srnas_fast.report import draw_curves


@pytest.mark.parametrize("count", [1, 2, 30, 1000])
def test_any_number_of_steps_is_drawn(count, tmp_path):
    values = [step % 7 for step in range(count)]
    panels = {"reward": ("reward", {"reward": values, "mean": values}), "cost": ("Multi-Adds, M", {"cost": values})}
    draw_curves(range(count), panels, tmp_path / "curves.png", "step of the controller")
    picture = Image.open(tmp_path / "curves.png")
    assert picture.width > picture.height and len(picture.convert("RGB").getcolors(10**6)) > 20


def test_what_cannot_be_drawn_is_refused_and_an_old_picture_stays(tmp_path):
    file = tmp_path / "curves.png"
    file.write_bytes(b"old")
    with pytest.raises(InputError, match="curves of 0 panels at 2 steps"):
        draw_curves([0, 1], {}, file)
    with pytest.raises(InputError, match="mean in reward has 1 numbers for 2 steps"):
        draw_curves([0, 1], {"reward": ("reward", {"mean": [1.0]})}, file)
    assert file.read_bytes() == b"old"
