"""Devices without float64, such as Apple's GPUs: nothing of that kind is ever made there. "meta" stands for one."""

import pytest
import timm
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import s4nd.models  # noqa: F401  registers the models
from s4nd import S4ND
from s4nd.ops import precision


class NoFloat64(TorchDispatchMode):
    """Refuses float64 on the device "meta", as the backend of such a device would."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor) and x.device.type == "meta" and x.dtype in (torch.float64, torch.complex128):
                raise TypeError(f"{function} made {x.dtype}")
        return out


@pytest.fixture(autouse=True)
def without(monkeypatch):
    monkeypatch.setattr(precision, "WITHOUT_FLOAT64", {"meta"})


@pytest.mark.parametrize("align", ["centre", "edge"])
@pytest.mark.parametrize("kernel", ["s4", "s4d", "dss", "lru", "ema"])
def test_layer_is_built_trained_and_evaluated(kernel, align):
    with NoFloat64():
        layer = S4ND(8, ndim=2, d_state=8, kernel=kernel, align=align, base_size=12, device="meta")
        u = torch.empty(2, 8, 12, 9, device="meta", requires_grad=True)
        layer(u).sum().backward()
        with torch.no_grad():
            layer.eval()(u)


@pytest.mark.parametrize("kernel", ["s4", "s4d", "lru", "ema"])
def test_layer_is_stepped(kernel):
    with NoFloat64(), torch.no_grad():
        layer = S4ND(8, ndim=2, d_state=8, kernel=kernel, bidirectional=[False, True], device="meta").eval()
        state = None
        for _ in range(2):
            _, state = layer.step(torch.empty(2, 8, 9, device="meta"), state)


def test_training_step_of_a_model_and_its_loss():
    with NoFloat64():
        model = timm.create_model("s4nd_convnext_micro", img_size=64, num_classes=3, device="meta")
        loss = nn.functional.cross_entropy(
            model(torch.empty(2, 3, 64, 64, device="meta")), torch.empty(2, 3, device="meta")
        )
        loss.backward()


def test_float64_is_used_where_there_is_some():
    x = torch.zeros(2)
    assert precision.wide(x).dtype == torch.float64 and precision.wide(x.to("meta")).dtype == torch.float32
