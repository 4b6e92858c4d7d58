"""The keys of a config, with their types and defaults."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..data import VIDEO_DATASETS, ClipSampling, ImageTransforms, Reading, Rendering


@dataclass
class DataConfig:
    """What to train and test on, and its augmentation."""

    name: str = "photos"
    root: str | None = None  # folder or file of the data set, of wds also a URL; None where the data set needs none
    train_limit: int | None = None  # use this many images at most
    test_limit: int | None = None
    val_fraction: float | None = (
        None  # of the training images, kept for choosing best.safetensors; None: the test split chooses
    )
    hflip: bool = True
    pad: float = 0.0  # random crop after padding by this fraction of the size
    workers: int = 0  # loader processes per training process, which live as long as the stage
    prefetch: int = 2  # batches that each of them has ready
    # For wds/NAME, hfds/NAME and hfids/NAME only, in timm's words; see data/readers.py:
    train_split: str | None = None  # None: train
    test_split: str | None = None  # None: test, validation or val
    class_map: str | None = None  # text file with the name of a class in each line
    input_key: str = "image"  # column of the images, not of wds
    target_key: str = "label"  # column of the classes, not of wds
    shuffle: int = 8192  # samples of a stream that are shuffled together, not of hfds
    # For images only: standard deviation of white noise, in grey levels of 255. With it the task is to restore the images,
    # whatever their labels are; see data/noisy.py and task/restoration.py.
    noise: float | None = None
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

    def reading(self) -> Reading:
        """What to read of a data set of timm's readers."""
        return Reading(**{f.name: getattr(self, f.name) for f in fields(Reading)})

    def sampling(self) -> ClipSampling | None:
        """What becomes of a video; None for images."""
        if self.name not in VIDEO_DATASETS:
            return None
        return ClipSampling(**{f.name: getattr(self, f.name) for f in fields(ClipSampling)})

    def rendering(self, normalisation: tuple[Sequence[float], Sequence[float]]) -> Rendering:
        """What becomes of images or videos on their way to a model whose input has this mean and std, (C,) each."""
        return Rendering(self.hflip, self.pad, self.transforms(), normalisation, self.sampling(), self.noise)


@dataclass
class ModelConfig:
    """A model of timm's registry, by name; `args` go to `timm.create_model`."""

    name: str = "s4nd_iso_tiny"
    args: dict[str, Any] = field(default_factory=dict)


@dataclass
class InitConfig:
    """Weights to begin with: a checkpoint of `s4nd train`, safetensors with a model's state dict, such as timm's, or a tag of
    those that ship with the package, such as s4nd_iso_tiny.cifar10."""

    inflate: str | None = None  # of an image model, for a video model; see models/inflate.py
    weights: str | None = None  # of the same model; a classifier of classes of other names stays as drawn


@dataclass
class StageConfig:
    """A stretch of the training at one resolution, with a learning-rate schedule of its own."""

    size: int = 16  # pixels per side, at which the model counts as trained
    sizes: list[int] | None = None  # of the training batches, one drawn for each; None: size
    epochs: int = 1
    bandlimit: float | None = None  # in units of the Nyquist frequency of the coarser grid; None keeps every mode
    # Kernels at other sizes, see s4nd.set_resample; None: as the model has it. A stage of another size trains the kernels of
    # its own grid, into which those of the stage before are re-sampled; with "hold" or the like it goes on with theirs.
    resample: str | None = None


@dataclass
class OptimConfig:
    """The optimizer; the state-space parameters have a learning rate of their own and no weight decay."""

    opt: str = "adamw"  # of torch and timm, by timm's name
    args: dict[str, Any] = field(default_factory=dict)  # of it, such as betas or momentum
    lr: float = 1e-3
    weight_decay: float = 0.05
    ssm_lr: float | None = None  # None: min(lr, 1e-3)
    layer_decay: float | None = None  # each layer's rates by this times those of the layer above; None: all alike
    clip_grad: float | None = None  # largest norm of the gradient


@dataclass
class ScheduleConfig:
    """Linear warm-up from warmup_lr, then a schedule of timm's, by the step; begins anew with each stage.

    Rates are those of the groups at optim.lr; other groups keep their ratio to them.
    """

    sched: str = "cosine"  # cosine, tanh, poly, step, multistep, wsd, rsqrt or constant
    warmup_epochs: float = 0.0
    warmup_lr: float = 0.0  # at the first step
    min_lr: float = 0.0  # at the end of cosine, tanh, poly, wsd and rsqrt
    cooldown_epochs: float = 0.0  # the last ones of the stage, at min_lr
    decay_rate: float | None = None  # factor of step and multistep, power of poly
    decay_epochs: float | None = None  # between the falls of step, after the warm-up; of the fall of wsd and rsqrt
    decay_milestones: list[float] | None = None  # of multistep, in epochs of the stage


@dataclass
class Config:
    """A whole run."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    stages: list[StageConfig] = field(default_factory=list)
    init: InitConfig = field(default_factory=InitConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    batch_size: int = 128  # images per step, over all processes and micro-batches
    label_smoothing: float = 0.0
    mixup: float = 0.0  # alpha of mixup; 0 is off
    cutmix: float = 0.0  # alpha of cutmix; 0 is off
    mixup_prob: float = 1.0  # of mixing at all
    mixup_switch_prob: float = 0.5  # of cutmix where both are on
    mixup_mode: str = "batch"  # what is drawn once: batch, pair or elem
    ema: float | None = None  # decay per step of the averaged weights; None is off
    amp: str = "none"  # none, bf16 or fp16
    parallel: str = "ddp"  # of several processes: each holds all weights, or "fsdp", its shard of them
    accumulate: int = 1  # micro-batches of a batch, whose gradients are added before a step: as many times less memory
    channels_last: bool = False  # memory layout of images and weights; faster for convolutions on GPUs and some CPUs
    compile: bool = False  # torch.compile
    distribute_bn: str | None = None  # of batch norms, statistics of the first process; "reduce": the mean over them
    log_every: int = 50  # steps between two records of steps.jsonl
    wandb: str | None = None  # project of Weights & Biases that gets what the logs get; needs the extra "wandb"
    save_every_steps: int | None = None  # within an epoch; None: at the end of each epoch alone
    save_every_minutes: float | None = None
    seed: int = 0
    out: str | None = None  # run directory; None: runs/<data.name>/<model.name>
    resume: str | None = None  # None, "auto" or another run directory
    device: str = "auto"

    @property
    def folder(self) -> Path:
        """The run directory, which `load_config` chooses where the file does not."""
        if self.out is None:
            raise ValueError("out must name the run directory, got None: load_config chooses one")
        return Path(self.out)
