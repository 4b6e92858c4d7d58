"""Models on CUDA without a GPU (tests/fake_cuda.py): all of their tensors are made there, and nothing waits for the device."""

import pytest
import torch
from timm.utils import reparameterize_model

from s4nd import S4ND, frozen
from tests.fake_cuda import fake_cuda, on_cuda
from tests.models.test_registered import NAMES, sizes, small

SMALLEST = [name for name in NAMES if "tiny" in name or "micro" in name]  # larger ones are of the same classes


@pytest.mark.parametrize("name", SMALLEST)
def test_model_runs_on_the_device_and_waits_for_nothing(name):
    """Trained at its size under autocast, evaluated at another one."""
    model = small(name, drop_path_rate=0.1, drop_rate=0.1)
    with fake_cuda() as waits:
        on_cuda(model)
        at_home, elsewhere = (torch.empty(2, 3, *size, device="cuda") for size in sizes(name)[:2])
        with torch.autocast("cuda", torch.bfloat16):
            logits = model.train()(at_home)
            loss = torch.nn.functional.cross_entropy(logits.float(), torch.empty(2, dtype=torch.int64, device="cuda"))
        with torch.no_grad():
            evaluated = model.eval()(elsewhere)
        assert logits.is_cuda and loss.is_cuda and evaluated.is_cuda
        assert logits.shape == evaluated.shape == (2, 5) and evaluated.dtype == torch.float32
        assert waits.found == [] and waits.uploads == []


@pytest.mark.parametrize(
    "name", ["s4nd_iso_tiny", "s4nd_convnext_tiny", "s4nd_vit_tiny_patch16_224", "s4nd_convnext3d_micro"]
)
def test_features_are_made_on_the_device(name):
    model = small(name, features_only=True, num_classes=0)
    with fake_cuda() as waits, torch.no_grad():
        features = on_cuda(model).eval()(torch.empty(2, 3, *sizes(name)[0], device="cuda"))
        assert len(features) > 1 and all(x.is_cuda for x in features)
        assert waits.found == [] and waits.uploads == []


def test_kept_kernels_of_several_sizes_are_on_the_device():
    model = small("s4nd_convnext_micro", resample="hold+dilate")
    with fake_cuda() as waits, torch.no_grad(), frozen(on_cuda(model).eval()):
        for size in [(64, 64), (96, 32), (64, 64)]:
            assert model(torch.empty(2, 3, *size, device="cuda")).is_cuda
        assert waits.found == [] and waits.uploads == []
        assert all(m.kept.entries for m in model.modules() if isinstance(m, S4ND))


def test_fused_model_runs_on_the_device():
    model = small("s4nd_convnext_tiny").eval()
    images = torch.zeros(2, 3, 64, 64)
    with torch.no_grad():
        fused = reparameterize_model(model)
        fused(images)  # completes the plans
    with fake_cuda() as waits, torch.no_grad():
        assert on_cuda(fused)(torch.empty(images.shape, device="cuda")).is_cuda
        assert waits.found == [] and waits.uploads == []
