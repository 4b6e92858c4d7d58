"""A model at sizes that it never saw, and what becomes of its kernels there.

    python examples/unseen_sizes.py --out runs/examples

The weights of the photographs were trained at 16 x 16 alone. The crops for testing are rendered at other sizes, from their own
pixels, and the model takes them as they are; the control is the same model on the same images, resized to 16 x 16. A layer's
kernel is a sum of products, K = sum_r k_r (x) k_r, of 1-D kernels over the lags from -(n - 1) to n - 1. These weights hold it:
on a grid of 48 each tap of the trained kernel is spread over its pixel, of 3 x 3 samples. kernels.png shows both.
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

import s4nd.models  # registers the models with timm
from s4nd.train.data import Photos
from s4nd.train.resolution import evaluate_sizes

TRAINED, SIZES = 16, (16, 32, 48)


def kernel(layer: s4nd.S4ND, size: int) -> torch.Tensor:
    """K by lag, (H, 2 size - 1, 2 size - 1)."""
    down, right = layer.kernel_lags(0, size), layer.kernel_lags(1, size)  # each (R, 1, H, 2 size - 1)
    return torch.einsum("rchi,rchj->hij", down, right)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/examples"), help="folder for what is written")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    model = timm.create_model("s4nd_iso_tiny.photos", pretrained=True).eval()
    crops = Photos("test", 20)
    itself = evaluate_sizes(model, crops, SIZES)
    resized = evaluate_sizes(model, crops, SIZES, control=TRAINED)
    for size in SIZES:
        own, control = 100 * itself[size], 100 * resized[size]
        print(f"at {size} x {size}: accuracy {own:.1f} %, resized to {TRAINED}: {control:.1f} %")

    layer = model.blocks[0].mixer.s4nd
    kernels = {size: kernel(layer, size) for size in (TRAINED, 48)}
    whole = kernels[48][:, 1:-1, 1:-1]  # the lags of 31 whole pixels of the trained grid
    summed = torch.nn.functional.avg_pool2d(whole, 3, divisor_override=1)
    error = (summed - kernels[TRAINED]).abs().max() / kernels[TRAINED].abs().max()
    print(f"kernels at 48, summed over 3 x 3 samples, are those at {TRAINED} but for {error:.1e} of the largest tap")

    figure = Figure(figsize=(6, 3.2), layout="constrained")
    for row, (size, K) in zip(figure.subplots(2, 4), kernels.items(), strict=True):
        for axes, head in zip(row, K, strict=False):
            reach = (17 * size // TRAINED - 1) // 2  # 17 pixels of the trained grid, lag 0 in the middle
            shown = head[size - 1 - reach : size + reach, size - 1 - reach : size + reach]
            top = shown.abs().max().item()
            axes.imshow(shown.numpy(), cmap="RdBu", vmin=-top, vmax=top)
            axes.set(xticks=[], yticks=[])
        row[0].set_ylabel(f"{size} x {size}")
    figure.savefig(out / "kernels.png")


if __name__ == "__main__":
    main()
