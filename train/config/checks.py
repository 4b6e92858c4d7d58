"""What the types of a config's keys do not say: ranges, words, and keys that do not go together."""

from collections.abc import Iterator
from dataclasses import fields
from typing import Any, NamedTuple

from s4nd.nn.resolution import MODEL_RESAMPLE

from ..data import MOTION, STREAMS, VIDEO_DATASETS, ClipSampling, ImageTransforms, Reading, reader_of
from ..registry import LOADING_ARGS
from .optimizers import problems_of_optimizer
from .schedules import problems_of_schedule
from .schema import Config, DataConfig

VIDEO_KEYS = ("lists", "split", *(f.name for f in fields(ClipSampling)))
READING_KEYS = tuple(f.name for f in fields(Reading))
UNREAD = {"wds": ("input_key", "target_key"), "hfds": ("shuffle",), "hfids": (), None: READING_KEYS}
IMAGE_KEYS = ("noise", *(f.name for f in fields(ImageTransforms)))


class _Range(NamedTuple):
    """Of a number: low to high, or without an end; `positive`: low itself is not allowed."""

    low: float
    high: float | None = None
    positive: bool = False


RANGES = {
    "data.train_limit": _Range(1),
    "data.test_limit": _Range(1),
    "data.val_fraction": _Range(0, 1, positive=True),
    "data.pad": _Range(0, 1),
    "data.noise": _Range(0, 255, positive=True),
    "data.workers": _Range(0),
    "data.prefetch": _Range(1),
    "data.shuffle": _Range(1),
    "data.split": _Range(1, 3),
    "data.frames": _Range(1),
    "data.seconds": _Range(0, positive=True),
    "data.clips": _Range(1),
    "data.scale": _Range(1),
    "data.randaugment": _Range(0, 30),
    "data.gamma": _Range(0, positive=True),
    "optim.lr": _Range(0, positive=True),
    "optim.weight_decay": _Range(0),
    "optim.ssm_lr": _Range(0),
    "optim.layer_decay": _Range(0, 1, positive=True),
    "optim.clip_grad": _Range(0, positive=True),
    "schedule.warmup_epochs": _Range(0),
    "schedule.warmup_lr": _Range(0),
    "schedule.min_lr": _Range(0),
    "schedule.cooldown_epochs": _Range(0),
    "schedule.decay_rate": _Range(0, positive=True),
    "schedule.decay_epochs": _Range(0, positive=True),
    "batch_size": _Range(1),
    "label_smoothing": _Range(0, 1),
    "mixup": _Range(0),
    "cutmix": _Range(0),
    "mixup_prob": _Range(0, 1),
    "mixup_switch_prob": _Range(0, 1),
    "ema": _Range(0, 1),
    "accumulate": _Range(1),
    "log_every": _Range(1),
    "save_every_steps": _Range(1),
    "save_every_minutes": _Range(0, positive=True),
    "seed": _Range(0, 2**31 - 1),
}
STAGE_RANGES = {"size": _Range(1), "sizes": _Range(1), "epochs": _Range(1), "bandlimit": _Range(0, positive=True)}

WORDS = {
    "mixup_mode": ("batch", "pair", "elem"),
    "amp": ("none", "bf16", "fp16"),
    "parallel": ("ddp", "fsdp"),
    "distribute_bn": (None, "reduce"),
}

# What the trainer decides itself, and what would load weights or code from elsewhere.
RESERVED_ARGS = {
    "num_classes": "it is the number of classes in the data",
    "img_size": "it is the size of the stage",
    "features_only": "a classifier is trained",
    **dict.fromkeys(
        (*LOADING_ARGS, "model_name"),
        "models are built from their name as drawn; init.weights names weights to begin with, a file or a shipped tag",
    ),
}


def problems(config: Config) -> Iterator[str]:
    """What cannot be honoured, in the user's words: what was needed, what came."""
    yield from _out_of_range(config)
    for key, words in WORDS.items():
        if (value := getattr(config, key)) not in words:
            yield f"{key} must be {_either(words)}, got {value!r}"
    yield from _of_videos(config) if config.data.name in VIDEO_DATASETS else _of_images(config.data)
    yield from _of_workers(config.data)
    yield from _of_readers(config.data)
    yield from _of_mixing(config)
    yield from _of_noise(config)
    yield from _of_stages(config)
    yield from problems_of_optimizer(config.optim, config.parallel)
    yield from problems_of_schedule(config)
    if config.wandb is not None and (not 0 < len(config.wandb) <= 128 or {*config.wandb} & {*"/\\#?%:"}):
        yield f"wandb must be the name of a project, at most 128 characters and none of / \\ # ? % :, got {config.wandb!r}"
    if config.init.inflate is not None and config.init.weights is not None:
        yield "init.inflate and init.weights are two beginnings: set one of them"
    yield from _of_model(config)


