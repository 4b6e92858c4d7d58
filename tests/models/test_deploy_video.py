"""Video models through the deployment tools of timm and PyTorch, against the models themselves."""

import pytest
import timm
import torch
from timm.models import create_feature_extractor
from timm.utils import reparameterize_model

import s4nd.models  # noqa: F401  registers the models

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.[a-z_]+` is (deprecated|not supported):FutureWarning")

SMALL = dict(
    depths=(1, 1, 1, 1), dims=(4, 4, 8, 8), num_classes=3, ls_init_value=1.0, drop_rate=0.0, drop_path_rate=0.0
)
OWN = dict(img_size=64, num_frames=4, d_state=4)
NAMES = ["s4nd_convnext3d_micro", "s4nd_convnext3d_tiny", "convnext_i3d_tiny", "convnext_s3d_tiny"]


@pytest.fixture(params=NAMES)
def model(request):
    torch.manual_seed(0)
    own = OWN if request.param.startswith("s4nd") else {}
    return timm.create_model(request.param, **SMALL, **own).eval()


def clips(batch):
    return torch.randn(batch, 3, 6, 96, 64, generator=torch.Generator().manual_seed(1))


def export(model, x):
    return torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()


FORMS = {
    "script": lambda model, x: torch.jit.script(model),
    "trace": torch.jit.trace,
    "fx": lambda model, x: torch.fx.symbolic_trace(model),
    "export": export,
}


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_reparameterized_model_gives_the_same_logits_for_any_batch(model, form):
    if form == "script" and "FactoredConv3d" in repr(model):
        pytest.skip("TorchScript knows neither a sum over a generator nor einops")
    x, v = clips(2), clips(3)
    model(x)
    plain = reparameterize_model(model)
    expected = model(v)
    found = FORMS[form](plain, x)(v)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_fx_features_take_any_clip(model):
    features = create_feature_extractor(model, ["stages.1", "head"])
    for x in (clips(1), clips(2)[:, :, :2, :64]):
        found, expected = features(x), model.forward_intermediates(x, indices=[1], intermediates_only=True)[0]
        assert torch.equal(found["stages.1"], expected)
        assert torch.equal(found["head"], model(x))
