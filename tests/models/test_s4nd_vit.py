"""S4ND-ViT: the paper's parameter count, the grids of its layers, its options."""

import pytest
import timm
import torch
from torch import nn

import s4nd.models  # noqa: F401

SMALL = dict(img_size=32, patch_size=8, embed_dim=8, depth=2, num_heads=2, d_state=4, num_classes=5)


def small(**args):
    torch.manual_seed(0)
    return timm.create_model("s4nd_vit_tiny_patch16_224", **{**SMALL, **args})


def test_parameter_count_is_the_papers():
    model = timm.create_model("s4nd_vit_base_patch16_224", device="meta")
    assert sum(p.numel() for p in model.parameters()) == 88_786_408


def test_initialisation_and_ranges_are_the_papers():
    model = timm.create_model("s4nd_vit_tiny_patch16_224", depth=3)
    for block in model.blocks:
        layer = block.attn.s4nd
        assert (layer.ndim, layer.channels, layer.d_state, layer.base_size) == (1, 2, 64, (196,))
        (kernel,) = layer.kernels
        assert (kernel.name, kernel.init, kernel.n_ssm) == ("s4", "legs", 1)
        assert kernel.dt().min() >= 0.001
        assert kernel.dt().max() <= 0.1
        assert 0.018 < block.attn.proj.weight.std() < 0.022
        assert not block.attn.proj.bias.any()
    assert [getattr(b.drop_path1, "drop_prob", 0.0) for b in model.blocks] == pytest.approx([0.0, 0.05, 0.1])
    assert {m.eps for m in model.modules() if isinstance(m, nn.LayerNorm)} == {1e-5}


def test_logits_are_the_classifier_of_the_mean_of_the_normed_patches():
    model, x = small().eval(), torch.randn(2, 3, 32, 32)
    assert torch.equal(model(x), model.head(model.forward_features(x).mean(1)))


def test_the_order_of_the_patches_is_seen_without_a_position_embedding():
    model, x = small().eval(), torch.randn(1, 3, 32, 32)
    assert model.pos_embed is None
    assert not torch.allclose(model(x), model(x.flip(-1)), atol=1e-4)


@pytest.mark.parametrize("ndim", [1, 2])
def test_mixer_over_the_sequence_or_over_the_grid(ndim):
    """A patch far away in raster order and near on the grid: a causal 1-D mixer sees nothing of what comes after it."""
    model = small(mixer_ndim=ndim, bidirectional=False, depth=1).eval()
    assert model.blocks[0].attn.s4nd.ndim == ndim
    x = torch.randn(1, 8, 4, 4, dtype=torch.float64).permute(0, 2, 3, 1)
    mixer = model.blocks[0].attn.to(torch.float64)
    changed = x.clone()
    changed[0, 1, 2] += 1
    moved = (mixer(x) != mixer(changed)).any(-1)[0]
    rows, columns = torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")
    after = 4 * rows + columns >= 4 * 1 + 2 if ndim == 1 else (rows >= 1) & (columns >= 2)
    assert torch.equal(moved, after)


@pytest.mark.parametrize("ndim", [1, 2])
@pytest.mark.parametrize("size", [(64, 64), (32, 80)])
def test_set_input_size_declares_the_new_grid(ndim, size):
    model = small(mixer_ndim=ndim).eval()
    model.set_input_size(size)
    h, w = size[0] // 8, size[1] // 8
    assert model.blocks[0].attn.s4nd.base_size == ((h, w) if ndim == 2 else (h * w,))


def test_intermediates_come_in_both_of_timms_formats():
    model, x = small(mixer_ndim=2).eval(), torch.randn(2, 3, 32, 48)
    final, maps = model.forward_intermediates(x)
    _, sequences = model.forward_intermediates(x, output_fmt="NLC")
    assert [m.shape for m in maps] == [(2, 8, 4, 6)] * 2
    for a, b in zip(maps, sequences, strict=True):
        assert torch.equal(a.flatten(2).mT, b)
    found = model.forward_intermediates(x, output_dict=True)
    assert torch.equal(found["image_features"], final)
    assert torch.equal(found["image_intermediates"][1], maps[1])
    assert torch.equal(model.get_intermediate_layers(x, n=1, reshape=True)[0], maps[-1])


def test_learnt_windows_of_patches_of_fixed_size_work_without_dynamic_sizes():
    model = small(dynamic_img_size=False, dynamic_img_pad=False, mixer_ndim=2).eval()
    twin = small(mixer_ndim=2).eval()
    twin.load_state_dict(model.state_dict())
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(model(x), twin(x))


def test_masks_and_what_moves_patches_are_refused():
    model, x = small(), torch.randn(1, 3, 32, 32)
    with pytest.raises(ValueError, match="no attention mask"):
        model(x, is_causal=True)
    with pytest.raises(ValueError, match="no attention mask"):
        model.blocks[0](torch.randn(1, 4, 4, 8), attn_mask=torch.ones(16, 16))
    for args in (dict(class_token=True), dict(reg_tokens=4), dict(pos_embed="learn"), dict(patch_drop_rate=0.5)):
        with pytest.raises(ValueError, match=f"{next(iter(args))} must be"):
            small(**args)
    with pytest.raises(ValueError, match=r"mixer_ndim must be 1 .* or 2 .*, got 3"):
        small(mixer_ndim=3)
