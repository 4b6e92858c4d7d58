"""Models through timm's deployment tools, against the models themselves."""

import io

import pytest
import timm
import torch
from timm.models import create_feature_extractor
from timm.utils import reparameterize_model

import s4nd.models  # noqa: F401  registers the models
from s4nd import S4ND

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.[a-z_]+` is (deprecated|not supported):FutureWarning")


def small(name="s4nd_iso_tiny"):
    torch.manual_seed(0)
    return timm.create_model(name, img_size=8, embed_dim=8, depth=2, channels=2, rank=2).eval()


def assert_close(actual, expected, scale=1e-5):
    torch.testing.assert_close(actual, expected, rtol=0, atol=scale * expected.abs().max().item())


@pytest.mark.parametrize("size", [(8, 8), (12, 10)])
def test_reparameterized_model_gives_the_same_logits_where_it_was_last_run(size):
    model, x = small(), torch.randn(2, 3, *size)
    if size != model.img_size:
        with pytest.raises(ValueError, match=r"fused at the grid \[8, 8\], not \[12, 10\]"):
            reparameterize_model(model)(x)
    with torch.no_grad():
        logits = model(x)
        fused = reparameterize_model(model)
        assert not [m for m in fused.modules() if isinstance(m, S4ND)]
        assert_close(fused(x), logits)
        assert torch.equal(model(x), logits)  # the model itself is as it was
        assert_close(reparameterize_model(fused)(x), logits)


@pytest.mark.parametrize("size", [(8, 8), (12, 10)])
def test_reparameterized_model_can_be_exported_and_scripted_and_saved(size):
    model, x = small(), torch.randn(2, 3, *size)
    with torch.no_grad():
        logits = model(x)
        fused = reparameterize_model(model)
    script, exported = io.BytesIO(), io.BytesIO()
    torch.jit.save(torch.jit.script(fused), script)
    torch.export.save(torch.export.export(fused, (x,)), exported)
    script.seek(0), exported.seek(0)
    for loaded in (torch.jit.load(script), torch.export.load(exported).module(), torch.jit.trace(fused, x)):
        assert_close(loaded(x), logits)
    assert_close(torch.fx.symbolic_trace(fused)(x), logits)


def test_fx_features_take_the_layer_as_a_leaf_and_any_size():
    model = small()
    features = create_feature_extractor(model, ["blocks.0", "head"])
    for size in ((8, 8), (9, 11)):
        x = torch.randn(2, 3, *size)
        found = features(x)
        assert torch.equal(found["head"], model(x))
        assert torch.equal(found["blocks.0"], model.forward_intermediates(x, [0], intermediates_only=True)[0])


def test_model_that_is_not_fused_says_why_it_cannot_be_scripted():
    with pytest.raises(RuntimeError, match="S4ND cannot be scripted"):
        torch.jit.script(small())
    torch.jit.script(timm.create_model("conv_iso_tiny", embed_dim=8))
