import itertools

import pytest
import torch

from testtime.parts import generator
from testtime.parts.randomness import seeded


def draw(seed: int, step: int, purpose: str) -> float:
    return torch.rand((), generator=generator(seed, step, purpose), dtype=torch.float64).item()


def test_is_a_function_of_seed_step_and_purpose() -> None:
    keys = list(itertools.product([0, 1, 2**40], [0, 1, 12], ["crop", "flip"]))
    values = [draw(*key) for key in keys]
    assert len(set(values)) == len(keys)
    assert values == [draw(*key) for key in keys]


def test_is_the_same_in_every_process_and_version() -> None:
    assert generator(0, 3, "crop").initial_seed() == 1155959363321491790


def test_the_global_generator_is_untouched() -> None:
    before = torch.get_rng_state()
    draw(0, 0, "crop")
    assert torch.get_rng_state().equal(before)


def test_seeded_sets_the_global_generator_and_puts_it_back_even_after_an_error() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with seeded(0, 3, "dropout"):
        drawn = torch.rand((), dtype=torch.float64).item()
        with seeded(0, 3, "crop"):
            assert torch.rand((), dtype=torch.float64).item() == draw(0, 3, "crop")
        following = torch.rand((), dtype=torch.float64).item()
    rng = generator(0, 3, "dropout")
    assert [drawn, following] == torch.rand(2, generator=rng, dtype=torch.float64).tolist()
    with pytest.raises(KeyError), seeded(1, 0, "dropout"):
        raise KeyError
    assert torch.get_rng_state().equal(before)
