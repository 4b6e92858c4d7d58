"""Frame by frame against the whole clip: the same logits for every prefix, and a state that does not grow."""

import copy

import pytest
import timm
import torch

from s4nd import S4ND
from s4nd.models import stream
from s4nd.models.s4nd_convnext3d import S4NDConvNeXt3d

F32, F64 = torch.float32, torch.float64
TOLERANCE = {F32: 1e-4, F64: 1e-9}  # of the largest logit
SMALL = dict(depths=(1, 2, 1, 1), dims=(8, 8, 16, 16), num_classes=5, ls_init_value=1.0)
BUILD = dict(img_size=32, causal=True, num_frames=0, d_state=8)


def small(variant="tiny", dtype=F32, **args):
    torch.manual_seed(0)
    return timm.create_model(f"s4nd_convnext3d_{variant}", **{**SMALL, **BUILD, **args}).to(dtype).eval()


def video(frames, *size, batch=2, dtype=F32):
    return torch.randn(batch, 3, frames, *(size or (32, 32)), dtype=dtype, generator=torch.Generator().manual_seed(1))


def assert_close(actual, expected):
    tolerance = TOLERANCE[expected.dtype] * expected.abs().max().item()
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


def floats(state):
    return {name: tuple(value.shape) for name, value in state.items()}


@torch.no_grad()
@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("align", ["edge", "centre"])
@pytest.mark.parametrize("variant", ["tiny", "micro"])
def test_every_prefix_has_the_logits_of_the_whole_model_on_it(variant, align, dtype):
    model, x, state = small(variant, dtype, align=align), video(13, dtype=dtype), None
    run = stream(model)
    for t in range(13):
        logits, state = run(x[:, :, t], state)
        if t == 0:
            assert logits is None
        else:
            assert_close(logits, model(x[:, :, : t + 1]))


@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [
        dict(kernel="s4d"),
        dict(rank=2),
        dict(l_max=(5, None, None)),
        dict(bandlimit=0.5),
        dict(head_hidden_size=7),
        dict(head_norm_first=True),
        dict(num_classes=0),
        dict(img_size=64),  # frames of half the trained size
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_of_the_model_change_nothing_about_it(options):
    model, x = small("micro" if "l_max" in options else "tiny", F64, **options), video(12, 48, 32, dtype=F64)
    logits, state = stream(model)(x[:, :, :10])
    assert_close(logits, model(x[:, :, :10]))
    assert_close(stream(model)(x[:, :, 10:], state)[0], model(x))


@torch.no_grad()
@pytest.mark.parametrize("variant", ["tiny", "micro"])
def test_frames_may_come_in_any_groups(variant):
    model, x = small(variant, F64), video(11, dtype=F64)
    expected, expected_state = stream(model)(x)
    for groups in ([1] * 11, [2] * 5 + [1], [3, 4, 1, 1, 2]):
        state = None
        for frames in x.split(groups, dim=2):
            logits, state = stream(model)(frames, state)
        assert_close(logits, expected)
        assert floats(state) == floats(expected_state)
        for name, value in state.items():
            torch.testing.assert_close(value, expected_state[name], rtol=0, atol=1e-9)


@torch.no_grad()
def test_frame_without_its_pair_waits_and_leaves_the_logits_as_they_were():
    model, x = small(), video(3)
    two, state = stream(model)(x[:, :, :2])
    three, waiting = stream(model)(x[:, :, 2], state)
    assert torch.equal(two, three)
    assert set(waiting) - set(state) == {"frame"} and torch.equal(waiting["frame"], x[:, :, 2])
    assert "frame" not in state  # the state that was given is as it was


@torch.no_grad()
@pytest.mark.parametrize(("variant", "frames"), [("tiny", 1000), ("micro", 50)])
def test_long_video_needs_no_more_than_its_first_frames_and_stays_exact(variant, frames):
    model, x, state = small(variant, depths=(1, 1, 1, 1)), video(frames, batch=1), None
    run, sizes = stream(model), []
    for t in range(frames):
        logits, state = run(x[:, :, t], state)
        sizes.append(sum(value.untyped_storage().nbytes() for value in state.values()))
    assert set(sizes[1::2]) == {sizes[1]} and set(sizes[2::2]) == {sizes[2]}
    assert_close(logits, model(x))


@torch.no_grad()
def test_state_can_be_indexed_by_video_and_detached():
    model, x = small("micro", F64), video(9, batch=3, dtype=F64)
    run = stream(model)
    _, state = run(x[:, :, :5])
    kept = torch.tensor([2, 0])
    part = {name: value[kept].detach() for name, value in state.items()}
    assert_close(run(x[kept, :, 5:], part)[0], model(x)[kept])
    assert_close(run(x[:, :, 5:], copy.deepcopy(state))[0], model(x))


def test_gradients_reach_the_first_frame_and_are_those_of_the_whole_clip():
    model, x, state = small("tiny", F64), video(6, batch=1, dtype=F64).requires_grad_(), None
    for frame in x.unbind(2):
        logits, state = stream(model)(frame, state)
    (stepped,), (whole,) = (torch.autograd.grad(y.square().sum(), x) for y in (logits, model(x)))
    assert whole[:, :, 0].abs().max() > 0
    assert_close(stepped, whole)


def test_it_follows_later_changes_of_the_model():
    model, x = small(dtype=F64), video(4, dtype=F64)
    run = stream(model)
    with torch.no_grad():
        run(x)
        for layer in model.modules():
            if isinstance(layer, S4ND):
                layer.kernels[0].C.mul_(2)
        assert_close(run(x)[0], model(x))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: small(causal=False), "sees later frames: build the model with causal=True and num_frames=0"),
        (
            lambda: small(num_frames=30),
            "re-samples it to 15 samples: build the model with causal=True and num_frames=0",
        ),
        (
            lambda: small(kernel="dss"),
            "do not depend on the length, got 'dss' in stages",
        ),
        (lambda: small(use_grn=True), "needs a model with use_grn=False: .* over the whole video"),
        (lambda: small(global_pool="max"), "needs a model with global_pool='avg', a running mean, got 'max'"),
        (
            lambda: S4NDConvNeXt3d(**SMALL, **BUILD, stem="s4nd", l_max=None),
            "l_max for the time of stem.0, which pools it",
        ),
        (lambda: timm.create_model("convnext_i3d_tiny", **SMALL), "other layers have no recurrence .*; got ConvNeXt3d"),
        (lambda: timm.create_model("s4nd_convnext_tiny", **SMALL), "causal=True, num_frames=0.*; got S4NDConvNeXt$"),
    ],
)
def test_model_that_cannot_run_frame_by_frame_is_an_error_that_says_how_to_build_one(model, message):
    with pytest.raises(ValueError, match=message):
        stream(model())


