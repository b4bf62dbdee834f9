import numpy as np
import torch
from torch import nn

from srnas_fast.data import DenoisingData, NamedImage
from srnas_fast.metrics import psnr, ssim
from srnas_fast.search.validation import validate
from srnas_fast.spaces import Denoising


def gray(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 1), dtype=np.uint8)


def test_pairs_are_centre_crops_whose_noise_levels_take_turns():
    images = [NamedImage(str(i), gray(300, 200, i)) for i in range(4)]
    pairs = Denoising(DenoisingData(sigma=[10.0, 60.0], validation_crop=100)).pairs(images, seed=0)
    for image, (noisy, clean), sigma in zip(images, pairs, [10, 60, 10, 60], strict=True):
        assert np.array_equal(clean, image.pixels[100:200, 50:150])
        assert abs((noisy - clean).std() - sigma) < 0.03 * sigma


def test_crop_0_is_the_whole_image():
    (pair,) = Denoising(DenoisingData(validation_crop=0)).pairs([NamedImage("a", gray(30, 20))], seed=0)
    assert pair[1].shape == (30, 20, 1)


def test_figures_are_means_in_evaluation_mode_which_is_left_again():
    class Net(nn.Module):
        def forward(self, x):
            assert not self.training and not torch.is_grad_enabled()
            return x

    net = Net().train()
    task = Denoising(DenoisingData())
    pairs = task.pairs([NamedImage(str(i), gray(20, 30, i)) for i in range(3)], seed=1)
    figures = validate(net, torch.device("cpu"), pairs, task)
    assert net.training
    quality = np.mean([psnr(noisy, clean) for noisy, clean in pairs])
    similarity = np.mean([ssim(noisy, clean) for noisy, clean in pairs])
    np.testing.assert_allclose(
        [figures["psnr"], figures["ssim"], figures["score"]],
        [quality, similarity, similarity + quality / 100],
        rtol=1e-4,
    )
