"""A model of images becomes a model of clips, and classifies clips without having seen one.

    python examples/inflate.py --out runs/examples

A small S4ND-ConvNeXt learns from which of 14 photographs a crop was cut. `s4nd.models.inflate` fills its counterpart over
(time, height, width) with these weights: kernels over space are copied, those over time stay as they begin. Clips are views
that move over crops for testing; clip.png is one. The image model is asked for their middle frames, the video model for the
whole clips, before it is filled and after.
"""

import argparse
import sys
from pathlib import Path

try:
    import skimage  # noqa: F401  has the photographs
except ImportError as error:
    sys.exit(f'{error}: pip install "s4nd[examples]"')

import timm
import torch
from torch import Tensor, nn
from torchvision.utils import save_image

import s4nd.models
from s4nd.train.data import Photos, Resized

SIZE, FRAMES, STEPS = 32, 8, 100
SMALL = dict(num_classes=14, img_size=SIZE, depths=(1, 1, 1, 1), dims=(16, 32, 64, 128))


def crops(split: str, count: int, size: int) -> tuple[Tensor, Tensor]:
    """Images (B, 3, size, size) from -1 to 1, and labels (B,): `count` of each photograph."""
    images, labels = zip(*map(Resized(Photos(split, count), size).__getitem__, range(14 * count)), strict=True)
    return torch.stack(images) / 127.5 - 1, torch.tensor(labels)


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, labels: Tensor) -> float:
    return 100 * (model.eval()(x).argmax(1) == labels).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/examples"), help="folder for what is written")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    image_model = timm.create_model("s4nd_convnext_micro", **SMALL)
    images, labels = crops("train", 40, SIZE)
    optimizer = torch.optim.AdamW(s4nd.param_groups(image_model, lr=4e-3, weight_decay=0.05))
    for _ in range(STEPS):
        batch = torch.randint(len(images), (32,))
        loss = nn.functional.cross_entropy(image_model(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    pictures, labels = crops("test", 20, SIZE + FRAMES)
    views = [pictures[:, :, t : t + SIZE, t : t + SIZE] for t in range(FRAMES)]  # down and to the right
    clips = torch.stack(views, dim=2)  # (B, 3, FRAMES, SIZE, SIZE)
    save_image(clips[40].transpose(0, 1), out / "clip.png", normalize=True, value_range=(-1, 1))
    print(f"image model: accuracy {accuracy(image_model, views[FRAMES // 2], labels):.1f} % of frames")
    video_model = timm.create_model("s4nd_convnext3d_micro", num_frames=FRAMES, **SMALL)
    print(f"video model as drawn: accuracy {accuracy(video_model, clips, labels):.1f} % of clips")
    report = s4nd.models.inflate(image_model, video_model)
    print(f"video model inflated: accuracy {accuracy(video_model, clips, labels):.1f} % of clips")
    print(", ".join(f"{len(names)} tensors {kind}" for kind, names in report._asdict().items()))


if __name__ == "__main__":
    main()