@torch.no_grad()
def test_wrong_frames_are_refused():
    run, x = stream(small()), video(3)
    with pytest.raises(ValueError, match=r"must be \(B, 3, height, width\), .*got \(2, 1, 32, 32\)"):
        run(x[:, :1, 0])
    with pytest.raises(ValueError, match=r"got \(2, 3, 0, 32, 32\)"):
        run(x[:, :, :0])


OTHER_FRAMES = {
    "height": (lambda x: x[..., 1:, :], r"\(2, 3, 31, 32\) float32 on cpu"),
    "width": (lambda x: torch.cat([x, x], dim=-1), r"\(2, 3, 32, 64\) float32 on cpu"),
    "one video": (lambda x: x[:1], r"\(1, 3, 32, 32\) float32 on cpu"),
    "more videos": (lambda x: torch.cat([x, x]), r"\(4, 3, 32, 32\) float32 on cpu"),
    "dtype": (torch.Tensor.double, r"\(2, 3, 32, 32\) float64 on cpu"),
    "device": (lambda x: x.to("meta"), r"\(2, 3, 32, 32\) float32 on meta"),
}


@torch.no_grad()
@pytest.mark.parametrize("more", [1, 2], ids=["one", "clip"])
@pytest.mark.parametrize("before", [1, 2, 3], ids=["first patch", "between patches", "within a patch"])
@pytest.mark.parametrize("variant", ["tiny", "micro"])
@pytest.mark.parametrize("what", OTHER_FRAMES)
def test_frames_that_change_their_form_are_refused_anywhere(what, variant, before, more):
    """Some would run: a height of 31 gives the patches that 32 does, and one video is broadcast to the state of two."""
    run, x = stream(small(variant, depths=(1, 1, 1, 1))), video(5)
    _, state = run(x[:, :, :before])
    change, described = OTHER_FRAMES[what]
    with pytest.raises(ValueError, match=rf"frames must stay \(2, 3, 32, 32\) float32 on cpu, got {described}$"):
        run(change(x[:, :, before : before + more].squeeze(2)), state)


@torch.no_grad()
def test_form_of_the_frames_follows_a_state_that_is_indexed_or_joined():
    model, x = small(dtype=F64), video(6, batch=3, dtype=F64)
    run = stream(model)
    one, two = (run(part[:, :, :3])[1] for part in (x[:1], x[1:]))
    joined = {name: torch.cat([one[name], two[name]]) for name in one}
    assert_close(run(x[:, :, 3:], joined)[0], model(x))
    with pytest.raises(ValueError, match=r"must stay \(1, 3, 32, 32\) .*, got \(3, 3, 32, 32\)"):
        run(x[:, :, 3:], {name: value[1:2] for name, value in joined.items()})
