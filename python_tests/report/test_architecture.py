"""The picture of an architecture, and the layout behind it."""

import numpy as np
import pytest
from PIL import Image

from srnas_fast.errors import InputError
from srnas_fast.report import draw_architecture
from srnas_fast.report.architecture import NODE_HEIGHT, NODE_WIDTH, _curve, _Layout, _order

OPERATIONS = ["con_c_3x3", "sep_c_3x3", "sep_c_5x5", "dil_c_3x3", "dil_c_5x5", "skip_connect"]


def random_cell(seed):
    """Four nodes, two incoming edges each, as HiNAS derives them."""
    generator = np.random.default_rng(seed)
    names, edges = ["prev-prev", "prev"], []
    for node in ("node 1", "node 2", "node 3", "node 4"):
        for source in sorted(generator.choice(len(names), 2, replace=False)):
            edges.append((names[source], node, str(generator.choice(OPERATIONS))))
        names.append(node)
    return edges + [(name, "out", "") for name in names[2:]]


def test_three_cells_make_a_sensible_picture(tmp_path):
    file = tmp_path / "new" / "architecture.png"
    cells = [(f"layer {layer}", random_cell(layer)) for layer in (1, 2, 3)]
    draw_architecture(cells, file, title="a title")
    with Image.open(file) as image:
        assert image.format == "PNG"
        assert 1200 < image.width < 2000 and 550 < image.height < 1200
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    assert (pixels == 255).all(1).mean() > 0.8  # white paper
    assert len(np.unique(pixels, axis=0)) > 100  # not blank
    for colour in ("0072b2", "d55e00", "009e73"):
        assert (pixels == list(bytes.fromhex(colour))).all(1).sum() > 100
    assert [p.name for p in file.parent.iterdir()] == ["architecture.png"]


def test_without_title_and_labels(tmp_path):
    draw_architecture([("cell", [("in", "out", "")])], tmp_path / "a.png")
    draw_architecture([("cell", [("in", "out", "conv"), ("in", "out", "skip")])], tmp_path / "b.png")
    with Image.open(tmp_path / "a.png") as a, Image.open(tmp_path / "b.png") as b:
        assert a.height < b.height  # a legend needs room
        assert np.asarray(a.convert("L")).std() > 1


def test_the_same_cells_give_the_same_picture(tmp_path):
    for name in ("a.png", "b.png"):
        draw_architecture([("cell", random_cell(0))], tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_order_of_the_nodes():
    edges = [
        ("prev", "node 2", ""),
        ("node 2", "node 1", ""),
        ("prev-prev", "node 1", ""),
        ("node 1", "out", ""),
    ]
    assert _order("cell", edges) == [["prev", "prev-prev"], ["node 2"], ["node 1"], ["out"]]


@pytest.mark.parametrize("seed", range(8))
def test_labels_and_arrows_keep_off_the_nodes(seed):
    edges = random_cell(seed)
    layout = _Layout(edges, _order("cell", edges))
    x, controls, places = layout.best()
    nodes = np.stack([x, layout.y], -1)
    labelled = [position for position, edge in enumerate(edges) if edge[2]]
    for position in labelled:
        half = np.array([len(edges[position][2]) * 0.077, 0.19]) / 2
        away = np.abs(places[position] - nodes)
        assert not (away < half + (NODE_WIDTH / 2, NODE_HEIGHT / 2)).all(1).any()
    curves = _curve(controls, np.linspace(0, 1, 50))
    for position in labelled:
        for node, centre in enumerate(nodes):
            if node not in (layout.source[position], layout.target[position]):
                inside = np.abs(curves[position] - centre) < (NODE_WIDTH / 2, NODE_HEIGHT / 2)
                assert not inside.all(1).any()
    for a in labelled:
        for b in labelled:
            assert a >= b or not np.allclose(places[a], places[b], atol=0.05)


def test_curves_start_and_end_at_their_control_points():
    controls = np.array([[0.0, 0], [0, -1], [2, -1], [2, -2]])
    assert np.allclose(_curve(controls, np.array([0.0, 0.5, 1.0])), [[0, 0], [1, -1], [2, -2]])


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([], "no cells"),
        ([("first", [])], "first has no edges"),
        (
            [("first", [("in", "a", ""), ("a", "b", ""), ("b", "a", ""), ("b", "out", "")])],
            "first.*a, b.*loop",
        ),
    ],
)
def test_bad_cells(tmp_path, cells, message):
    with pytest.raises(InputError, match=message):
        draw_architecture(cells, tmp_path / "a.png")
    assert not list(tmp_path.iterdir())
