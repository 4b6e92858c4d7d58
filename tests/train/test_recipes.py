"""The configs: each can be trained, and those after the paper have its numbers."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from s4nd.train.config import load_config
from s4nd.train.engine import Trainer

CONFIGS = Path(__file__).parents[2] / "configs"
ALL = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yaml"))
SMALL = {"vit": 32, "convnext": 32, "iso": 8, "seq": 8}  # pixels that their stems and stages leave something of


def overrides(config, folder, coloured, videos):
    """Of a config, for one step on a few small images or clips."""
    if config.data.sampling() is not None:
        root = [f"data.root={videos}", "data.frames=4", "data.name=video", "data.lists=null"]
    elif config.data.name == "celeba":
        root = ["data.name=csv", f"data.root={coloured}"]
    else:
        root = ["data.name=folder", f"data.root={folder}"]
    size = next(size for name, size in SMALL.items() if name in config.model.name)
    sizes = [f"stages.{i}.size={size * (i + 1)}" for i in range(len(config.stages))]
    return [*root, *sizes, "data.train_limit=4", "data.workers=0", "batch_size=4", "device=cpu", "init.inflate=null"]


@pytest.mark.parametrize("name", ALL)
def test_every_config_takes_a_step(name, folder, coloured, videos):
    config = load_config(CONFIGS / name)
    trainer = Trainer(load_config(CONFIGS / name, overrides(config, folder, coloured, videos)), torch.device("cpu"))
    trainer.learner.check_stages()
    trainer.enter(0)
    _, images, labels = next(trainer.feed.batches(0))
    before = [p.detach().clone() for p in trainer.learner.model.parameters()]
    trainer.learner.model.train()
    for group in trainer.learner.optimizer.param_groups:
        group["lr"] = 1e-3  # the warm-up begins at 0
    trainer.train_step(images, labels)
    assert trainer.learner.steps().loss.isfinite()
    assert any(not torch.equal(p, old) for p, old in zip(trainer.learner.model.parameters(), before, strict=True))


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """train/ and test/ of two classes with two videos of 8 frames each."""
    av = pytest.importorskip("av", reason="needs PyAV to write videos")
    root = tmp_path_factory.mktemp("videos")
    for split in ("train", "test"):
        for name in ("one", "two"):
            (root / split / name).mkdir(parents=True)
            for i in range(2):
                with av.open(str(root / split / name / f"{i}.mp4"), "w") as container:
                    stream = container.add_stream("libx264", rate=8)
                    stream.width = stream.height = 48
                    stream.pix_fmt = "yuv420p"
                    for t in range(8):
                        frame = torch.full((48, 48, 3), 20 * t + 10 * i, dtype=torch.uint8).numpy()
                        container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
                    container.mux(stream.encode())
    return root


AUGMENTED = {"data.auto_augment": "rand-m9-n2-mstd0.5", "data.reprob": 0.25, "mixup": 0.8, "cutmix": 1.0}
IMAGENET = {**AUGMENTED, "label_smoothing": 0.1, "stages.0.size": 224, "stages.0.epochs": 300}
VIT = {
    **IMAGENET,
    "optim.lr": 0.001,
    "schedule.warmup_epochs": 10,
    "ema": 0.9999,
    "data.aug_repeats": 1,
    "batch_size": 4096,
}
CONVNEXT = {**IMAGENET, "optim.lr": 0.004, "schedule.warmup_epochs": 20, "ema": None, "data.aug_repeats": 3}
CIFAR = {"optim.lr": 0.01, "optim.weight_decay": 0.03, "batch_size": 50, "data.hflip": False, "data.pad": 0.0}
CIFAR |= {"schedule.warmup_epochs": 0.5, "optim.ssm_lr": None}
CELEBA = {
    "optim.lr": 0.004,
    "model.args.drop_path_rate": 0.1,
    "data.hflip": False,
    "data.name": "celeba",
    "amp": "bf16",
}
# The paper's settings as they stand in its appendix; what it does not say is not here.
PAPER = {
    "imagenet/vit_base.yaml": {**VIT, "optim.weight_decay": 0.05, "model.name": "vit_base_patch16_224"},
    "imagenet/s4nd_vit_base.yaml": {**VIT, "optim.weight_decay": 0.0, "model.name": "s4nd_vit_base_patch16_224"},
    "imagenet/convnext_tiny.yaml": {**CONVNEXT, "optim.weight_decay": 0.05, "batch_size": 4096},
    "imagenet/s4nd_convnext_tiny.yaml": {**CONVNEXT, "optim.weight_decay": 0.05, "batch_size": 3840},
    **{
        f"cifar10/{kind}_iso_small_{size}.yaml": {**CIFAR, "stages.0.size": size, "stages.0.epochs": 100}
        for kind in ("s4nd", "conv")
        for size in (8, 16, 32)
    },
    **{
        f"cifar10/{kind}progressive_{size}.yaml": {
            **CIFAR,
            **{"stages.0.size": size, "stages.0.epochs": 80, "stages.1.size": 32, "stages.1.epochs": 20},
            **({} if kind else {"stages.0.bandlimit": {8: 0.1, 16: 0.2}[size], "stages.1.bandlimit": None}),
        }
        for kind, size in (("", 8), ("", 16), ("conv_", 8))
    },
    **{
        f"celeba/{model}{name}.yaml": {
            **CELEBA,
            "optim.weight_decay": 1.0 if "s4nd" in model else 0.1,
            **{"stages.0.size": size, "stages.0.epochs": 20, "batch_size": 128 if size == 160 else 256},
        }
        for model in ("s4nd_convnext_micro", "convnext_micro")
        for name, size in (("", 64), ("_128", 128), ("_160", 160))
    },
    "celeba/progressive.yaml": {
        **CELEBA,
        **{"stages.0.size": 64, "stages.0.epochs": 16, "stages.1.size": 128, "stages.1.epochs": 4},
        **{"stages.0.bandlimit": 0.1, "stages.1.bandlimit": 0.1, "optim.weight_decay": 1.0},
    },
}


def test_recipes_of_the_discretisations_differ_in_it_alone():
    twins = {
        disc: load_config(CONFIGS / f"scifar/s4nd_seq_tiny_{disc}.yaml") for disc in ("bilinear", "dirac", "async")
    }
    zoh = load_config(CONFIGS / "scifar/s4nd_seq_tiny.yaml")
    for disc, config in {"zoh": zoh, **twins}.items():
        assert (config.model.name, config.model.args) == ("s4nd_seq_tiny", {"disc": disc})
        assert replace(config, model=zoh.model, out=zoh.out) == zoh
    assert len({config.out for config in (zoh, *twins.values())}) == 4


@pytest.mark.parametrize("name", PAPER)
def test_config_after_the_paper_has_its_numbers(name):
    found = {}
    for key in PAPER[name]:
        value = load_config(CONFIGS / name)
        for part in key.split("."):
            value = (
                value[int(part)] if part.isdigit() else value[part] if isinstance(value, dict) else getattr(value, part)
            )
        found[key] = value
    assert found == PAPER[name]
