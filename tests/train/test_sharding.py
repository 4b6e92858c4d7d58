"""Division among processes, of what needs no second process; the rest is in test_processes.py."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from s4nd.train import sharding


@pytest.fixture
def one_process(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_torch_that_sums_gradients_is_refused(one_process, monkeypatch):
    """As torch 2.7 does on CPUs; here the probe's input is 2 in place of 1, as the sum of two processes' gradients would be."""
    ones = torch.ones
    monkeypatch.setattr(torch, "ones", lambda *size, **kwargs: 2 * ones(*size, **kwargs))
    with pytest.raises(
        ValueError, match=r"parallel=fsdp: torch .* adds the gradients .* take a newer torch, or parallel=ddp"
    ):
        sharding.shard(nn.Linear(2, 2), 1, torch.device("cpu"))


def test_the_probe_draws_no_random_numbers(one_process):
    model = nn.Linear(2, 2)
    state = torch.random.get_rng_state()
    sharding.shard(model, 1, torch.device("cpu"))
    assert torch.equal(state, torch.random.get_rng_state())
