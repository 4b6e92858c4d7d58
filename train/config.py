"""The configuration of a run: dataclasses filled from one YAML file and `key=value` overrides, strictly.

Every key is known, every value has its type and range, or the error names the file, the key and the nearest known key.
The same door is used for the config inside a checkpoint.
"""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from s4nd.nn.resolution import MODEL_RESAMPLE

from .data import MOTION, VIDEO_DATASETS, ClipSampling, ImageTransforms


@dataclass
class DataConfig:
    """What to train and test on, and its augmentation."""

    name: str = "photos"
    root: str | None = None  # folder or file of the data set; None where the data set needs none
    train_limit: int | None = None  # use this many images at most
    test_limit: int | None = None
    val_fraction: float | None = (
        None  # of the training images, kept for choosing best.safetensors; None: the test split chooses
    )
    hflip: bool = True
    pad: float = 0.0  # random crop after padding by this fraction of the size
    workers: int = 0  # loader processes per training process
    # For images only, in timm's words; see data/image_transforms.py:
    interpolation: str = "bilinear"
    train_interpolation: str | None = None  # None: as interpolation; "random": bilinear or bicubic, for random crops
    crop_pct: float = 1.0  # at test time: size / shorter side of the image from whose middle it is cropped
    crop_scale: list[float] | None = None  # [0.08, 1]: random crops of this share of the area; None: the central square
    crop_ratio: list[float] | None = None  # width / height of random crops; None: [0.75, 1.3333]
    auto_augment: str | None = None  # such as rand-m9-mstd0.5-inc1, augmix-m3-w3, original
    color_jitter: float | None = None  # of brightness, contrast and saturation
    reprob: float = 0.0  # probability of random erasing
    remode: str = "pixel"  # const, rand or pixel
    recount: int = 1  # most rectangles erased of an image
    aug_repeats: int = 1  # of each image in an epoch, which is no longer for it
    # For videos only:
    lists: str | None = None  # folder of the official split files of hmdb51 and ucf101
    split: int = 1  # which of the official splits
    frames: int = 30  # of a clip
    seconds: float = 2.0  # duration of a clip
    clips: int | None = None  # of a video at test time; None: as many as cover it
    scale: float = 1.25  # random shorter side before the crop, at most this many times the size
    randaugment: int | None = None  # magnitude, 0 to 30; None is off
    gamma: float = 1.0  # pixels (0 to 1) to this power; below 1 brightens
    motion: str | None = None  # "changes" or "moving": what moves, in place of the frames

    def transforms(self) -> ImageTransforms:
        """What becomes of an image.

        Raises:
            ValueError: a value that cannot be honoured.
        """
        return ImageTransforms(**{f.name: getattr(self, f.name) for f in fields(ImageTransforms)})

    def sampling(self) -> ClipSampling | None:
        """What becomes of a video; None for images."""
        if self.name not in VIDEO_DATASETS:
            return None
        return ClipSampling(**{f.name: getattr(self, f.name) for f in fields(ClipSampling)})


@dataclass
class ModelConfig:
    """A model of timm's registry, by name; `args` go to `timm.create_model`."""

    name: str = "s4nd_iso_tiny"
    args: dict[str, Any] = field(default_factory=dict)


@dataclass
class InitConfig:
    """Weights to begin with: a checkpoint of `s4nd train`, or safetensors with a model's state dict, such as timm's."""

    inflate: str | None = None  # of an image model, for a video model; see models/inflate.py
    weights: str | None = None  # of the same model; a classifier of classes of other names stays as drawn


@dataclass
class StageConfig:
    """A part of the training at one resolution, with a learning-rate schedule of its own."""

    size: int = 16  # pixels per side, at which the model counts as trained
    sizes: list[int] | None = None  # of the training batches, one drawn for each; None: size
    epochs: int = 1
    bandlimit: float | None = None  # in units of the Nyquist frequency of the coarser grid; None keeps every mode
    resample: str | None = None  # kernels at other sizes: see s4nd.set_resample; None: as the model has it


@dataclass
class OptimConfig:
    """AdamW; the state-space parameters have a learning rate of their own and no weight decay."""

    lr: float = 1e-3
    weight_decay: float = 0.05
    ssm_lr: float | None = None  # None: min(lr, 1e-3)
    clip_grad: float | None = None  # largest norm of the gradient


@dataclass
class ScheduleConfig:
    """Linear warm-up from 0, then a cosine to min_lr; begins anew with each stage."""

    warmup_epochs: float = 0.0
    min_lr: float = 0.0  # of the groups at optim.lr; other groups keep their ratio to them


