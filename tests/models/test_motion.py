"""A label that is only in the motion: clips of real photographs, stored as mp4 and read back like any video."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from s4nd import param_groups
from s4nd.models.s4nd_convnext import S4NDConvNeXt
from s4nd.models.s4nd_convnext3d import S4NDConvNeXt3d
from s4nd.train.data import Clips, ClipSampling, build_dataset

SPEEDS = {"pan left": 0.45, "pan right": 0.45, "rotate": 0.9, "zoom in": 0.9, "zoom out": 0.9}  # mean, per half clip
T, SIZE, FPS = 8, 32, 8
COUNTS = {"train": 2000, "val": 500}  # clips
MODEL = dict(depths=(1, 1, 1, 1), dims=(24, 32, 48, 64), num_classes=len(SPEEDS), ls_init_value=1.0)
LAYER = dict(img_size=SIZE, kernel="s4d", d_state=4, dt_min=0.1, dt_max=1.0)


def camera(photo: Tensor, motion: str, rng: np.random.Generator) -> Tensor:
    """(3, H, W) -> (T, 3, SIZE, SIZE) uint8, what a camera sees that moves over a photograph, mirrored at its edges for ever.

    The pose of a frame drawn at random has one distribution for all motions: its angle and place are uniform, and a clip that
    does not zoom is as large as a random frame of one that does. So no single frame tells the class.
    """
    t = torch.linspace(-1, 1, T)
    speed = SPEEDS[motion] * rng.uniform(0.8, 1.2)
    zoom = SPEEDS["zoom in"] * rng.uniform(0.8, 1.2) * t
    zoom = {"zoom in": -zoom, "zoom out": zoom}.get(motion, zoom[rng.integers(T)].expand(T))
    pan = {"pan left": -speed * t, "pan right": speed * t}.get(motion, torch.zeros(T))
    turn = speed * rng.choice([-1, 1]) * t if motion == "rotate" else torch.zeros(T)
    scale = rng.uniform(1 / 3, 1 / 2) * zoom.exp()  # of the photograph's extent
    angle = rng.uniform(-math.pi, math.pi) + turn
    x, y = rng.uniform(-2, 2, 2)  # the mirrored photographs repeat after 4
    c, s = scale * angle.cos(), scale * angle.sin()
    pose = torch.stack([c, -s, c * pan + x, s, c, s * pan + y], -1).view(T, 2, 3)
    grid = F.affine_grid(pose, (T, 3, SIZE, SIZE), align_corners=False)
    frames = F.grid_sample(photo.expand(T, -1, -1, -1), grid, padding_mode="reflection", align_corners=False)
    return frames.round().to(torch.uint8)


def read_photo(path: Path) -> Tensor:
    """(3, 96, 96), contrast made the same for all."""
    with Image.open(path) as image:
        pixels = torch.from_numpy(np.array(image.convert("RGB").resize((96, 96)))).permute(2, 0, 1).float()
    return (128 + 50 * (pixels - pixels.mean()) / pixels.std()).clamp(0, 255)


def write_mp4(av, path: Path, frames: Tensor):
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=FPS, width=SIZE, height=SIZE, pix_fmt="yuv420p")
        stream.options = {"crf": "18", "preset": "ultrafast", "threads": "1"}
        for frame in frames.permute(0, 2, 3, 1).numpy():
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        file.mux(stream.encode())


@pytest.fixture(scope="module")
def clips(shared, tmp_path_factory) -> dict[str, tuple[Tensor, Tensor]]:
    """The clips (n, 3, T, SIZE, SIZE) uint8 and labels (n,) of "train" and "val", from photographs of their own."""
    av = pytest.importorskip("av", reason="needs PyAV to write mp4: pip install av")
    pytest.importorskip("av", reason="needs PyAV to read mp4: pip install av")
    photos = shared / "data" / "imagefolder" / "imagenette"
    if not photos.is_dir():
        pytest.skip("needs the photographs of ../shared/data/imagefolder/imagenette")
    root, rng = tmp_path_factory.mktemp("motion"), np.random.default_rng(1)
    for split, count in COUNTS.items():
        seen = [read_photo(path) for path in sorted((photos / split).glob("*/*.JPEG"))[::4]]
        for motion in SPEEDS:
            (root / split / motion).mkdir(parents=True)
            for i in range(count // len(SPEEDS)):
                frames = camera(seen[rng.integers(len(seen))], motion, rng)
                write_mp4(av, root / split / motion / f"{i}.mp4", frames)
    sampling = ClipSampling(frames=T, seconds=T / FPS, clips=1)
    read = {}
    for split, name in (("train", "train"), ("val", "test")):
        views = Clips(build_dataset("video", root, name), SIZE, sampling, train=False)
        assert views.classes == list(SPEEDS)
        read[split] = torch.cat([views[i][0] for i in range(len(views))]), torch.from_numpy(views.labels)
    return read


def normalise(x: Tensor) -> Tensor:
    return x.float() / 64 - 2


def one_frame(x: Tensor) -> Tensor:
    """(B, 3, T, H, W) -> (B, 3, H, W), one at random of each clip."""
    return x[torch.arange(len(x)), :, torch.randint(T, (len(x),))]


def accuracy_after_training(model: nn.Module, clips, view=lambda x: x, epochs: int = 8, batch: int = 25) -> float:
    for layer in model.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d, nn.Conv3d)):
            # timm's weights are of standard deviation 0.02: in layers as narrow as these the MLPs would begin as nearly
            # linear functions that are nearly zero, and motion, which is a product of pixels, would take long to be seen.
            layer.reset_parameters()
    x, labels = clips["train"]
    optimizer = torch.optim.AdamW(param_groups(model, lr=4e-3, weight_decay=0.05))
    rates = [group["lr"] for group in optimizer.param_groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rates, total_steps=epochs * len(x) // batch, pct_start=0.2
    )
    for _ in range(epochs):
        for some in torch.randperm(len(x)).split(batch):
            optimizer.zero_grad()
            F.cross_entropy(model(normalise(view(x[some]))), labels[some]).backward()
            optimizer.step()
            schedule.step()
    x, labels = clips["val"]
    with torch.no_grad():
        return (model.eval()(normalise(view(x))).argmax(-1) == labels).float().mean().item()


@pytest.mark.slow
def test_the_video_model_learns_motion(clips):
    torch.manual_seed(0)
    assert accuracy_after_training(S4NDConvNeXt3d(num_frames=T, **MODEL, **LAYER), clips) > 0.9


@pytest.mark.slow
def test_single_frames_do_not_tell_the_motion(clips):
    """What the image model gets right is binomial with a mean of 1/5, whatever it learned."""
    torch.manual_seed(0)
    accuracy = accuracy_after_training(S4NDConvNeXt(**MODEL, **LAYER), clips, one_frame, epochs=4)
    assert accuracy < 0.2 + 3.5 * math.sqrt(0.2 * 0.8 / COUNTS["val"])
