"""Segmentation by the U-Net of segmentation_models_pytorch, with an S4ND encoder, at the trained size and at twice that.

    python examples/segment.py --out runs/examples

The photograph is of coins; its mask is the watershed between what is surely background and surely coin. The network learns at
64 x 64, from crops of the left part, and is tested on crops of the right part, at 64 x 64 and at 128 x 128: there the
decoder's convolutions are held over trained pixels too (`s4nd.models.hold_convolutions`). The control resizes to 64 x 64.
segment.png has a crop, the mask found at 128 x 128 and the true one.
"""

import argparse
import sys
from pathlib import Path

try:
    import segmentation_models_pytorch as smp
    from scipy.ndimage import binary_fill_holes
    from skimage import data, filters, segmentation
except ImportError as error:
    sys.exit(f'{error}: pip install "s4nd[examples]"')

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import resize
from torchvision.utils import save_image

import s4nd.models  # registers the models with timm, and so with segmentation_models_pytorch

SIDE, SIZE, STEPS = 128, 64, 100  # crops of SIDE pixels are shown at SIZE x SIZE
LEFT = 240  # columns for training; the rest is for testing


def coins() -> Tensor:
    """(4, 303, 384): the photograph from -1 to 1, in three equal channels, and its mask."""
    picture = data.coins()
    surely = (picture < 30) + 2 * (picture > 150)
    mask = binary_fill_holes(segmentation.watershed(filters.sobel(picture), surely) == 2)
    return torch.stack([*[torch.from_numpy(picture) / 127.5 - 1] * 3, torch.from_numpy(mask).float()])


def crops(scene: Tensor, tops: list[int], lefts: list[int]) -> Tensor:
    return torch.stack([scene[:, y : y + SIDE, x : x + SIDE] for y, x in zip(tops, lefts, strict=True)])


def iou(logits: Tensor, masks: Tensor) -> float:
    """Of the coins, in %."""
    found, wanted = logits > 0, masks > 0.5
    return 100 * ((found & wanted).sum() / (found | wanted).sum()).item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/examples"), help="folder for what is written")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    scene = coins()
    torch.manual_seed(0)
    small = dict(depths=(1, 1, 1, 1), dims=(16, 32, 64, 128), decoder_channels=(64, 48, 32, 24, 16))
    model = smp.Unet("tu-s4nd_convnext_micro", encoder_weights=None, img_size=SIZE, **small)
    optimizer = torch.optim.AdamW(s4nd.param_groups(model, lr=3e-3, weight_decay=0.05))
    loss_of = smp.losses.DiceLoss("binary")
    for _ in range(STEPS):
        tops, lefts = torch.randint(scene.shape[1] - SIDE, (8,)), torch.randint(LEFT - SIDE, (8,))
        seen = resize(crops(scene, tops.tolist(), lefts.tolist()), [SIZE])
        loss = loss_of(model(seen[:, :3]), seen[:, 3:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    s4nd.models.hold_convolutions(model.eval(), SIZE)
    fine = crops(scene, [0, 60, 120, 175] * 2, [LEFT] * 4 + [384 - SIDE] * 4)
    coarse, masks = resize(fine, [SIZE]), fine[:, 3:]
    with torch.no_grad():
        at_size, at_side = model(coarse[:, :3]), model(fine[:, :3])
    print(f"were all of it coin: IoU {iou(torch.ones(()), masks):.1f} %")
    print(f"at {SIZE} x {SIZE}: IoU {iou(at_size, coarse[:, 3:]):.1f} %")
    print(f"at {SIDE} x {SIDE}: IoU {iou(at_side, masks):.1f} %, control: {iou(resize(at_size, [SIDE]), masks):.1f} %")
    shown = [(fine[0, :3] + 1) / 2, *(mask.expand(3, -1, -1).float() for mask in (at_side[0] > 0, masks[0]))]
    save_image(shown, out / "segment.png")


if __name__ == "__main__":
    main()
