import numpy as np

from srnas_fast.data.randomness import generator


def test_same_keys_same_numbers():
    assert np.array_equal(generator(-3, "a", 0.5).random(100), generator(-3, "a", 0.5).random(100))


def test_every_key_and_its_place_matter():
    keys = [
        (0, "a", 1),
        (1, "a", 1),
        (0, "b", 1),
        (0, "a", 2),
        (0, "a"),
        (1, "a", 0),
        ("a", "bc"),
        ("ab", "c"),
        (2**32,),
    ]
    first = [generator(*key).random() for key in keys]
    assert len(set(first)) == len(keys)


def test_neighbouring_streams_are_uncorrelated():
    draws = np.stack([generator(0, "train", n).standard_normal(2000) for n in range(20)])
    off_diagonal = np.corrcoef(draws)[~np.eye(20, dtype=bool)]
    assert np.abs(off_diagonal).max() < 5 / np.sqrt(2000)
