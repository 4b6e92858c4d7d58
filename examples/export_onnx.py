"""A model as plain convolutions in an ONNX file, at a size that it was not trained at.

    python examples/export_onnx.py --out runs/examples

The weights of the photographs were trained at 16 x 16. timm's `reparameterize_model` makes plain convolutions of the layers, at
the grid of the first image that they see: 32 x 32. onnxruntime then computes model.onnx without s4nd, for batches of any
length, and its logits are those of the model itself.
"""

import argparse
import sys
from pathlib import Path

try:
    import onnx
    import onnxruntime
    import onnxscript  # noqa: F401  which torch exports by
    import skimage  # noqa: F401  has the photographs
except ImportError as error:
    sys.exit(f'{error}: pip install "s4nd[examples]"')

import timm
import torch
from timm.data import create_transform, resolve_model_data_config
from timm.utils import reparameterize_model
from torchvision.transforms.v2.functional import to_pil_image

import s4nd.models  # noqa: F401  registers the models with timm
from s4nd.train.data import Photos

SIZE = 32


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/examples"), help="folder for what is written")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    model = timm.create_model("s4nd_iso_tiny.photos", pretrained=True).eval()
    transform = create_transform(**resolve_model_data_config(model) | {"input_size": (3, SIZE, SIZE)})
    crops = Photos("test", 20)
    images = torch.stack([transform(to_pil_image(crops[i][0])) for i in range(len(crops))])
    labels = torch.from_numpy(crops.labels)

    fused = reparameterize_model(model)
    fused(images[:2])  # the layers take this grid
    path = out / "model.onnx"
    options = dict(dynamo=True, verbose=False, external_data=False, dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.onnx.export(fused, (images[:2],), path, input_names=["images"], **options)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"images": images.numpy()})

    expected, found = model(images), torch.from_numpy(found)
    operators = sorted({node.op_type for node in onnx.load(path).graph.node})
    print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB, of {', '.join(operators)}")
    print(f"logits differ by {(found - expected).abs().max() / expected.abs().max():.1e} of the largest")
    for name, logits in (("torch", expected), ("onnxruntime", found)):
        print(f"{name}: accuracy {100 * (logits.argmax(1) == labels).float().mean():.1f} % at {SIZE} x {SIZE}")


if __name__ == "__main__":
    main()