@dataclass
class Config:
    """A whole run."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    stages: list[StageConfig] = field(default_factory=list)
    init: InitConfig = field(default_factory=InitConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    batch_size: int = 128  # images per step, over all processes and the parts that are accumulated
    label_smoothing: float = 0.0
    mixup: float = 0.0  # alpha of mixup; 0 is off
    cutmix: float = 0.0  # alpha of cutmix; 0 is off
    mixup_prob: float = 1.0  # of mixing at all
    mixup_switch_prob: float = 0.5  # of cutmix where both are on
    mixup_mode: str = "batch"  # what is drawn once: batch, pair or elem
    ema: float | None = None  # decay per step of the averaged weights; None is off
    amp: str = "none"  # none, bf16 or fp16
    parallel: str = "ddp"  # of several processes: each holds all weights, or "fsdp", its part of them
    accumulate: int = 1  # parts of a batch whose gradients are added before a step: as many times less memory
    channels_last: bool = False  # memory layout of images and weights; faster for convolutions on GPUs and some CPUs
    compile: bool = False  # torch.compile
    distribute_bn: str | None = None  # of batch norms, statistics of the first process; "reduce": the mean over them
    log_every: int = 50  # steps between two records of steps.jsonl
    save_every_steps: int | None = None  # within an epoch; None: at the end of each epoch alone
    save_every_minutes: float | None = None
    seed: int = 0
    out: str | None = None  # run directory; None: runs/<data.name>/<model.name>
    resume: str | None = None  # None, "auto" or another run directory
    device: str = "auto"


VIDEO_KEYS = ("lists", "split", *(f.name for f in fields(ClipSampling)))
IMAGE_KEYS = tuple(f.name for f in fields(ImageTransforms))

POSITIVE = ("save_every_minutes", "data.val_fraction", "optim.lr", "optim.clip_grad", "data.seconds", "data.gamma")

# What the trainer decides itself, and what would load weights or code from elsewhere.
RESERVED_ARGS = {
    "num_classes": "it is the number of classes in the data",
    "img_size": "it is the size of the stage",
    "features_only": "a classifier is trained",
    **dict.fromkeys(
        ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "model_name"),
        "models are built from their name and trained from scratch",
    ),
}


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Config from a YAML file and overrides such as `optim.lr=0.01`, `stages.0.size=32` or `model.args.depth=4`.

    A file may begin with `base: OTHER.yaml`, beside it: then it holds only what differs from that file. Lists, such as the
    stages, are replaced as a whole.

    Raises:
        FileNotFoundError: no such file, or no such base.
        KeyError: an unknown key; the message names the nearest known one.
        ValueError: not YAML, a wrong type or a value out of range.
    """
    node = OmegaConf.structured(Config)
    for file, tree in _with_bases(Path(path)):
        _fill(node, "", tree, str(file))
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ValueError(f"an override must be key=value, got {override!r}")
        try:
            value = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))["value"]
        except (yaml.YAMLError, OmegaConfBaseException) as error:
            raise ValueError(f"override {override!r}: not valid YAML: {error}") from None
        _set(node, key, value, f"override {override!r}")
    return _finish(node, str(path))


def _with_bases(path: Path) -> list[tuple[Path, Any]]:
    """The trees of a file and of the files it is based on, the first one first."""
    found: list[tuple[Path, Any]] = []
    while path is not None:
        if path.resolve() in [file.resolve() for file, _ in found]:
            raise ValueError(f"{path}: its bases are based on each other: {', '.join(str(file) for file, _ in found)}")
        if not path.is_file():
            raise FileNotFoundError(f"no config file {path}" + (f", the base of {found[-1][0]}" if found else ""))
        try:
            tree = OmegaConf.to_container(OmegaConf.load(path))
        except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: not valid YAML: {error}") from None
        base = tree.pop("base", None) if isinstance(tree, dict) else None
        if base is not None and not isinstance(base, str):
            raise ValueError(f"{path}: base must be the name of a file beside it, got {base!r}")
        found.append((path, tree))
        path = None if base is None else path.parent / base
    return found[::-1]


def config_from_dict(tree: Any, source: str) -> Config:
    """Config from plain containers of elsewhere (a checkpoint), through the same checks; `source` is for errors."""
    if "${" in str(tree):  # a stored config is resolved; an interpolation could only read this machine's environment
        raise ValueError(f"{source}: interpolations are not allowed in a stored config")
    node = OmegaConf.structured(Config)
    _fill(node, "", tree, source)
    return _finish(node, source)


