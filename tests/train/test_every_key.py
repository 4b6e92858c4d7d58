"""Every key of a config against what it says, worked out by hand: each test fails if its key is ignored."""

import json
import math
import random
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from safetensors.torch import save_file
from timm.data.transforms import RandomResizedCropAndInterpolation
from timm.utils import random_seed

import s4nd.models
from s4nd import S4ND
from s4nd.models.s4nd_iso import ConvMixer
from s4nd.train import engine, learner, requests, tracking
from s4nd.train.config import Config, StageConfig, load_config
from s4nd.train.data import Clips, make_loader
from s4nd.train.engine import Trainer, train
from s4nd.train.model import build_model, to_input
from s4nd.train.processes import Place
from s4nd.train.state import Position

CPU = torch.device("cpu")
STAGES = "stages=[{size: 8, epochs: 2, bandlimit: 0.5}, {size: 10, epochs: 3}]"


@pytest.fixture
def config(write_config):
    """config(*overrides) -> of stripes in the first stage of an S4ND network without dropout."""
    path = write_config("s4nd_iso_tiny", d_state=4)
    return lambda *overrides: load_config(path, ["data.hflip=false", *overrides])


@pytest.fixture
def trainer(config):
    """trainer(*overrides) -> at the beginning of the first stage."""

    def begin(*overrides):
        trainer = Trainer(config(*overrides), CPU)
        trainer.enter(0)
        return trainer

    return begin


def place(trainer, rank, world_size):
    """Let it be one of several processes, after it began alone."""
    trainer.place = trainer.learner.place = trainer.feed.place = Place(CPU, rank, world_size)
    trainer.feed.end_stage()


def batch(trainer):
    return next(iter(trainer.feed.training(0)))


def plain_loader(trainer):
    """The training images as they are evaluated."""
    size = trainer.config.stages[0].size
    return make_loader(trainer.splits.train, size, 8, train=False, rendering=trainer.feed.rendering)


def plain_images(trainer):
    """Every training image as it is evaluated."""
    return torch.cat([images for images, _ in plain_loader(trainer)])


def is_among(images, others):
    """(B,) whether each image is one of the others."""
    return torch.stack([(image == others).flatten(1).all(1).any() for image in images])


