"""Empty batches, the meta device and NumPy's integers in every registered model, against what timm's own models do."""

import json

import numpy as np
import pytest
import torch
from timm.models import get_model_args, get_model_input_config
from timm.utils import reparameterize_model

from s4nd import S4ND
from tests.models.test_registered import NAMES, family, images, knows_its_size, sizes, small

SIZED = [name for name in NAMES if knows_its_size(name)]


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_batch_gives_empty_logits_and_gradients(name):
    model, x = small(name).eval(), torch.empty(0, 3, *sizes(name)[0])
    with torch.no_grad():
        assert model(x).shape == (0, 5)
    model.train()(x).sum().backward()
    assert model.get_classifier().weight.grad.abs().max() == 0


@pytest.mark.parametrize("name", NAMES)
def test_a_fused_model_takes_an_empty_batch(name):
    model = small(name).eval()
    with torch.no_grad():
        model(images(*sizes(name)[0]))
        assert reparameterize_model(model)(torch.empty(0, 3, *sizes(name)[0])).shape == (0, 5)


@pytest.mark.parametrize("name", NAMES)
def test_the_meta_device_gives_shapes(name):
    with torch.device("meta"):
        model = small(name)
        assert all(p.is_meta for p in model.parameters())
        for mode in (True, False):
            assert model.train(mode)(torch.empty(2, 3, *sizes(name)[0])).shape == (2, 5)


@pytest.mark.parametrize("kind", [np.int64, lambda n: (np.int32(n), np.int64(n)), lambda n: [np.int64(n)] * 2])
@pytest.mark.parametrize("name", SIZED)
def test_numpys_integers_are_sizes(name, kind):
    """What timm records, and writes as JSON, is Python's integer."""
    *clip, side = sizes(name)[0][:-1]
    frames = {"num_frames": np.int64(clip[0])} if clip else {}
    model, resized = small(name, img_size=kind(side), **frames), small(name)
    resized.set_input_size(kind(2 * side), **frames)
    resized.set_input_size(kind(side), **frames)
    for found in (model, resized):
        assert json.loads(json.dumps(get_model_args(found)["img_size"])) == [side, side]
        assert [type(n) for n in get_model_input_config(found)["input_size"]] == [int] * 3
    ours, theirs = ([m.base_size for m in model.modules() if isinstance(m, S4ND)] for model in (model, small(name)))
    assert ours == theirs
    if family(name) == "vit":
        resized.set_input_size(patch_size=np.int64(4))
        assert resized.patch_embed.patch_size == (4, 4)
    with pytest.raises(ValueError, match="img_size must be an integer or two"):
        model.set_input_size(float(side))