def config_to_dict(config: Config) -> dict[str, Any]:
    """Plain containers, the inverse of `config_from_dict`."""
    return asdict(config)


def _finish(node: DictConfig, source: str) -> Config:
    try:
        config = OmegaConf.to_object(node)
    except OmegaConfBaseException as error:  # an interpolation that cannot be resolved
        raise ValueError(f"{source}: {_first_line(error)}") from None
    for problem in _problems(config):
        raise ValueError(f"{source}: {problem}")
    config.out = config.out or f"runs/{config.data.name}/{config.model.name}"
    return config


def _fill(node: DictConfig, prefix: str, tree: Any, source: str) -> None:
    if not isinstance(tree, dict):
        raise ValueError(f"{source}: {prefix or 'the config'} must be a mapping of keys to values, got {tree!r}")
    for key, value in tree.items():
        _set(node, f"{prefix}.{key}" if prefix else str(key), value, source)


def _set(node: DictConfig, path: str, value: Any, source: str) -> None:
    """Set one key, however deep; mappings are entered so that every error knows its whole path."""
    known = _resolve(path, source, node)
    if known is not None:
        _fill(node, path, value, source)
    elif path == "stages" and isinstance(value, list):
        node.stages = [StageConfig() for _ in value]
        for i, stage in enumerate(value):
            _fill(node, f"stages.{i}", stage, source)
    elif path == "model.args" and isinstance(value, dict):
        for key, item in value.items():
            OmegaConf.update(node, "model.args", {str(key): item}, force_add=True)
    else:
        try:
            OmegaConf.update(node, path, value, force_add=path.startswith("model.args."))
        except (OmegaConfBaseException, TypeError) as error:
            raise ValueError(f"{source}: {path}: {_first_line(error)}") from None


def _resolve(path: str, source: str, node: DictConfig) -> type | None:
    """The dataclass that stands at a dotted path, None for a value; KeyError if there is nothing of that name."""
    here: Any = Config
    parts = path.split(".")
    for depth, part in enumerate(parts):
        if parts[:depth] == ["model", "args"]:
            return None
        if parts[:depth] == ["stages"]:
            if not part.isdigit() or int(part) >= len(node.stages):
                raise KeyError(f"{source}: {path} is unknown: there are {len(node.stages)} stages, counted from 0")
            here = StageConfig
            continue
        types = {f.name: f.type for f in fields(here)} if is_dataclass(here) else {}
        if part not in types:
            nearest = difflib.get_close_matches(part, types, n=1, cutoff=0.5)
            hint = f"did you mean {nearest[0]}?" if nearest else f"known here: {', '.join(types) or 'nothing'}"
            raise KeyError(f"{source}: {path} is unknown; {hint}")
        here = types[part]
    return here if is_dataclass(here) else None


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