def parameters(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def step(trainer, count=1):
    """The losses of steps on the first batch."""
    images, labels = batch(trainer)
    trainer.learner.model.train()
    return [loss_of(trainer, images, labels) for _ in range(count)]


def loss_of(trainer, images, labels):
    """Of a step."""
    trainer.train_step(images, labels)
    return trainer.learner.steps().loss.item()


# ---- data


def test_data_name(trainer):
    pytest.importorskip("skimage", reason="needs the extra: pip install 's4nd[demo]'")
    assert len(trainer("data.name=photos", "data.root=null").splits.train.classes) == 14


def test_data_root(trainer, tmp_path):
    for path in ("train/here/0.png", "train/there/0.png", "test/here/0.png", "test/there/0.png"):
        (tmp_path / path).parent.mkdir(parents=True)
        Image.new("RGB", (12, 12)).save(tmp_path / path)
    assert trainer(f"data.root={tmp_path}").splits.train.classes == ["here", "there"]


def test_data_train_limit(trainer):
    limited = trainer("data.train_limit=17")
    assert (len(limited.splits.train), len(limited.splits.judges)) == (17, 20)


def test_data_test_limit(trainer):
    limited = trainer("data.test_limit=7")
    assert (len(limited.splits.train), len(limited.splits.judges)) == (48, 7) and limited.test().images == 7


def test_data_val_fraction(trainer):
    """A quarter of the 24 training images of each class choose the best epoch; the others are trained on."""
    apart = trainer("data.val_fraction=0.25")
    counts = [np.bincount(part.labels).tolist() for part in (apart.splits.train, apart.splits.judges)]
    assert counts == [[18, 18], [6, 6]] and apart.test().images == 12


def test_data_hflip(trainer):
    for_ever, never = trainer("data.hflip=true"), trainer("data.hflip=false")
    plain = plain_images(never)
    assert is_among(batch(never)[0], plain).all()
    images, _ = batch(for_ever)
    kept, mirrored = is_among(images, plain), is_among(images.flip(-1), plain)
    assert kept.any() and mirrored.any() and (kept | mirrored).all()


def test_data_pad(trainer):
    """Of 8 pixels a quarter is 2: every image is a plain one moved by up to 2 pixels, and some are moved by 2."""
    moved = trainer("data.pad=0.25")
    plain, (images, _) = plain_images(moved), batch(moved)
    padded = F.pad(plain.float(), (2, 2, 2, 2), mode="reflect").byte()
    at = {(i, j): is_among(images, padded[..., i : i + 8, j : j + 8]) for i in range(5) for j in range(5)}
    assert torch.stack(list(at.values())).any(0).all()
    assert any(found.any() for (i, j), found in at.items() if i in (0, 4) and j in (0, 4))


def test_data_noise(trainer):
    """Of the pixels: in training and in testing the images differ by it, and the targets are what is missing."""
    plain = trainer()
    for noise in (5, 20):
        run = trainer(f"data.noise={noise}")
        for (images, targets), (clean, _) in (
            (batch(run), batch(plain)),
            (next(iter(plain_loader(run))), next(iter(plain_loader(plain)))),
        ):
            assert torch.equal(images + targets, clean.to(torch.int16))
            assert targets.double().std() == pytest.approx(
                noise, rel=0.15
            )  # of 512 numbers at least, some of them clipped


def crops(trainer, monkeypatch, *overrides):
    """Top, left, height and width of the random crops of the first batch, of pictures of 12 x 12 pixels."""
    seen, crop = [], RandomResizedCropAndInterpolation.get_params

    def see(*args):
        seen.append(crop(*args))
        return seen[-1]

    monkeypatch.setattr(RandomResizedCropAndInterpolation, "get_params", staticmethod(see))
    batch(trainer(*overrides))
    return torch.tensor(seen)


def test_data_crop_scale(trainer, monkeypatch):
    """Of the area of 144 pixels, whose sides are rounded."""
    for low, high in ((0.1, 0.3), (0.6, 1)):
        _, _, h, w = crops(trainer, monkeypatch, f"data.crop_scale=[{low}, {high}]", "data.crop_ratio=[1, 1]").T
        assert torch.equal(h, w) and h.unique().numel() > 1
        assert h.min() >= round(12 * low**0.5) and h.max() <= round(12 * high**0.5)


def test_data_crop_ratio(trainer, monkeypatch):
    _, _, h, w = crops(trainer, monkeypatch, "data.crop_scale=[0.2, 0.3]", "data.crop_ratio=[1.9, 2.1]").T
    assert ((w + 0.5) / (h - 0.5) >= 1.9).all() and ((w - 0.5) / (h + 0.5) <= 2.1).all()


def test_data_interpolation(trainer):
    """Nearest neighbours are pixels of the picture: of images of 12 pixels, 8 keep their values; in training and in testing."""
    for way, invents in (("nearest", False), ("lanczos", True)):
        run = trainer(f"data.interpolation={way}")
        values = {label: set() for label in (0, 1)}
        for i in range(len(run.splits.train)):
            values[run.splits.train[i][1]] |= {tuple(colour) for colour in run.splits.train[i][0].flatten(1).T.tolist()}
        for images, labels in (batch(run), next(iter(plain_loader(run)))):
            found = [
                {tuple(colour) for colour in image.flatten(1).T.tolist()} <= values[label]
                for image, label in zip(images, labels.tolist(), strict=True)
            ]
            assert all(not inside for inside in found) if invents else all(found)


def test_data_train_interpolation(trainer):
    run = trainer("data.train_interpolation=nearest")
    nearest, plain = plain_images(trainer("data.interpolation=nearest")), plain_images(run)
    images, _ = batch(run)
    assert is_among(images, nearest).all() and not is_among(images, plain).any()


def test_data_crop_pct(trainer):
    """Of 12 pixels the middle 8, where the shorter side is resized to 12 for 8: of training images the whole is seen."""
    run, whole = trainer("data.crop_pct=0.6666"), trainer()
    native = torch.stack([run.splits.train[i][0] for i in range(len(run.splits.train))])
    assert torch.equal(plain_images(run), native[..., 2:10, 2:10])
    assert torch.equal(batch(run)[0], batch(whole)[0])


def test_data_auto_augment(trainer):
    """Two operations at full magnitude leave hardly an image as it was; with a probability of 0 they leave all."""
    for p, changed in ((1, True), (0, False)):
        run = trainer(f"data.auto_augment=rand-m10-n2-p{p}-inc1")
        kept = is_among(batch(run)[0], plain_images(run)).float().mean()
        assert kept < 0.2 if changed else kept == 1


def test_data_color_jitter(trainer):
    """A factor of 1 - 0.1 to 1 + 0.1 each on brightness, contrast and saturation: the mean colour moves by up to a tenth."""
    plain, _ = batch(trainer())
    for jitter in (0.1, 0.5):
        images, _ = batch(trainer(f"data.color_jitter={jitter}"))
        factors = images.double().mean((1, 2, 3)) / plain.double().mean((1, 2, 3))
        assert jitter / 2 < (factors - 1).abs().max() < jitter + 0.02  # clipped at white, and rounded


def erased(trainer, *overrides):
    """Per image of the first batch, (B, 8, 8): what differs from the plain images; and the images."""
    images, plain = batch(trainer(*overrides))[0], batch(trainer())[0]
    return (images != plain).any(1), images


def test_data_reprob(trainer):
    """Of the 16 images of a batch all are erased, or none, or some."""
    counts = [erased(trainer, f"data.reprob={p}")[0].flatten(1).any(1).sum().item() for p in (1, 0, 0.5)]
    assert counts[:2] == [16, 0] and 0 < counts[2] < 16


def test_data_remode(trainer):
    """The model's mean colour, which it takes for zero; or one colour; or noise."""
    colours = {}
    for mode in ("const", "rand", "pixel"):
        where, images = erased(trainer, "data.reprob=1", f"data.remode={mode}")
        colours[mode] = [image[:, inside].unique(dim=1).T for image, inside in zip(images, where, strict=True)]
    run = trainer()
    mean = (255 * torch.tensor(run.learner.model.pretrained_cfg["mean"])).round().byte()
    assert all(torch.equal(colour, mean[None]) for colour in colours["const"])
    assert all(len(colour) == 1 for colour in colours["rand"]) and torch.cat(colours["rand"]).unique(dim=0).numel() > 3
    assert any(len(colour) > 1 for colour in colours["pixel"])


def test_data_recount(trainer, monkeypatch):
    """One rectangle or up to four of each image."""
    drawn = []
    randint = random.randint
    monkeypatch.setattr(random, "randint", lambda a, b: drawn.append((a, b)) or randint(a, b))
    erased(trainer, "data.reprob=1", "data.recount=4")
    assert drawn.count((1, 4)) >= 16
    drawn.clear()
    erased(trainer, "data.reprob=1")
    assert (1, 4) not in drawn


def test_data_aug_repeats(trainer):
    """48 images an epoch, of 16 kinds: three of each in a row of 16, flipped independently."""
    run = trainer("data.aug_repeats=3", "data.hflip=true")
    loader = run.feed.training(0)
    seen = torch.tensor([index for *_, index in loader.sampler])
    assert len(seen) == 48 and (seen % 48).unique(return_counts=True)[1].tolist() == [3] * 16
    assert torch.equal(seen % 48, (seen % 48)[::3].repeat_interleave(3))
    images = torch.cat([images for images, _ in loader]).view(16, 3, 3, 8, 8)
    same = (images[:, :1] == images[:, 1:]).flatten(2).all(2)
    assert same.any() and not same.all()


def test_data_workers(trainer):
    busy = trainer("data.workers=1")
    assert [busy.feed.loader(0, train=is_training).num_workers for is_training in (True, False)] == [1, 1]


def test_data_prefetch(trainer, config):
    """With workers; without, it would do nothing."""
    busy = trainer("data.workers=1", "data.prefetch=3")
    assert [busy.feed.loader(0, train=is_training).prefetch_factor for is_training in (True, False)] == [
        3,
        3,
    ]
    with pytest.raises(ValueError, match=r"data.prefetch is of workers"):
        config("data.prefetch=3")


@pytest.fixture
def streamed(trainer, stripes_in_shards):
    """streamed(*overrides) -> a run on shards."""
    source = ["data.name=wds/stripes", f"data.root={stripes_in_shards}"]
    return lambda *overrides: trainer(*source, *overrides)


def test_data_train_split(streamed):
    assert [streamed(f"data.train_split={split}").splits.train.lengths for split in ("null", "shards", "test")] == [
        [48],
        [10, 10, 10, 9, 9],
        [20],
    ]


def test_data_test_split(streamed):
    assert [streamed(f"data.test_split={split}").test().images for split in ("null", "train")] == [20, 48]


def test_data_class_map(streamed, tmp_path):
    """The info of the shards names the classes too: they must be the same."""
    path = tmp_path / "names.txt"
    path.write_text("columns\nrows\n")
    assert streamed(f"data.class_map={path}").splits.classes == ["columns", "rows"]
    path.write_text("rows\ncolumns\n")
    with pytest.raises(ValueError, match=r"names\.txt and .* must name the same classes: another order"):
        streamed(f"data.class_map={path}")


def test_data_shuffle(streamed):
    """Of 48 images in one shard, each 4 are shuffled among themselves: a batch of 16 is of the places of the first 16."""
    for window, near in ((4, True), (8192, False)):
        run = streamed(f"data.shuffle={window}")
        loader = run.feed.training(0)
        indices = torch.tensor([index for *_, index in loader.order])
        assert sorted(indices.tolist()) == list(range(48)) and not torch.equal(indices, torch.arange(48))
        assert torch.equal(indices // 4, torch.arange(48) // 4) == near


@pytest.fixture
def columns(trainer, tmp_path, folder):
    """columns(*overrides) -> a run on parquet files with two columns of images and two of classes, through `datasets`."""
    datasets = pytest.importorskip("datasets", reason="needs the extra: pip install 's4nd[hf]'")
    datasets.disable_progress_bars()
    kinds = {"image": datasets.Image(), "other": datasets.Image()}
    kinds |= {"label": datasets.ClassLabel(names=["a", "b"]), "fine": datasets.ClassLabel(names=["x", "y", "z"])}
    black, white = ((folder / "train" / name / "0.png").read_bytes() for name in ("rows", "columns"))
    row = {"image": {"bytes": black, "path": None}, "other": {"bytes": white, "path": None}}
    (tmp_path / "hub").mkdir()
    for split in ("train", "test"):
        rows = [row | {"label": i % 2, "fine": i % 3} for i in range(16)]
        made = datasets.Dataset.from_list(rows, features=datasets.Features(kinds))
        made.to_parquet(str(tmp_path / "hub" / f"{split}-00000-of-00001.parquet"))
    kept = f"data.root={tmp_path / 'kept'}"
    return lambda reader, *overrides: trainer(f"data.name={reader}/{tmp_path / 'hub'}", kept, *overrides)


@pytest.mark.parametrize("reader", ["hfds", "hfids"])
def test_data_input_key(columns, reader):
    one, other = (batch(columns(reader, f"data.input_key={key}"))[0] for key in ("image", "other"))
    assert not torch.equal(one, other)


@pytest.mark.parametrize("reader", ["hfds", "hfids"])
def test_data_target_key(columns, reader):
    assert [columns(reader, f"data.target_key={key}").splits.classes for key in ("label", "fine")] == [
        [*"ab"],
        [*"xyz"],
    ]


@pytest.mark.parametrize(
    "name, override",
    [
        ("folder", "data.train_split=x"),
        ("folder", "data.shuffle=3"),
        ("wds/x", "data.input_key=x"),
        ("wds/x", "data.train_limit=3"),
        ("wds/x", "data.val_fraction=0.5"),
        ("hfids/x", "data.test_limit=3"),
        ("hfds/x", "data.shuffle=3"),
    ],
)
def test_keys_that_a_reader_cannot_honour_are_refused_by_name(config, name, override):
    with pytest.raises(ValueError, match=override.partition("=")[0] + r" is (not )?for "):
        config(f"data.name={name}", override)


@pytest.fixture
def listed(tmp_path):
    """Videos of HMDB-51's layout with two official splits; a data set opens none."""
    pytest.importorskip("decord", reason="needs decord2, the extra `video`")
    for name in ("jump", "run"):
        (tmp_path / "videos" / name).mkdir(parents=True)
        (tmp_path / "lists").mkdir(exist_ok=True)
        for split, tags in ((1, (1, 2, 0)), (2, (2, 0, 1))):
            lines = [f"{i}.avi {tag}" for i, tag in enumerate(tags)]
            (tmp_path / "lists" / f"{name}_test_split{split}.txt").write_text("\n".join(lines))
        for i in range(3):
            (tmp_path / "videos" / name / f"{i}.avi").touch()
    return ["data.name=hmdb51", f"data.root={tmp_path / 'videos'}", f"data.lists={tmp_path / 'lists'}"]


def names(dataset):
    return [Path(path).name for path in dataset.paths]


def test_data_lists(listed, config):
    trainer = Trainer(video(config, *listed), CPU)
    assert (names(trainer.splits.train), names(trainer.splits.judges)) == (["0.avi"] * 2, ["1.avi"] * 2)


def test_data_split(listed, config):
    trainer = Trainer(video(config, *listed, "data.split=2"), CPU)
    assert (names(trainer.splits.train), names(trainer.splits.judges)) == (["2.avi"] * 2, ["0.avi"] * 2)


def video(config, *overrides):
    network = ["model.name=s4nd_convnext3d_tiny", "model.args.embed_dim=null", "stages.0.size=32", "batch_size=2"]
    made = config(*network, "data.frames=4", "data.seconds=1", *overrides)
    made.model.args = {"depths": [1, 0, 0, 1], "dims": [4, 4, 4, 8], "d_state": 4}
    return made


@pytest.fixture
def clips(config, write_video):
    """clips(*overrides, train=False, noise=False) -> what a run sees first of videos of 60 frames in 2 s.

    Frame i is of grey 4 i, the left half of noise on request.
    """
    pytest.importorskip("decord", reason="needs decord2, the extra `video`")

    def see(*overrides, train=False, noise=False):
        for name in ("train/a/0", "train/a/1", "train/b/0", "train/b/1", "test/a/0", "test/b/0"):
            last = write_video(f"videos/{name}.mp4", 60, noise=noise, grey=lambda i: 4 * i)
        source = ["data.name=video", f"data.root={last.parents[2]}"]
        trainer = Trainer(video(config, *source, *overrides), CPU)
        return next(iter(trainer.feed.loader(0, train=train)))[0]

    return see


def test_data_hflip_of_videos(clips):
    plain = clips("batch_size=4", "seed=1", train=True, noise=True)
    some = clips("batch_size=4", "seed=1", "data.hflip=true", train=True, noise=True)
    kept, mirrored = ((some == other).flatten(1).all(1) for other in (plain, plain.flip(-1)))
    assert kept.any() and mirrored.any() and (kept | mirrored).all()


def greys(clip):
    """(frames,) of a clip (3, frames, height, width)."""
    return clip.double().mean((0, 2, 3))


def test_data_frames(clips):
    assert clips("data.frames=6").shape[2] == 6


def test_data_seconds(clips):
    """Four frames, each in the middle of its quarter: of 1 s at 30 a second and 4 grey levels they are 30 levels apart."""
    for seconds, apart in ((1, 30), (0.5, 15)):
        (clip, *_) = clips(f"data.seconds={seconds}", "data.clips=1")
        assert greys(clip).diff().mean().item() == pytest.approx(apart, abs=4 / 3 + 1)  # whole frames, and the codec


def test_data_clips(clips):
    assert [len(clips(f"data.clips={K}")) for K in (1, 3)] == [1, 3]
    assert len(clips()) == 2  # of 1 s in 2 s


def test_data_scale(config, clips, monkeypatch):
    """The crop is the size of a frame as resized: scale times smaller than a frame, at most."""
    sides = []
    render = Clips.render
    see = lambda self, frames, scale=1.0, place=None: sides.append(scale) or render(self, frames, scale, place)  # noqa: E731
    monkeypatch.setattr(Clips, "render", see)
    clips("data.scale=3", train=True)
    assert 1.5 < max(sides) <= 3 and min(sides) >= 1
    sides.clear()
    clips("data.scale=1", train=True)
    assert set(sides) == {1.0}


def test_data_randaugment(clips):
    options = ["data.scale=1", "data.hflip=false"]
    plain, strong = clips(*options, train=True), clips(*options, "data.randaugment=30", train=True)
    assert plain.shape == strong.shape and not torch.equal(plain, strong)


def test_data_gamma(clips):
    plain, bright = clips(), clips("data.gamma=0.5")
    expected = 255 * (plain.double() / 255).sqrt()
    assert (bright.double() - expected).abs().max() <= 1  # rounded before it is resized


def test_data_motion(clips):
    """A change as large as the usual one is shown as half of 255. Frames are 30 grey levels apart, to a frame of 4."""
    frames, changes = clips("data.clips=1"), clips("data.clips=1", "data.motion=changes")
    assert greys(frames[0]).diff().min() > 20
    assert (greys(changes[0]) - 127.5).abs().max() <= 127.5 * (math.sqrt(34 / 30) - 1) + 1


# ---- model and init


def test_model_name(write_config):
    trainer = Trainer(load_config(write_config("conv_iso_tiny")), CPU)
    assert isinstance(trainer.learner.model.blocks[0].mixer, ConvMixer)


def test_model_args(trainer):
    model = trainer("model.args.depth=3").learner.model
    assert len(model.blocks) == 3 and model.stem.weight.shape[0] == 8


def test_init_weights(config, tmp_path):
    source = build_model(config("seed=1"), 2)
    save_file(source.state_dict(), tmp_path / "x.safetensors")
    trainer = Trainer(config(f"init.weights={tmp_path / 'x.safetensors'}"), CPU)
    trainer.learner.initialise()
    own = {name: p for name, p in trainer.learner.model.named_parameters() if not name.startswith("head.fc.")}
    assert len(own) > 5 and all(torch.equal(p, source.get_parameter(name)) for name, p in own.items())


def test_init_inflate(config, tmp_path, listed):
    args = dict(img_size=32, num_classes=5, depths=[1, 0, 0, 1], dims=[4, 4, 4, 8], d_state=4)
    source = s4nd.models.s4nd_convnext.s4nd_convnext_tiny(**args)
    save_file(source.state_dict(), tmp_path / "x.safetensors")
    trainer = Trainer(video(config, *listed, f"init.inflate={tmp_path / 'x.safetensors'}"), CPU)
    trainer.learner.initialise()
    fc1 = "stages.0.blocks.0.mlp.fc1.weight"
    assert torch.equal(trainer.learner.model.get_parameter(fc1), source.get_parameter(fc1))


# ---- stages


def layers(model):
    return [module for module in model.modules() if isinstance(module, S4ND)]


def test_stages_size(trainer):
    run = trainer(STAGES)
    for stage, size in ((0, 8), (1, 10)):
        run.enter(stage)
        images, _ = next(iter(run.feed.training(stage)))
        assert images.shape[2:] == (size, size)
        assert [layer.base_size for layer in layers(run.learner.model)] == [(size, size)] * 2


def test_stages_epochs(trainer):
    """In the plan, and in the length of the schedule: it is at its end after the stage's last step."""
    run = trainer(STAGES)
    assert run.plan() == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]
    for stage, epochs in ((0, 2), (1, 3)):
        run.enter(stage)
        run.learner.schedule.step_update(epochs * 3 - 1)  # of 3 steps an epoch
        assert run.learner.lr() == pytest.approx(0.01 * cosine(epochs * 3 - 1, epochs * 3))


def test_stages_sizes(trainer):
    """A size is drawn for each batch, the same for all processes and anew in each epoch; images are those of their size."""
    stages = "stages=[{size: 8, sizes: [6, 8, 11], epochs: 2}]"
    run, seen = trainer(stages, "batch_size=2"), []
    for epoch in (0, 1, 0):
        batches = list(run.feed.batches(0, epoch))
        seen.append([images.shape[-1] for _, images, _ in batches])
    assert seen[0] == seen[2] != seen[1] and set(seen[0]) == {6, 8, 11} and len(seen[0]) == 24
    run.config.batch_size, of_rank = 4, []
    for rank in (0, 1):
        place(run, rank, 2)
        of_rank.append([images.shape[-1] for _, images, _ in run.feed.batches(0)])
    assert of_rank[0] == of_rank[1] and len({*of_rank[0]}) > 1
    run.config.batch_size = 2
    place(run, 0, 1)
    at_8 = plain_images(trainer("stages=[{size: 8, epochs: 1}]"))
    of_8 = torch.cat([images for (_, images, _), size in zip(batches, seen[2], strict=True) if size == 8])
    assert is_among(of_8, at_8).all()
    layers_base = {layer.base_size for layer in layers(run.learner.model)}
    assert layers_base == {(8, 8)}  # at which it counts as trained
    assert next(images.shape[-1] for images, _ in run.feed.judging(0)) == 8


@pytest.mark.parametrize("sizes, name", [("[]", "folder"), ("[8, 0]", "folder"), ("[8]", "video")])
def test_stages_sizes_that_cannot_be_are_refused(config, sizes, name):
    with pytest.raises(ValueError, match=r"stages.0.sizes"):
        config(f"stages=[{{size: 8, sizes: {sizes}, epochs: 1}}]", f"data.name={name}")


def test_stages_sizes_go_on_within_an_epoch(trainer):
    run = trainer("stages=[{size: 8, sizes: [6, 8, 11], epochs: 2}]", "batch_size=2")
    whole = [(images, labels) for _, images, labels in run.feed.batches(0)]
    for (images, labels), (_, again, same) in zip(whole[9:], run.feed.batches(0, position=Position(9, 9)), strict=True):
        assert torch.equal(images, again) and torch.equal(labels, same)


def test_stages_bandlimit(trainer):
    run = trainer(STAGES, "ema=0.5")
    for stage, bandlimit in ((0, 0.5), (1, None), (0, 0.5)):
        run.enter(stage)
        for model in (run.learner.model, run.learner.ema.module):
            assert [layer.bandlimit for layer in layers(model)] == [bandlimit] * 2


def test_stages_resample(trainer):
    run = trainer(
        "stages=[{size: 8, epochs: 1, resample: hold}, {size: 10, epochs: 1, resample: continuous}]", "ema=0.5"
    )
    for stage, method in ((0, "hold"), (1, "continuous")):
        run.enter(stage)
        for model in (run.learner.model, run.learner.ema.module):
            assert [layer.resample for layer in layers(model)] == [(method, method)] * 2
            size = run.config.stages[stage].size
            assert [layer.base_size for layer in layers(model)] == [(size, size)] * 2


@pytest.mark.parametrize(
    "methods, base",
    [(("hold", "hold"), 8), (("continuous", "hold"), 10), (("hold", "null"), 10), (("null", "null"), 10)],
)
def test_kernels_that_are_not_continuous_stay_those_of_the_stage_that_they_come_from(trainer, methods, base):
    stages = ", ".join(
        f"{{size: {n}, epochs: 1, resample: {method}}}" for n, method in zip((8, 10), methods, strict=True)
    )
    run = trainer(f"stages=[{stages}]")
    run.enter(0)
    before = {name: p.clone() for name, p in run.learner.model.named_parameters()}
    run.enter(1)
    assert [layer.base_size for layer in layers(run.learner.model)] == [(base, base)] * 2
    same = all(torch.equal(p, before[name]) for name, p in run.learner.model.named_parameters())
    assert same == (base == 8)


# ---- optim and schedule


def moved(run):
    """How far each parameter goes in the first step of a stage."""
    before = parameters(run.learner.model)
    step(run)
    return {name: (p.detach() - before[name]).abs().max().item() for name, p in run.learner.model.named_parameters()}


def test_optim_lr(trainer):
    """Adam's first step is lr along the sign of each gradient that is not as small as its epsilon."""
    for lr in (0.01, 0.003):
        run = trainer(f"optim.lr={lr}", "optim.weight_decay=0")
        assert moved(run)["head.fc.bias"] == pytest.approx(lr, rel=1e-3) and run.learner.lr() == lr


def test_optim_ssm_lr(trainer):
    run = trainer("optim.ssm_lr=0.0002")
    far = moved(run)
    assert far["blocks.0.mixer.s4nd.kernels.0.log_dt"] == pytest.approx(2e-4, rel=1e-2)
    assert far["head.fc.bias"] == pytest.approx(0.01, rel=1e-3)


def test_optim_weight_decay(trainer):
    """Without a gradient AdamW multiplies what decays by 1 - lr * weight_decay, and leaves the rest."""
    run = trainer("optim.weight_decay=0.3")
    before = parameters(run.learner.model)
    for p in run.learner.model.parameters():
        p.grad = torch.zeros_like(p)
    run.learner.optimizer.step()
    shrunk = {name: (p / before[name]).nanmean().item() for name, p in run.learner.model.named_parameters()}
    assert shrunk["blocks.0.mixer.proj.weight"] == pytest.approx(1 - 0.01 * 0.3, rel=1e-6)
    assert shrunk["blocks.0.mixer.s4nd.kernels.0.log_A_real"] == shrunk["norm.weight"] == 1


def test_optim_opt(trainer):
    """Stochastic gradient descent moves by lr times the gradient."""
    run = trainer("optim.opt=momentum", "optim.weight_decay=0")
    before = parameters(run.learner.model)["head.fc.bias"]
    step(run)
    after = run.learner.model.head.fc.bias
    torch.testing.assert_close(after.detach(), before - 0.01 * after.grad, rtol=1e-6, atol=1e-8)


def test_optim_args(trainer):
    """The buffer of the momentum m after the gradients g and h is m g + h."""
    run, gradients = trainer("optim.opt=momentum", "optim.args={momentum: 0.25}", "optim.weight_decay=0"), []
    bias = run.learner.model.head.fc.bias
    for _ in range(2):
        step(run)
        gradients.append(bias.grad.clone())
    torch.testing.assert_close(run.learner.optimizer.state[bias]["momentum_buffer"], 0.25 * gradients[0] + gradients[1])


def test_optim_layer_decay(trainer):
    """Adam's first step is as long as the rate: halved from the head to the second block, the first, and the stem."""
    far = moved(trainer("optim.layer_decay=0.5", "optim.weight_decay=0"))
    assert far["head.fc.bias"] == pytest.approx(0.01, rel=1e-3)
    assert far["norm.bias"] == pytest.approx(0.005, rel=1e-3)
    assert far["blocks.0.norm.bias"] == pytest.approx(0.0025, rel=1e-3)
    assert far["blocks.0.mixer.s4nd.kernels.0.log_dt"] == pytest.approx(0.00025, rel=1e-2)
    assert far["stem.bias"] == pytest.approx(0.00125, rel=1e-3)


def test_optim_clip_grad(trainer):
    norms = []
    for clip_grad in ("null", 1e-3):
        run = trainer(f"optim.clip_grad={clip_grad}")
        step(run)
        norms.append(torch.stack([p.grad.norm() for p in run.learner.model.parameters()]).norm().item())
    assert norms[0] > 0.01 and norms[1] == pytest.approx(1e-3, rel=1e-3)


def rates(run, monkeypatch):
    """The learning rate of every step of two epochs of 3."""
    seen = []
    monkeypatch.setattr(run, "train_step", lambda images, labels: seen.append(run.learner.lr()))
    for epoch in range(2):
        run.train_epoch(epoch)
    return seen


def cosine(t, T):
    return (1 + math.cos(math.pi * t / T)) / 2


def test_schedule_warmup_epochs(trainer, monkeypatch):
    expected = [0.01 * t / 3 for t in range(3)] + [0.01 * cosine(t, 3) for t in range(3)]
    assert rates(trainer("schedule.warmup_epochs=1"), monkeypatch) == pytest.approx(expected)


def test_schedule_min_lr(trainer, monkeypatch):
    expected = [0.004 + 0.006 * cosine(t, 6) for t in range(6)]
    assert rates(trainer("schedule.min_lr=0.004"), monkeypatch) == pytest.approx(expected)


def test_schedule_sched(trainer, monkeypatch):
    assert rates(trainer("schedule.sched=constant"), monkeypatch) == pytest.approx([0.01] * 6)


def test_schedule_warmup_lr(trainer, monkeypatch):
    expected = [0.004 + 0.006 * t / 3 for t in range(3)] + [0.01 * cosine(t, 3) for t in range(3)]
    run = trainer("schedule.warmup_epochs=1", "schedule.warmup_lr=0.004")
    assert rates(run, monkeypatch) == pytest.approx(expected)


def test_schedule_cooldown_epochs(trainer, monkeypatch):
    expected = [0.002 + 0.008 * cosine(t, 3) for t in range(3)] + [0.002] * 3
    run = trainer("schedule.cooldown_epochs=1", "schedule.min_lr=0.002")
    assert rates(run, monkeypatch) == pytest.approx(expected)


def test_schedule_decay_rate(trainer, monkeypatch):
    """A straight line and a parabola."""
    for power in (1, 2):
        run = trainer("schedule.sched=poly", f"schedule.decay_rate={power}")
        assert rates(run, monkeypatch) == pytest.approx([0.01 * (1 - t / 6) ** power for t in range(6)])


def test_schedule_decay_epochs(trainer, monkeypatch):
    for steps in (1, 2, 3):
        run = trainer("schedule.sched=step", "schedule.decay_rate=0.5", f"schedule.decay_epochs={steps / 3}")
        assert rates(run, monkeypatch) == pytest.approx([0.01 * 0.5 ** (t // steps) for t in range(6)])


def test_schedule_decay_milestones(trainer, monkeypatch):
    run = trainer("schedule.sched=multistep", "schedule.decay_rate=0.1", "schedule.decay_milestones=[0.34, 1]")
    assert rates(run, monkeypatch) == pytest.approx([0.01, 0.001, 0.001, 0.0001, 0.0001, 0.0001])


# ---- the rest


def test_batch_size(trainer):
    run = trainer("batch_size=6")
    assert [len(labels) for _, _, labels in run.feed.batches(0)] == [6] * 8


def losses_by_hand(logits, targets):
    return -(targets * logits.log_softmax(-1)).sum(-1).mean().item()


def test_label_smoothing(trainer):
    run = trainer("label_smoothing=0.2")
    images, labels = batch(run)
    logits = run.learner.model.train()(to_input(images, run.learner.model, CPU)).detach()
    targets = 0.8 * F.one_hot(labels, 2) + 0.1
    assert loss_of(run, images, labels) == pytest.approx(losses_by_hand(logits, targets), rel=1e-5)


def mixed(run):
    """Images before and after, labels, targets, the loss by hand and the loss of a step."""
    images, labels = batch(run)
    seen = {}
    run.learner.model.register_forward_pre_hook(lambda _, args: seen.update(images=args[0].detach().clone()))
    run.learner.criterion.register_forward_hook(
        lambda _, args, __: seen.update(logits=args[0].detach(), targets=args[1])
    )
    random_seed(0)
    loss = loss_of(run, images, labels)
    before = to_input(images, run.learner.model, CPU)
    assert loss == pytest.approx(losses_by_hand(seen["logits"], seen["targets"]), rel=1e-5)
    # Half of each pair, reversed, is the other's: the share of the first follows from the targets.
    one, other = F.one_hot(labels, 2).float(), F.one_hot(labels.flip(0), 2).float()
    pair = int((labels != labels.flip(0)).nonzero()[0])
    share = ((seen["targets"] - other)[pair] / (one - other)[pair])[0].item()
    torch.testing.assert_close(seen["targets"], share * one + (1 - share) * other)
    return before, seen["images"], share


def test_mixup(trainer):
    before, after, share = mixed(trainer("mixup=1.0"))
    assert 0.02 < share < 0.98
    torch.testing.assert_close(after, share * before + (1 - share) * before.flip(0), rtol=0, atol=1e-5)


def test_cutmix(trainer):
    """A rectangle of the other image, of its share of the area."""
    before, after, share = mixed(trainer("cutmix=1.0"))
    pasted = (after != before).any(1).any(0)
    assert pasted.any() and torch.equal(after, torch.where(pasted, before.flip(0), before))
    rows, columns = pasted.any(1).sum().item(), pasted.any(0).sum().item()
    assert pasted.sum() == rows * columns and share == pytest.approx(1 - rows * columns / 64, abs=1e-6)


def shares(run, steps=40):
    """The share of the first image of each pair, (B,) in every one of so many mixed batches."""
    images, labels = to_input(batch(run)[0], run.learner.model, CPU), torch.arange(16)
    run.learner.mixup.num_classes = 16  # each image its own class
    random_seed(0)
    targets = [run.learner.mixup(images.clone(), labels)[1] for _ in range(steps)]
    return torch.stack([target.diagonal() for target in targets])


def test_mixup_prob(trainer):
    """Each of 40 batches is mixed or not: a quarter is, give or take five standard deviations."""
    assert (shares(trainer("mixup=1.0")) < 1).all()
    mixed = (shares(trainer("mixup=1.0", "mixup_prob=0.25"), 400) < 1).all(1)
    assert abs(mixed.float().mean() - 0.25) < 5 * (0.25 * 0.75 / 400) ** 0.5


def test_mixup_switch_prob(trainer):
    """The share of a rectangle of 8 x 8 pixels is a whole number of them; the share of mixup hardly ever."""
    for switch, ways in ((0.0, {False}), (1.0, {True})):
        run = trainer("mixup=1.0", "cutmix=1.0", f"mixup_switch_prob={switch}")
        pixels = 64 * shares(run)
        assert set((pixels == pixels.round()).all(1).tolist()) == ways


def test_mixup_mode(trainer):
    """One share for a batch, or for each pair, or for each image."""
    kinds = {"batch": {1}, "pair": {8}, "elem": {16}}
    for mode, counts in kinds.items():
        run = trainer("mixup=1.0", f"mixup_mode={mode}")
        assert {len(row.unique()) for row in shares(run, 4)} == counts


@pytest.mark.parametrize(("mode", "alike"), [("batch", True), ("pair", False), ("elem", False)])
def test_processes_mix_alike_what_is_of_a_whole_batch(config, mode, alike):
    """What is of a pair or an image each process draws for itself: its images are not another's."""

    def drawn(rank):
        run = Trainer(config("mixup=1.0", f"mixup_mode={mode}"), CPU)
        run.enter(0)
        place(run, rank, 1)
        run.learner.steps()._seed(epoch=0, step=1, micro_batch=0)
        return np.random.rand()  # noqa: NPY002

    assert (drawn(0) == drawn(1)) == alike and drawn(1) == drawn(1)


@pytest.mark.parametrize("decay", [0.3, 0.9])
def test_ema(trainer, decay):
    """The average is the model after the first step, and then avg <- d avg + (1 - d) model, where the decay d of step t + 1
    is at most 1 - (1 + t)^(-2/3) while the run is young."""
    run, models = trainer(f"ema={decay}"), []
    for _ in range(4):
        step(run)
        models.append(parameters(run.learner.model))
    average = models[0]
    for t, model in enumerate(models[1:], 1):
        d = min(decay, 1 - (1 + t) ** (-2 / 3))
        average = {name: d * average[name] + (1 - d) * model[name] for name in average}
    for name, p in run.learner.ema.module.named_parameters():
        torch.testing.assert_close(p, average[name], rtol=1e-5, atol=1e-6)
    assert trainer().learner.ema is None


@pytest.mark.parametrize(("amp", "dtype"), [("none", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_amp(trainer, amp, dtype):
    run, seen = trainer(f"amp={amp}"), set()
    run.learner.model.blocks[0].mixer.proj.register_forward_hook(lambda _, __, y: seen.add(y.dtype))
    step(run)
    assert seen == {dtype}


def test_accumulate(trainer):
    """The micro-batches of a batch give its gradient, to the rounding of a sum of 16 terms in another order."""
    gradients = []
    for count in (1, 4):
        run, seen = trainer(f"accumulate={count}"), []
        run.learner.model.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(len(args[0])))
        images, labels = batch(run)
        run.learner.model.train()
        run.train_step(images, labels)
        assert seen == [16 // count] * count
        gradients.append((run.learner.steps().loss.item(), [p.grad for p in run.learner.model.parameters()]))
    assert gradients[0][0] == pytest.approx(gradients[1][0], rel=1e-6)
    for one, other in zip(gradients[0][1], gradients[1][1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * one.abs().max().item())


def test_parallel(trainer, monkeypatch):
    """Of two processes, the model and its averages are divided before the optimizer is made."""
    seen = []
    monkeypatch.setattr(learner, "shard", lambda model, *_: seen.append(model))
    for value, count in (("ddp", 0), ("fsdp", 2)):
        run = trainer(f"parallel={value}", "ema=0.5")
        assert seen == []  # alone there is nothing to divide
        place(run, 0, 2)
        run.enter(0)
        assert seen == run.learner.models()[:count]
        seen.clear()


def test_accumulate_must_divide_the_batch(config):
    with pytest.raises(ValueError, match="batch_size=16 must be a multiple of 6"):
        Trainer(config("accumulate=3", "mixup=0.5"), CPU)


def test_channels_last(trainer):
    seen = []
    for on in ("false", "true"):
        run = trainer(f"channels_last={on}")
        run.learner.model.register_forward_pre_hook(
            lambda _, args: seen.append(args[0].is_contiguous(memory_format=torch.channels_last))
        )
        step(run)
        last = [
            p.is_contiguous(memory_format=torch.channels_last) for p in run.learner.model.parameters() if p.ndim == 4
        ]
        assert all(last) or on == "false"
    assert seen == [False, True]


def test_compile(trainer, monkeypatch):
    made = []

    def compiled(model):
        made.append(model)
        return model

    monkeypatch.setattr(torch, "compile", compiled)
    step(trainer("compile=false"))
    assert made == []
    run = trainer("compile=true")
    step(run)
    assert made == [run.learner.model]


def test_distribute_bn(trainer, monkeypatch):
    """Of two processes: asked for after the epoch, and not overwritten by the first process's in each step."""
    seen = []
    monkeypatch.setattr(learner, "distribute_bn", lambda model, world_size, reduce: seen.append((world_size, reduce)))
    monkeypatch.setattr(learner, "DistributedDataParallel", lambda model, **options: seen.append(options) or model)
    for module in (engine, learner):
        monkeypatch.setattr(module, "sum_over_processes", lambda values, _: values)
    for value, expected in (
        ("null", [{}]),
        ("reduce", [{"broadcast_buffers": False}, (2, True)]),
    ):
        run = trainer(f"distribute_bn={value}")
        place(run, 0, 2)
        run.train_epoch(0)
        assert seen == expected
        seen.clear()


def test_log_every(config):
    folder = train(config("log_every=2", "stages=[{size: 8, epochs: 2}]"))
    records = [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [2, 5]  # of 3 in each epoch
    for record in records:
        assert record["loss"] > 0 and record["grad_norm"] > 0 and record["lr"] > 0
        assert record["memory_mib"] > 100 and record["images_per_second"] > 0
    folder = train(config("log_every=2", "stages=[{size: 8, epochs: 3}]", "resume=auto"))
    records = [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [2, 5, 8]


def test_wandb(config, monkeypatch):
    """The project gets every record of both logs; without the key nobody asks for the package."""
    begun, sent = [], []
    run = SimpleNamespace(log=sent.append, define_metric=lambda *_, **__: None, finish=lambda: sent.append("end"))
    package = SimpleNamespace(init=lambda **given: begun.append(given) or run, Settings=dict)
    monkeypatch.setattr(tracking, "require_wandb", lambda: package)
    train(config("stages=[{size: 8, epochs: 1}]"))
    assert begun == []
    train(config("wandb=stripes", "log_every=1", "stages=[{size: 8, epochs: 1}]", f"out={config().out}_mirrored"))
    assert [given["project"] for given in begun] == ["stripes"] and len(sent) == 3 + 1 + 1


def saves(monkeypatch):
    """The steps at which a run saves its state."""
    seen, save_state = [], engine.save_state
    monkeypatch.setattr(engine, "save_state", lambda *args: seen.append(args[2]["step"]) or save_state(*args))
    return seen


def test_save_every_steps(config, monkeypatch):
    seen = saves(monkeypatch)
    train(config("save_every_steps=2", "stages=[{size: 8, epochs: 2}]"))
    assert seen == [2, 3, 5, 6]


def test_save_every_minutes(config, monkeypatch):
    """By a clock on which a step takes 20 seconds: after a minute, or after the third step of an epoch."""
    seen, clock = saves(monkeypatch), iter(range(0, 100000, 10))
    monkeypatch.setattr(requests.time, "monotonic", lambda: next(clock))
    train(config("save_every_minutes=0.5", "stages=[{size: 8, epochs: 1}]", "batch_size=8"))
    assert seen == [3, 6, 6]


def test_seed(trainer):
    """It gives the weights, the order of the images and their augmentation, and the noise of the model."""

    def drawn(seed):
        run, numbers = trainer(f"seed={seed}", "data.pad=0.25"), []
        # np.random is what Mixup draws from
        run.learner.model.register_forward_hook(lambda *_: numbers.append((torch.rand(1).item(), np.random.rand())))  # noqa: NPY002
        run.train_epoch(0)
        view = run.feed.training(0)
        return run.learner.model.stem.weight.tolist(), list(view.sampler), view.dataset.at(0, 8).shift.tolist(), numbers

    for one, again, other in zip(drawn(0), drawn(0), drawn(1), strict=True):
        assert one == again != other


def test_out_of_a_reader_stays_within_runs(config, tmp_path):
    """The name of a data set may be a path."""
    for name, made in (("wds/imagenet", "wds/imagenet"), (f"hfds/{tmp_path}/../x", "hfds/x"), ("hfids/a/b", "hfids/b")):
        assert config(f"data.name={name}", "out=null").out == f"runs/{made}/s4nd_iso_tiny"


def test_out(config, tmp_path):
    folder = train(config(f"out={tmp_path / 'elsewhere'}", "stages.0.epochs=1"))
    assert folder == tmp_path / "elsewhere" and (folder / "last.safetensors").is_file()
    assert config("out=null").out == "runs/folder/s4nd_iso_tiny"


def test_resume(config, tmp_path, monkeypatch):
    """From its own folder, or from another: the steps that are made are those that were left."""
    made = []
    train_epoch = Trainer.train_epoch
    monkeypatch.setattr(Trainer, "train_epoch", lambda self, *a: made.append(self.epoch) or train_epoch(self, *a))
    folder = train(config("stages.0.epochs=1"))
    train(config(f"resume={folder}", "stages.0.epochs=2", f"out={tmp_path / 'other'}"))
    train(config("resume=auto", "stages.0.epochs=2"))
    assert made == [0, 1, 1]


def test_device(config, monkeypatch):
    asked = []
    monkeypatch.setattr(engine, "choose_device", lambda name: asked.append(name) or CPU)
    train(config("device=cuda:1", "stages.0.epochs=1"))
    assert asked == ["cuda:1"]


# ---- nothing is forgotten


def keys(kind=Config, prefix=""):
    for field in fields(kind):
        inner = StageConfig if field.name == "stages" else field.type
        if is_dataclass(inner):
            yield from keys(inner, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}"


def test_every_key_has_a_test_here_and_a_mutation_that_ignores_it():
    assert {"data.name", "stages.size", "optim.lr", "device"} <= set(keys())
    untested = [key for key in keys() if f"test_{key.replace('.', '_')}" not in globals()]
    entries = yaml.safe_load((Path(__file__).parents[1] / "mutations.yaml").read_text(encoding="utf-8"))
    unbroken = {f"{key} ignored" for key in keys()} - {entry["name"] for entry in entries}
    assert (untested, sorted(unbroken)) == ([], [])