def _out_of_range(config: Config) -> Iterator[str]:
    values = [(key, _value(config, key), limits) for key, limits in RANGES.items()]
    for i, stage in enumerate(config.stages):
        for key, limits in STAGE_RANGES.items():
            value, key = getattr(stage, key), f"stages.{i}.{key}"
            several = isinstance(value, list)
            values += [(f"{key}.{j}", x, limits) for j, x in enumerate(value)] if several else [(key, value, limits)]
    for key, value, (low, high, positive) in values:
        if value is None:
            continue
        if not (low <= value and (high is None or value <= high) and value < float("inf")):
            yield f"{key} must be {f'in [{low}, {high}]' if high is not None else f'at least {low}'}, got {value}"
        elif positive and value == 0:
            yield f"{key} must be positive, got 0"


def _value(config: Config, path: str) -> Any:
    value: Any = config
    for key in path.split("."):
        value = getattr(value, key)
    return value


def _of_videos(config: Config) -> Iterator[str]:
    data = config.data
    for key in _changed(data, IMAGE_KEYS):
        yield f"data.{key} is for images, and data.name is {data.name}"
    if config.cutmix:
        yield "cutmix is for images: it would paste a part of one clip's time into another; use mixup for videos"
    if data.motion not in (None, *MOTION):
        yield f"data.motion must be {_either((None, *MOTION))}, got {data.motion!r}"
    if data.motion and data.frames < 2:
        yield f"data.motion needs data.frames of at least 2, got {data.frames}"
    if data.pad:
        yield "data.pad is for images: clips are cropped at random after data.scale"


def _of_workers(data: DataConfig) -> Iterator[str]:
    if not data.workers and _changed(data, ("prefetch",)):
        yield "data.prefetch is of workers: it needs data.workers above 0"


def _of_readers(data: DataConfig) -> Iterator[str]:
    reader = reader_of(data.name)
    for key in _changed(data, UNREAD[reader]):
        readers = ", ".join(f"{name}/NAME" for name, unread in UNREAD.items() if name and key not in unread)
        yield f"data.{key} is for {readers}, and data.name is {data.name}"
    for key in _changed(data, ("train_limit", "test_limit", "val_fraction") if reader in STREAMS else ()):
        yield f"data.{key} is not for streams, whose classes are not known before they are read, and data.name is {data.name}"


def _of_images(data: DataConfig) -> Iterator[str]:
    for key in _changed(data, VIDEO_KEYS):
        yield f"data.{key} is for videos ({', '.join(VIDEO_DATASETS)}), and data.name is {data.name}"
    if data.pad and data.crop_scale:
        yield f"data.pad and data.crop_scale are two ways to crop at random: set one, got {data.pad} and {data.crop_scale}"
    try:
        data.transforms()
    except ValueError as error:
        yield f"data.{error}"


def _of_mixing(config: Config) -> Iterator[str]:
    if not (config.mixup or config.cutmix):
        for key in _changed(config, ("mixup_prob", "mixup_mode")):
            yield f"{key} is of mixup and cutmix: set one of them"
    if not (config.mixup and config.cutmix) and _changed(config, ("mixup_switch_prob",)):
        yield "mixup_switch_prob is between mixup and cutmix: set both"


def _of_noise(config: Config) -> Iterator[str]:
    """What the task of restoring images cannot honour."""
    if config.data.noise is None:
        return
    for key in _changed(config, ("label_smoothing", "mixup", "cutmix")):
        yield f"{key} is of labels, and with data.noise the model learns to restore images"
    for key in _changed(config.data, ("auto_augment", "reprob")):
        yield f"data.{key} paints over an image what no camera sees: with data.noise there is nothing to restore there"
    if (channels := config.model.args.get("in_chans", 3)) != 3:
        yield f"model.args.in_chans must be 3 with data.noise, which is alike in all channels, got {channels}"
    if "global_pool" in config.model.args:
        yield "model.args.global_pool cannot be set with data.noise: the output is on the image's grid, without pooling"


def _of_stages(config: Config) -> Iterator[str]:
    if not config.stages:
        yield "stages must hold at least one stage such as {size: 16, epochs: 8}, got none"
    for i, stage in enumerate(config.stages):
        if stage.sizes is not None and (config.data.name in VIDEO_DATASETS or not stage.sizes):
            yield f"stages.{i}.sizes must be sizes of images, such as [8, 12, 16], got {stage.sizes} for {config.data.name}"
        if stage.resample not in (None, *MODEL_RESAMPLE):
            yield f"stages.{i}.resample must be {_either((None, *MODEL_RESAMPLE))}, got {stage.resample!r}"


def _of_model(config: Config) -> Iterator[str]:
    args = config.model.args
    for key in args:
        if key in RESERVED_ARGS:
            yield f"model.args.{key} cannot be set: {RESERVED_ARGS[key]}"
    channels = args.get("in_chans", 3)
    if type(channels) is not int or channels not in (1, 3):
        yield f"model.args.in_chans must be 3, for colour, or 1, for the luma of {config.data.name}, got {channels!r}"


def _changed(node: Config | DataConfig, keys: tuple[str, ...]) -> list[str]:
    """Those keys that are not at their defaults."""
    default = type(node)()
    return [key for key in keys if getattr(node, key) != getattr(default, key)]


def _either(words: tuple[str | None, ...]) -> str:
    *most, last = ("null" if word is None else word for word in words)
    return f"{', '.join(most)} or {last}"
