"""Checkpoints of runs against the model that was trained, wherever they are loaded: what it was trained on is in them."""

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from s4nd import S4ND
from s4nd.train.checkpoint import Meta, load_model, read_checkpoint, save_checkpoint
from s4nd.train.config import load_config
from s4nd.train.engine import Trainer, train
from s4nd.train.initial import initialise
from s4nd.train.model import build_model
from tests.small import assert_close

STAGES = "stages=[{size: 8, epochs: 1, bandlimit: 0.5}, {size: 12, epochs: 1, bandlimit: 0.3}]"
CONVNEXT = "{depths: [1, 0, 0, 1], dims: [8, 8, 8, 16], d_state: 4, ls_init_value: 1.0}"
ISO = dict(embed_dim=8, depth=2, d_state=4)
SMALL = dict(depths=[1, 0, 0, 1], dims=[8, 8, 8, 16], d_state=4, ls_init_value=1.0)


@pytest.fixture
def config(write_config):
    path = write_config("s4nd_iso_tiny", d_state=4)
    return lambda *overrides: load_config(path, overrides)


@pytest.fixture
def bare(write_config):
    """A config without arguments of the isotropic network."""
    path = write_config("bare")
    path.write_text(path.read_text().replace("{embed_dim: 8, depth: 2}", "{}"))
    return lambda *overrides: load_config(path, overrides)


@torch.no_grad()
def assert_same(loaded, model, *sizes):
    for size in sizes:
        x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
        assert_close(loaded.eval()(x), model.eval()(x))


def assert_its_file_gives_it(model, path, name, args, *sizes):
    """Through this library, through timm at its default size and at another, and by hand."""
    assert_same(load_model(path)[0], model, *sizes)
    args = dict(args, num_classes=2)
    assert_same(timm.create_model(name, **args, checkpoint_path=str(path)), model, *sizes)
    other = dict(img_size=64, bandlimit=0.9, align="edge")
    assert_same(timm.create_model(name, **args, **other, checkpoint_path=str(path)), model, *sizes)
    by_hand = timm.create_model(name, **args, **other)
    by_hand.load_state_dict(load_file(path))
    assert_same(by_hand, model, *sizes)


def save(model, config, path):
    save_checkpoint(path, model.state_dict(), config, Meta(1, 0, 0.5, ["a", "b"], "model"))
    return path


@pytest.mark.parametrize("ema", ["null", "0.9"])
def test_checkpoint_of_a_run_of_stages_is_the_model_that_was_trained(config, tmp_path, ema):
    trainer = Trainer(config(STAGES, f"ema={ema}"), torch.device("cpu"))
    trainer.learner.initialise()
    (tmp_path / "out").mkdir()
    trainer.fit(tmp_path / "out")
    model = trainer.learner.model if trainer.learner.ema is None else trainer.learner.ema.module
    path = tmp_path / "out" / "last.safetensors"
    assert_its_file_gives_it(model, path, "s4nd_iso_tiny", ISO, (8, 8), (12, 12), (16, 9))
    layer = load_model(path)[0].blocks[0].mixer.s4nd
    assert layer.base_size == (12, 12) and layer.bandlimit == pytest.approx(0.3)


def test_checkpoint_of_an_unfinished_stage_is_the_model_of_that_stage(config, tmp_path):
    """Of a run whose config holds stages to come."""
    run = config(STAGES)
    trainer = Trainer(run, torch.device("cpu"))
    trainer.enter(0)
    path = save(trainer.learner.model, run, tmp_path / "x.safetensors")
    assert_its_file_gives_it(trainer.learner.model, path, "s4nd_iso_tiny", ISO, (8, 8), (12, 12), (16, 9))


def test_continued_run_goes_on_with_the_sampling_it_had(config, tmp_path):
    run = config(STAGES, "ema=0.9")
    folder = train(run)
    trainer = Trainer(config(STAGES, "ema=0.9", "resume=auto", "stages.1.epochs=2"), torch.device("cpu"))
    trainer.restore(torch.load(folder / "last.state", weights_only=True))
    model = load_model(folder / "last.safetensors")[0]
    assert_same(trainer.learner.ema.module, model, (8, 8), (12, 12), (16, 9))
    layer = trainer.learner.model.blocks[0].mixer.s4nd
    assert layer.base_size == (12, 12) and layer.bandlimit == pytest.approx(0.3)


def test_settings_of_the_config_do_not_overrule_what_the_weights_say(config, tmp_path):
    """The config inside a file says what to build; a model that was changed after it was built is in its weights."""
    run = config("stages=[{size: 8, epochs: 1, bandlimit: 0.5}]")
    model = build_model(run, 2)
    model.set_input_size(img_size=12)
    model.blocks[1].mixer.s4nd.bandlimit = 0.2
    path = save(model, run, tmp_path / "x.safetensors")
    assert_its_file_gives_it(model, path, "s4nd_iso_tiny", ISO, (8, 8), (12, 12), (16, 9))


