"""The HNAS controller against the numbers of its published module, and against a plain computation."""

import math

import pytest
import torch

from srnas_fast.errors import InputError
from srnas_fast.spaces.hnas import HNAS_A, HNAS_B, Controller, Genotype, SupernetConfig, random_genotype
from srnas_fast.spaces.hnas.operations import NORMAL, UPSAMPLING


def controller(seed=0, **config):
    torch.manual_seed(seed)
    return Controller(SupernetConfig(**config)).double()


def counts(part):
    numbers = {name: p.numel() for name, p in part.named_parameters()}
    lstm = sum(number for name, number in numbers.items() if name.startswith("lstm"))
    return numbers, lstm, sum(numbers.values())


def test_it_has_the_published_parameters_without_the_dead_ones():
    net = controller()
    for part, embedding, operation, total in ((net.normal, 1100, 606, 102_606), (net.upsampling, 1000, 505, 102_405)):
        numbers, lstm, everything = counts(part)
        assert (numbers["embedding"], lstm, everything) == (embedding, 80_800, total)
        assert numbers["state.of_rows.weight"] == numbers["state.of_hidden.weight"] == 10_000
        assert numbers["state.score.weight"] == 100
        assert numbers["operation.weight"] + numbers["operation.bias"] == operation
    numbers, lstm, everything = counts(net.position)
    assert (numbers["embedding"], lstm, everything) == (1200, 120_800, 142_100)
    assert sum(p.numel() for p in net.parameters()) == 348_323 - 1212 == 347_111


def test_initial_weights_are_small_and_only_the_normal_operations_start_without_bias():
    net = controller()
    for name, parameter in net.named_parameters():
        if name == "normal.operation.bias":
            assert (parameter == 0).all()
        else:
            assert 0.05 < parameter.abs().max() <= 0.1, name
    assert net.weights == (1.0, 1.0, 10.0)


def test_without_weights_everything_is_equally_likely():
    net = controller()
    for parameter in net.parameters():
        torch.nn.init.zeros_(parameter)
    drawn = net.of(HNAS_B)
    log_probabilities = torch.tensor([-23.909060, -22.450487, -2.484907], dtype=torch.float64)
    torch.testing.assert_close(drawn.log_probabilities, log_probabilities, atol=1e-6, rtol=0)
    torch.testing.assert_close(drawn.entropies, -log_probabilities, atol=1e-6, rtol=0)
    exact = [2 * math.log(120) + 8 * math.log(6), 2 * math.log(120) + 8 * math.log(5), math.log(12)]
    assert drawn.entropies.tolist() == pytest.approx(exact, rel=1e-13)


def filled():
    """Every tensor 0.1 sin(0), 0.1 sin(1), ..., row by row."""
    net = controller()
    for parameter in net.parameters():
        values = 0.1 * torch.arange(parameter.numel(), dtype=torch.float64).sin()
        parameter.data.copy_(values.view_as(parameter))
    return net


def recorded(net, genotype, monkeypatch):
    """What it says to a genotype, and the probabilities of each decision."""
    seen = []
    softmax = torch.Tensor.log_softmax
    monkeypatch.setattr(
        torch.Tensor, "log_softmax", lambda self, dim: seen.append(softmax(self, dim).exp()) or softmax(self, dim)
    )
    return net.of(genotype), seen


def test_the_published_numbers_to_the_last_digit(monkeypatch):
    drawn, seen = recorded(filled(), HNAS_A, monkeypatch)
    assert drawn.genotype == HNAS_A
    assert drawn.log_probabilities.tolist() == pytest.approx(
        [-24.249340417168, -21.952245735668, -2.485710931623], abs=1e-12
    )
    assert drawn.entropies.tolist() == pytest.approx([23.764610279626, 22.367905303310, 2.482104520049], abs=1e-12)
    assert len(seen) == 16 + 16 + 1
    assert seen[0].tolist() == pytest.approx([0.504514058201, 0.495485941799], abs=1e-12)
    operations = [0.151157584003, 0.189529331928, 0.203716271824, 0.183209626355, 0.149148211612, 0.123238974279]
    assert seen[2].tolist() == pytest.approx(operations, abs=1e-12)
    assert seen[-1][:3].tolist() == pytest.approx([0.092266937314, 0.090733054805, 0.087303018094], abs=1e-12)


