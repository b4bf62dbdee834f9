"""What the loop gives to any algorithm, and what it asks of one."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch.utils.data import Dataset

from srnas_fast.data import DenoisingData
from srnas_fast.errors import InputError
from srnas_fast.search import search_groups
from srnas_fast.search.algorithm import Batches, algorithm_of
from srnas_fast.search.bilevel import BilevelSearch
from srnas_fast.spaces import find_space


class Numbers(Dataset):
    def __getitem__(self, n):
        return torch.tensor(n), torch.tensor(-n)


@pytest.mark.parametrize("numbers", [[0, 1, 2], [5, 6, 7], [3, 3, 4], [0, 2, 4, 6], [6, 0]])
def test_a_batch_is_that_of_its_number_in_whatever_order(numbers):
    batches = Batches(Numbers(), DenoisingData(batch=3))
    for number in numbers:
        first, second = batches.take(number, 8)
        assert first.tolist() == [3 * number, 3 * number + 1, 3 * number + 2] and second.tolist() == (-first).tolist()


def test_an_algorithm_is_found_by_its_name_or_is_a_class():
    space = find_space("hinas-denoise")
    assert algorithm_of(space) is BilevelSearch

    class Own(BilevelSearch):
        pass

    assert algorithm_of(replace(space, algorithm=Own)) is Own
    with pytest.raises(InputError, match="names the algorithm 'dance'; known: bilevel, reinforce"):
        algorithm_of(replace(space, algorithm="dance"))
    with pytest.raises(InputError, match="lacks groups, parts, step, genotype, result, draw"):
        algorithm_of(replace(space, algorithm=int))
    with pytest.raises(InputError, match="lacks a class"):
        algorithm_of(replace(space, algorithm=BilevelSearch.__new__(BilevelSearch)))


@pytest.mark.parametrize("name", ["supernet", "data", "seed", "code", "preset"])
def test_groups_of_an_own_algorithm_keep_off_names_that_are_taken(name):
    @dataclass
    class Settings:
        number: int = 1

    class Own(BilevelSearch):
        @staticmethod
        def groups(space):
            return {name: Settings}

    with pytest.raises(InputError, match=f"has a group of settings '{name}'"):
        search_groups(replace(find_space("hinas-denoise"), algorithm=Own))


def test_groups_of_an_own_algorithm_are_dataclasses():
    class Own(BilevelSearch):
        @staticmethod
        def groups(space):
            return {"mine": dict}

    with pytest.raises(InputError, match="settings 'mine' that are no dataclass"):
        search_groups(replace(find_space("hinas-denoise"), algorithm=Own))