@pytest.mark.parametrize("plain", [False, True])
def test_model_begun_with_weights_of_another_size_is_what_its_own_checkpoint_gives(bare, tmp_path, plain):
    """Its S4ND stem has a window of 16 pixels of 32, which is re-sampled. A plain file says its sampling too."""
    of = lambda size: bare(  # noqa: E731
        f"stages=[{{size: {size}, epochs: 1, bandlimit: 0.6}}]",
        "model.name=s4nd_convnext_micro",
        f"model.args={CONVNEXT}",
    )
    source = build_model(of(32), 2)
    path = save(source, of(32), tmp_path / "first.safetensors")
    if plain:
        save_file(source.state_dict(), path)
    run = of(64)
    run.init.weights = str(path)
    torch.manual_seed(1)
    model = build_model(run, 2)
    initialise(model, run, ["a", "b"])
    path = save(model, run, tmp_path / "second.safetensors")
    assert_its_file_gives_it(model, path, "s4nd_convnext_micro", SMALL, (32, 32), (64, 64), (48, 40))


def test_weights_of_another_size_answer_as_the_model_that_they_are_from(bare, tmp_path):
    """No bandlimit, and a window that is a whole number of pixels at both sizes: re-sampled kernels are the same ones."""
    of = lambda size: bare(  # noqa: E731
        f"stages=[{{size: {size}, epochs: 1, resample: continuous}}]",
        "model.name=s4nd_convnext_micro",
        f"model.args={CONVNEXT}",
    )
    source = build_model(of(32), 2)
    run = of(64)
    run.init.weights = str(save(source, of(32), tmp_path / "first.safetensors"))
    model = build_model(run, 2)
    initialise(model, run, ["a", "b"])
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert_close(model.eval()(x), source.eval()(x), 1e-5)  # dt is rounded anew in float32
    assert model.stem[0].base_size == (64, 64) and model.stem[0].l_max == (32, 32)


@pytest.mark.parametrize("frames", [4, 6])
def test_inflated_model_is_what_its_own_checkpoint_gives(bare, tmp_path, frames):
    """From a model of another size, whose window over space is re-sampled."""
    flat = bare(
        "stages=[{size: 32, epochs: 1, bandlimit: 0.6}]", "model.name=s4nd_convnext_micro", f"model.args={CONVNEXT}"
    )
    source = build_model(flat, 2)
    path = save(source, flat, tmp_path / "image.safetensors")
    args = CONVNEXT.replace("{", f"{{num_frames: {frames}, ")
    run = bare(
        "stages=[{size: 48, epochs: 1, bandlimit: 0.6}]",
        "model.name=s4nd_convnext3d_micro",
        f"model.args={args}",
        f"init.inflate={path}",
    )
    model = build_model(run, 2)
    initialise(model, run, ["a", "b"])
    path = save(model, run, tmp_path / "video.safetensors")
    assert_its_file_gives_it(model, path, "s4nd_convnext3d_micro", SMALL, (4, 32, 32), (6, 48, 48), (4, 40, 64))


def test_checkpoint_of_before_loads_with_one_warning_as_its_stage_was_trained(config, tmp_path):
    """Its tensors say nothing of the sampling; its config does."""
    run = config(STAGES)
    model = build_model(run, 2, stage=1)
    weights = {key: value for key, value in model.state_dict().items() if not key.endswith("_extra_state")}
    save_checkpoint(tmp_path / "x.safetensors", weights, run, Meta(2, 1, 0.5, ["a", "b"], "model"))
    with pytest.warns(UserWarning, match="built") as caught:
        loaded = load_model(tmp_path / "x.safetensors")[0]
    assert len(caught) == 1
    layers = [module for module in loaded.modules() if isinstance(module, S4ND)]
    assert [(layer.base_size, layer.bandlimit) for layer in layers] == [((12, 12), 0.3)] * 2
    assert_same(loaded, model, (8, 8), (12, 12), (16, 9))


def test_read_checkpoint_keeps_the_sampling_among_the_weights(config, tmp_path):
    run = config(STAGES)
    model = build_model(run, 2, stage=1)
    path = save(model, run, tmp_path / "x.safetensors")
    other = build_model(config("stages=[{size: 5, epochs: 1}]"), 2)
    other.load_state_dict(read_checkpoint(path)[0])
    assert_same(other, model, (8, 8), (12, 12), (16, 9))