def _problems(config: Config) -> Iterable[str]:
    """What is out of range, in the user's words: what was needed, what came."""
    data, optim, schedule = config.data, config.optim, config.schedule
    ranges = [  # (key, value, lowest, highest); a value of None is always allowed
        ("data.train_limit", data.train_limit, 1, None),
        ("data.test_limit", data.test_limit, 1, None),
        ("data.val_fraction", data.val_fraction, 0, 1),
        ("data.pad", data.pad, 0, 1),
        ("data.workers", data.workers, 0, None),
        ("data.split", data.split, 1, 3),
        ("data.frames", data.frames, 1, None),
        ("data.seconds", data.seconds, 0, None),
        ("data.clips", data.clips, 1, None),
        ("data.scale", data.scale, 1, None),
        ("data.randaugment", data.randaugment, 0, 30),
        ("data.gamma", data.gamma, 0, None),
        ("optim.lr", optim.lr, 0, None),
        ("optim.weight_decay", optim.weight_decay, 0, None),
        ("optim.ssm_lr", optim.ssm_lr, 0, None),
        ("optim.clip_grad", optim.clip_grad, 0, None),
        ("schedule.warmup_epochs", schedule.warmup_epochs, 0, None),
        ("schedule.min_lr", schedule.min_lr, 0, optim.lr),
        ("batch_size", config.batch_size, 1, None),
        ("label_smoothing", config.label_smoothing, 0, 1),
        ("mixup", config.mixup, 0, None),
        ("cutmix", config.cutmix, 0, None),
        ("mixup_prob", config.mixup_prob, 0, 1),
        ("mixup_switch_prob", config.mixup_switch_prob, 0, 1),
        ("ema", config.ema, 0, 1),
        ("accumulate", config.accumulate, 1, None),
        ("log_every", config.log_every, 1, None),
        ("save_every_steps", config.save_every_steps, 1, None),
        ("save_every_minutes", config.save_every_minutes, 0, None),
        ("seed", config.seed, 0, 2**31 - 1),
    ]
    for i, stage in enumerate(config.stages):
        ranges += [(f"stages.{i}.size", stage.size, 1, None), (f"stages.{i}.epochs", stage.epochs, 1, None)]
        ranges += [(f"stages.{i}.bandlimit", stage.bandlimit, 0, None)]
        ranges += [(f"stages.{i}.sizes.{j}", size, 1, None) for j, size in enumerate(stage.sizes or [])]
    for key, value, low, high in ranges:
        if value is not None and not (low <= value and (high is None or value <= high) and value < float("inf")):
            yield f"{key} must be {f'in [{low}, {high}]' if high is not None else f'at least {low}'}, got {value}"
    for key, value, *_ in ranges:
        if (key in POSITIVE or key.endswith(".bandlimit")) and value == 0:
            yield f"{key} must be positive, got 0"
    default = DataConfig()
    if data.name in VIDEO_DATASETS:
        for key in IMAGE_KEYS:
            if getattr(data, key) != getattr(default, key):
                yield f"data.{key} is for images, and data.name is {data.name}"
        if config.cutmix:
            yield "cutmix is for images: it would paste a part of one clip's time into another; use mixup for videos"
        if data.motion not in (None, *MOTION):
            yield f"data.motion must be null, {' or '.join(MOTION)}, got {data.motion!r}"
        if data.motion and data.frames < 2:
            yield f"data.motion needs data.frames of at least 2, got {data.frames}"
        if data.pad:
            yield "data.pad is for images: clips are cropped at random after data.scale"
    else:
        for key in VIDEO_KEYS:
            if getattr(data, key) != getattr(default, key):
                yield f"data.{key} is for videos ({', '.join(VIDEO_DATASETS)}), and data.name is {data.name}"
        if data.pad and data.crop_scale:
            yield f"data.pad and data.crop_scale are two ways to crop at random: set one, got {data.pad} and {data.crop_scale}"
        try:
            data.transforms()
        except ValueError as error:
            yield f"data.{error}"
    if config.mixup_mode not in ("batch", "pair", "elem"):
        yield f"mixup_mode must be batch, pair or elem, got {config.mixup_mode!r}"
    whole = Config()
    for key in ("mixup_prob", "mixup_mode"):
        if not (config.mixup or config.cutmix) and getattr(config, key) != getattr(whole, key):
            yield f"{key} is of mixup and cutmix: set one of them"
    if not (config.mixup and config.cutmix) and config.mixup_switch_prob != whole.mixup_switch_prob:
        yield "mixup_switch_prob is between mixup and cutmix: set both"
    if config.init.inflate is not None and config.init.weights is not None:
        yield "init.inflate and init.weights are two beginnings: set one of them"
    if not config.stages:
        yield "stages must hold at least one stage such as {size: 16, epochs: 8}, got none"
    for i, stage in enumerate(config.stages):
        if stage.sizes is not None and (data.name in VIDEO_DATASETS or not stage.sizes):
            yield f"stages.{i}.sizes must be sizes of images, such as [8, 12, 16], got {stage.sizes} for {data.name}"
        if schedule.warmup_epochs >= stage.epochs:
            warmup = f"schedule.warmup_epochs={schedule.warmup_epochs:g}"
            yield f"{warmup} must be less than stages.{i}.epochs={stage.epochs}"
        if stage.resample not in (None, *MODEL_RESAMPLE):
            yield f"stages.{i}.resample must be null, {' or '.join(MODEL_RESAMPLE)}, got {stage.resample!r}"
    if config.amp not in ("none", "bf16", "fp16"):
        yield f"amp must be none, bf16 or fp16, got {config.amp!r}"
    if config.parallel not in ("ddp", "fsdp"):
        yield f"parallel must be ddp or fsdp, got {config.parallel!r}"
    if config.distribute_bn not in (None, "reduce"):
        yield f"distribute_bn must be null or reduce, got {config.distribute_bn!r}"
    for key in config.model.args:
        if key in RESERVED_ARGS:
            yield f"model.args.{key} cannot be set: {RESERVED_ARGS[key]}"
    channels = config.model.args.get("in_chans", 3)
    if type(channels) is not int or channels not in (1, 3):
        yield f"model.args.in_chans must be 3, for colour, or 1, for the luma of {data.name}, got {channels!r}"
