"""A timm model by name, fine-tuned by timm's own functions.

    python examples/fine_tune.py --out runs/examples

The weights of CIFAR-10 that ship with the package learn from which of 14 photographs a crop was cut, by 20 crops of each; the
same network as drawn learns beside it. The 280 crops for testing share no pixel with those. timm makes model, transforms,
optimizer and schedule; `s4nd.param_groups` gives the state-space parameters their small learning rate. timm also reads what is
written, fine_tuned.safetensors.
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
from safetensors.torch import save_file
from timm.data import create_transform, resolve_model_data_config
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms.v2.functional import to_pil_image

import s4nd.models  # registers the models with timm
from s4nd.train.data import Photos

EPOCHS, LR = 3, 4e-3


def batches(split: str, crops: int, transform, shuffle: bool = False) -> DataLoader:
    def shown(items):
        images, labels = zip(*items, strict=True)
        return torch.stack([transform(to_pil_image(image)) for image in images]), torch.tensor(labels)

    return DataLoader(Photos(split, crops), batch_size=32, shuffle=shuffle, collate_fn=shown)


@torch.no_grad()
def accuracy(model: nn.Module, test: DataLoader) -> float:
    model.eval()
    return 100 * torch.cat([model(images).argmax(1) == labels for images, labels in test]).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/examples"), help="folder for what is written")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for start, pretrained in (("drawn anew", False), ("of CIFAR-10", True)):
        torch.manual_seed(0)
        model = timm.create_model("s4nd_iso_tiny.cifar10", pretrained=pretrained, num_classes=14, img_size=16)
        config = resolve_model_data_config(model)
        augment = create_transform(**config, is_training=True, scale=(0.5, 1), color_jitter=None)
        train = batches("train", 20, augment, shuffle=True)
        test = batches("test", 20, create_transform(**config))
        before = accuracy(model, test)
        optimizer = create_optimizer_v2(s4nd.param_groups(model, lr=LR, weight_decay=0.05), opt="adamw", lr=LR)
        by_steps = dict(step_on_epochs=False, updates_per_epoch=len(train))
        schedule, epochs = create_scheduler_v2(optimizer, num_epochs=EPOCHS, warmup_epochs=0, **by_steps)
        for epoch in range(epochs):
            model.train()
            for step, (images, labels) in enumerate(train, epoch * len(train) + 1):
                loss = nn.functional.cross_entropy(model(images), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step_update(step)
        print(f"weights {start}: accuracy {before:.1f} % before, {accuracy(model, test):.1f} % after {epochs} epochs")
    save_file(model.state_dict(), out / "fine_tuned.safetensors")


if __name__ == "__main__":
    main()
