"""Grad-CAM over a shipped model: where in a picture it sees what.

    python examples/grad_cam.py --out runs/examples

Pictures of two halves, each of another photograph, at four times the size at which the weights were trained. For each half's
class the map of Grad-CAM should lie in that half. grad_cam.png lays the maps of one picture over it.
"""

import argparse
import sys
from pathlib import Path

try:
    import skimage  # noqa: F401  has the photographs
    from matplotlib.figure import Figure
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.image import show_cam_on_image
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
except ImportError as error:
    sys.exit(f'{error}: pip install "s4nd[examples]"')

import timm
import torch
from torchvision.transforms.v2.functional import normalize

import s4nd.models  # noqa: F401  registers the models with timm
from s4nd.train.data import Photos, Resized

SIZE = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/examples"), help="folder for what is written")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    model = timm.create_model("s4nd_iso_tiny.photos", pretrained=True).eval()
    config = model.pretrained_cfg
    crops, half = Resized(Photos("test", 2), SIZE), SIZE // 2
    pictures = torch.stack([crops[2 * label][0] for label in range(14)]) / 255  # one of each class
    pairs = [(left, right) for left in range(14) for right in (left - 1, left - 5)]
    images = torch.stack([torch.cat([pictures[a, :, :, :half], pictures[b, :, :, half:]], dim=2) for a, b in pairs])
    x = normalize(images, config["mean"], config["std"])
    with GradCAM(model=model, target_layers=[model.blocks[-1]]) as cam:
        of_left, of_right = (cam(x, [ClassifierOutputTarget(labels[side]) for labels in pairs]) for side in (0, 1))
    in_left = of_left[:, :, :half].sum((1, 2)) / of_left.sum((1, 2))
    in_right = of_right[:, :, half:].sum((1, 2)) / of_right.sum((1, 2))
    for side, share in (("left", in_left), ("right", in_right)):
        kept = f"{100 * share.mean():.0f} % lies in that half, in {(share > 0.5).sum()} of {len(pairs)} most of it"
        print(f"maps of the {side} half's class: {kept}")

    figure, shown = Figure(figsize=(6.6, 2.4), layout="constrained"), 10  # grass and coins
    picture = images[shown].permute(1, 2, 0).numpy()
    maps = [show_cam_on_image(picture, found[shown], use_rgb=True) for found in (of_left, of_right)]
    titles = ("picture", *(config["label_names"][label] for label in pairs[shown]))
    for axes, image, title in zip(figure.subplots(1, 3), (picture, *maps), titles, strict=True):
        axes.imshow(image)
        axes.set(xticks=[], yticks=[], title=title)
    figure.savefig(out / "grad_cam.png")


if __name__ == "__main__":
    main()