def by_definition(net, genotype):
    """Log-probabilities and entropies, step by step with nothing but matrix products."""

    def lstm(cell, x, h, c):
        gates = cell.weight_ih @ x + cell.bias_ih + cell.weight_hh @ h + cell.bias_hh
        i, f, g, o = gates.view(4, 100)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c

    def pointed(pointer, rows, h):
        return torch.stack(
            [
                pointer.score.weight[0] @ torch.tanh(pointer.of_rows.weight @ row + pointer.of_hidden.weight @ h)
                for row in rows
            ]
        )

    totals, hiddens = [], []

    def count(logits, chosen, total):
        p = logits.exp() / logits.exp().sum()
        total[0] += p[chosen].log()
        total[1] -= (p * p.log()).sum()

    for part, edges, names in (
        (net.normal, genotype.normal, list(NORMAL)),
        (net.upsampling, genotype.upsampling, list(UPSAMPLING)),
    ):
        x = h = c = torch.zeros(100, dtype=torch.float64)
        total = [0, 0]
        for i in range(4):
            (op_a, from_a, _), (op_b, from_b, _) = edges[2 * i : 2 * i + 2]
            for source in (from_a, from_b):
                h, c = lstm(part.lstm, x, h, c)
                count(pointed(part.state, part.embedding[: i + 2], h), source, total)
                x = part.embedding[source]
            for op in (op_a, op_b):
                h, c = lstm(part.lstm, x, h, c)
                count(part.operation.weight @ h + part.operation.bias, names.index(op), total)
                x = part.embedding[5 + names.index(op)]
        totals.append(total)
        hiddens.append(h)
    zero = torch.zeros(100, dtype=torch.float64)
    h, _ = lstm(net.position.lstm, torch.cat(hiddens), zero, zero)
    total = [0, 0]
    count(pointed(net.position.position, net.position.embedding, h), genotype.position, total)
    return [torch.stack(column) for column in zip(*totals, total, strict=True)]


def sharpened(**config):
    """With weights that decide something."""
    net = controller(1, **config)
    for parameter in net.parameters():
        parameter.data *= 5
    return net


@pytest.mark.parametrize("seed", [0, 1])
def test_a_plain_computation_says_the_same_with_gradients(seed):
    genotype = random_genotype(seed)
    net, plain = sharpened(), sharpened()
    drawn = net.of(genotype)
    log_probabilities, entropies = by_definition(plain, genotype)
    torch.testing.assert_close(drawn.log_probabilities, log_probabilities)
    torch.testing.assert_close(drawn.entropies, entropies)
    weights = torch.tensor(net.weights, dtype=torch.float64)
    for parts in (drawn, (None, log_probabilities, entropies)):
        ((0.7 * parts[1] + parts[2]) * weights).sum().backward()
    for (name, got), expected in zip(net.named_parameters(), plain.parameters(), strict=True):
        # The position is decided in one step, from a state of zeros.
        assert bool((got.grad != 0).any()) == (name != "position.lstm.weight_hh"), name
        torch.testing.assert_close(got.grad, expected.grad)


def test_samples_are_a_function_of_the_generator_and_told_as_if_they_were_given():
    net = sharpened(cells=5, candidates=["rcab", "dil_conv_5x5", "skip_connect"])
    drawn = [net.sample(torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert drawn[0].genotype == drawn[1].genotype != drawn[2].genotype
    for one in drawn:
        assert one.genotype.cells == 5
        assert {name for name, _, _ in one.genotype.normal} <= {"rcab", "dil_conv_5x5", "skip_connect"}
        again = net.of(one.genotype)
        assert again.genotype == one.genotype and torch.equal(again.log_probabilities, one.log_probabilities)
        assert torch.equal(again.entropies, one.entropies)


def test_frequencies_are_the_probabilities(monkeypatch):
    net, times = sharpened(cells=3, candidates=["rcab", "skip_connect"]), 700
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        drawn = [net.sample(generator) for _ in range(times)]
        _, seen = recorded(net, drawn[0].genotype, monkeypatch)
    first = [sum(one.genotype.normal[0][1] == state for one in drawn) / times for state in (0, 1)]
    assert first == pytest.approx(seen[0].tolist(), abs=0.06)
    # The entropies on the way and the improbability of what is drawn have the same mean.
    surprise = torch.stack([one.log_probabilities + one.entropies for one in drawn])
    assert (surprise.mean(0).abs() < 4 * surprise.std(0) / math.sqrt(times)).all()


def test_the_same_edge_twice_can_be_drawn():
    net = controller(candidates=["rcab"])
    generator = torch.Generator().manual_seed(0)
    edges = [net.sample(generator).genotype.normal for _ in range(10)]
    assert any(cell[0] == cell[1] for cell in edges)


def test_what_it_cannot_draw_is_refused():
    net = controller(cells=4, candidates=["skip_connect"])
    with pytest.raises(InputError, match="this controller draws 4 cells and skip_connect"):
        net.of(HNAS_A)
    with pytest.raises(InputError, match="rcab"):
        net.of(random_genotype(0, ["rcab"], cells=4))
    assert isinstance(net.of(random_genotype(0, ["skip_connect"], cells=4)).genotype, Genotype)
