"""S4ND layers in place of the convolutions of a timm model, which is then trained.

    python examples/replace_layers.py --out runs/examples

`s4nd.models.replace` swaps the depthwise convolutions of a small ConvNeXt of timm, in place; everything else stays timm's. It
learns from which of 14 photographs a crop of 64 x 64 was cut, and the new layers learn too: afterwards their kernels are others
than those that were drawn. training.png shows the loss.
"""

import argparse
import sys
from pathlib import Path

try:
    import skimage  # noqa: F401  has the photographs
    from matplotlib.figure import Figure
except ImportError as error:
    sys.exit(f'{error}: pip install "s4nd[examples]"')

import timm
import torch
from torch import Tensor, nn

import s4nd.models
from s4nd.train.data import Photos, Resized

SIZE, STEPS = 64, 120


def crops(split: str, count: int) -> tuple[Tensor, Tensor]:
    """Images (B, 3, SIZE, SIZE) from -1 to 1, and labels (B,): `count` of each photograph."""
    images, labels = zip(*map(Resized(Photos(split, count), SIZE).__getitem__, range(14 * count)), strict=True)
    return torch.stack(images) / 127.5 - 1, torch.tensor(labels)


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    return 100 * (model.eval()(images).argmax(1) == labels).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/examples"), help="folder for what is written")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    small = dict(depths=(1, 1, 1, 1), dims=(16, 32, 64, 128), ls_init_value=1.0)
    model = timm.create_model("convnext_atto", num_classes=14, **small)
    s4nd.models.replace(model, img_size=SIZE, kernel="s4d")
    layers = {name: module for name, module in model.named_modules() if isinstance(module, s4nd.S4ND)}
    drawn = {name: layer.kernel_lags(0, layer.base_size[0]).detach() for name, layer in layers.items()}

    (images, labels), test = crops("train", 40), crops("test", 20)
    before, losses = accuracy(model, *test), []
    optimizer = torch.optim.AdamW(s4nd.param_groups(model.train(), lr=6e-3, weight_decay=0.05))
    rates = [group["lr"] for group in optimizer.param_groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=STEPS)
    for _ in range(STEPS):
        batch = torch.randint(len(images), (32,))
        loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    print(f"accuracy {before:.1f} % before, {accuracy(model, *test):.1f} % after {STEPS} steps")
    for name, layer in layers.items():
        change = (layer.kernel_lags(0, layer.base_size[0]) - drawn[name]).norm() / drawn[name].norm()
        print(f"{name}: on a grid of {layer.base_size}, kernels changed by {100 * change.item():.0f} %")

    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot(losses)
    axes.set(xlabel="step", ylabel="loss")
    figure.savefig(out / "training.png")


if __name__ == "__main__":
    main()
