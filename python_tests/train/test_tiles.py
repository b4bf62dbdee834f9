import pytest
import torch

from srnas_fast.errors import InputError
from srnas_fast.spaces.hinas import Genotype, random_genotype
from srnas_fast.train import restore_tiled

WIDE = Genotype([[("dil_c_5x5", 0), ("dil_c_5x5", 1)]] * 2, [0, 0])


def noisy(height, width, seed=0, **options):
    return torch.randn(1, 1, height, width, generator=torch.Generator().manual_seed(seed), **options)


@pytest.mark.parametrize("size", [(37, 53), (64, 64), (90, 41), (5, 200), (70, 1)])
@pytest.mark.parametrize("tile", [1000, 64, 32, 23, 9])  # the margin is some 20 pixels: also tiles below it
def test_tiles_equal_the_whole_image(make_network, size, tile):
    net, x = make_network(), noisy(*size)
    with torch.no_grad():
        whole = net(x)
    assert (whole - x).abs().mean() > 0.1  # the network does something
    torch.testing.assert_close(restore_tiled(net, x, tile), whole, rtol=0, atol=1e-5)


def test_tiles_of_a_network_with_a_pyramid(make_network):
    net, x = make_network(WIDE, pyramid=True), noisy(61, 83)
    with torch.no_grad():
        torch.testing.assert_close(restore_tiled(net, x, 20), net(x), rtol=0, atol=1e-5)


def test_tiles_of_several_images_and_of_one_pixel_each(make_network):
    net, x = make_network(), torch.cat([noisy(7, 9, seed) for seed in range(3)])
    with torch.no_grad():
        torch.testing.assert_close(restore_tiled(net, x, 1), net(x), rtol=0, atol=1e-5)


def test_a_margin_too_small_is_noticed(make_network):
    """The tests above can fail."""
    net, x = make_network(), noisy(60, 60)

    class Short(torch.nn.Module):
        reach = net.reach // 4

        def forward(self, x):
            return net(x)

    with torch.no_grad():
        assert (restore_tiled(Short(), x, 30) - net(x)).abs().max() > 1e-3


@pytest.mark.parametrize("tile", [0, 100])
def test_one_call_where_no_tiles_are_needed(tile):
    calls = []

    class Net(torch.nn.Module):
        reach = 3

        def forward(self, x):
            calls.append(tuple(x.shape))
            return x

    restore_tiled(Net(), noisy(40, 50), tile)
    assert calls == [(1, 1, 40, 50)]


def test_a_negative_tile_is_refused(make_network):
    with pytest.raises(InputError, match="tile is -1"):
        restore_tiled(make_network(), noisy(4, 4), -1)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("pyramid", [False, True])
def test_a_pixel_depends_on_nothing_beyond_reach(make_network, seed, pyramid):
    """The gradient of one output pixel for the input is 0 outside of a square of ``reach`` pixels to each side."""
    net = make_network(random_genotype(layers=2, nodes=2, seed=seed), pyramid, seed).double()
    side = 2 * net.reach + 21
    x = noisy(side, side, dtype=torch.float64, requires_grad=True)
    middle = side // 2
    net(x)[0, 0, middle, middle].backward()
    rows, columns = torch.nonzero(x.grad[0, 0], as_tuple=True)
    seen = max(int((line - middle).abs().max()) for line in (rows, columns))
    assert 0 < seen <= net.reach
    assert seen >= net.reach - 2  # and it is no idle bound that makes margins dear
