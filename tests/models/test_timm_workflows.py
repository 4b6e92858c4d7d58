"""Every registered model through timm's workflows around a model: checkpoints, the hub's layout, other channels, freezing."""

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import save_for_hf
from timm.utils import CheckpointSaver, ModelEmaV3

from tests.models.test_registered import (
    F64,
    NAMES,
    arguments,
    assert_close,
    family,
    has_s4nd_stem,
    images,
    knows_its_size,
    sizes,
    small,
)

pytestmark = pytest.mark.parametrize("name", NAMES)


def test_weights_for_colour_images_are_adapted_to_grey_ones(name, tmp_path):
    """As timm does: the sum over the channels gives a grey image the features of the same in colour."""
    model, grey = small(name).eval(), images(*sizes(name)[0], channels=1)
    save_for_hf(model, tmp_path, model_args=arguments(name))
    if has_s4nd_stem(model):
        with pytest.raises(RuntimeError, match=r"size mismatch for stem\.0\.kernels"):
            timm.create_model(f"local-dir:{tmp_path}", pretrained=True, in_chans=1)
    else:
        adapted = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, in_chans=1).eval()
        assert_close(adapted(grey), model(grey.repeat(1, 3, *[1] * (grey.ndim - 2))), 1e-5)


def test_reset_classifier_keeps_device_and_dtype_where_there_was_none(name):
    model = small(name).to("meta", F64)
    model.reset_classifier(0)
    model.reset_classifier(2)
    assert {(p.device.type, p.dtype) for p in model.get_classifier().parameters()} == {("meta", F64)}


def test_what_is_frozen_stays_frozen_at_another_size(name):
    model = small(name).requires_grad_(False)
    if knows_its_size(name):
        model.set_input_size(sizes(name)[0][-1] * 2)
    model.reset_classifier(0)
    assert not any(p.requires_grad for p in model.parameters())


def test_pool_size_is_the_grid_of_the_features(name):
    """For timm, of an image of the default size; a vision transformer has none, as in timm."""
    cfg = timm.get_pretrained_cfg(name)
    if family(name) == "vit":
        assert cfg.pool_size is None
        return
    sized = {"img_size": cfg.input_size[-1]} if knows_its_size(name) else {}
    frames = sizes(name)[0][:-2]
    features = small(name, **sized).eval().forward_features(images(*frames, *cfg.input_size[1:])[:1])
    assert tuple(features.shape[-2:]) == cfg.pool_size


def test_checkpoints_go_through_timms_loader_and_a_folder_in_the_hubs_layout(name, tmp_path):
    model, x = small(name).eval(), images(*sizes(name)[0])
    expected = model(x)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    loaded = timm.models.load_checkpoint(small(name).eval().apply(forget), tmp_path / "model.safetensors")
    assert not loaded.missing_keys
    assert not loaded.unexpected_keys
    folder = tmp_path / "hub"
    save_for_hf(model, folder, model_args=arguments(name))
    again = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert torch.equal(again(x), expected)


def forget(module):
    for p in module.parameters(recurse=False):
        torch.nn.init.normal_(p)


def test_timms_saver_keeps_the_weights_and_their_average(name, tmp_path):
    model, x = small(name).eval(), images(*sizes(name)[0])
    average = ModelEmaV3(model, decay=0.5)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.01)
    average.update(model)
    optimizer = torch.optim.SGD(model.parameters())
    CheckpointSaver(model, optimizer, model_ema=average, checkpoint_dir=tmp_path).save_checkpoint(0, 1.0)
    for use_ema, source in ((True, average.module), (False, model)):
        loaded = small(name).eval().apply(forget)
        timm.models.load_checkpoint(loaded, tmp_path / "last.pth.tar", use_ema=use_ema)
        assert torch.equal(loaded(x), source(x))
    whole = timm.create_model(name, num_classes=5, checkpoint_path=tmp_path / "last.pth.tar", **arguments(name)).eval()
    assert torch.equal(whole(x), average.module(x))
