"""torchvision's detectors over timm's features of S4ND-ConvNeXts: a training step, and boxes for images of several sizes."""

from collections import OrderedDict

import pytest
import timm
import torch
from torch import nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from tests.small import layers

SMALL = dict(depths=(1, 1, 1, 1), dims=(8, 16, 16, 24), d_state=4, img_size=64, ls_init_value=1.0)
ENCODERS = {"s4nd_convnext_micro": dict(SMALL, stem_channels=4), "s4nd_convnext_tiny": SMALL}
DETECTORS = {FasterRCNN: "rpn_anchor_generator", RetinaNet: "anchor_generator"}

pytestmark = [pytest.mark.parametrize("detector", DETECTORS), pytest.mark.parametrize("name", ENCODERS)]


class Backbone(nn.Module):
    """timm's features through a pyramid; what torchvision's detectors ask for is `out_channels` and a dict of maps."""

    def __init__(self, name: str, out_channels: int = 16, **args):
        super().__init__()
        self.body = timm.create_model(name, features_only=True, **args)
        self.fpn = FeaturePyramidNetwork(self.body.feature_info.channels(), out_channels, LastLevelMaxPool())
        self.out_channels = out_channels

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.fpn(OrderedDict((str(i), f) for i, f in enumerate(self.body(x))))


def network(detector, name):
    torch.manual_seed(0)
    anchors = AnchorGenerator(tuple((n,) for n in (8, 16, 32, 64, 128)), ((0.5, 1.0, 2.0),) * 5)
    backbone = Backbone(name, **ENCODERS[name])
    return detector(backbone, num_classes=3, min_size=64, max_size=96, **{DETECTORS[detector]: anchors})


def batch():
    """Two images of different sizes, of which torchvision makes one batch, and their boxes."""
    draw = torch.Generator().manual_seed(0)
    images = [torch.rand(3, 64, 80, generator=draw), torch.rand(3, 70, 60, generator=draw)]
    boxes = [[[5.0, 5.0, 40.0, 40.0], [10.0, 20.0, 30.0, 60.0]], [[0.0, 0.0, 30.0, 30.0]]]
    labels = [[1, 2], [1]]
    return images, [dict(boxes=torch.tensor(b), labels=torch.tensor(n)) for b, n in zip(boxes, labels, strict=True)]


def test_training_step_has_finite_losses_and_moves_the_whole_backbone(name, detector):
    net, (images, targets) = network(detector, name), batch()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    before = {n: p.detach().clone() for n, p in net.backbone.body.named_parameters()}
    losses = net(images, targets)
    assert losses and all(loss.isfinite() and loss > 0 for loss in losses.values())
    sum(losses.values()).backward()
    grads = {n: p.grad for n, p in net.backbone.body.named_parameters()}
    assert [n for n, grad in grads.items() if grad is None or not grad.isfinite().all()] == []
    optimizer.step()
    moved = {n for n, p in net.backbone.body.named_parameters() if not torch.equal(p, before[n])}
    parts = {layer.partition(".blocks")[0] for layer in layers(net.backbone.body)}
    assert len(parts) > 3 and all(any(n.startswith(part) for n in moved) for part in parts)


@torch.no_grad()
def test_boxes_lie_in_their_images(name, detector):
    net, (images, _) = network(detector, name).eval(), batch()
    net.score_thresh = 0.0  # RetinaNet's scores before training are below any
    found = net(images)
    for image, boxes in zip(images, found, strict=True):
        height, width = image.shape[1:]
        corners = boxes["boxes"]
        assert len(corners) > 0 and corners.isfinite().all()
        assert (corners >= 0).all() and (corners <= torch.tensor([width, height, width, height])).all()


@torch.no_grad()
def test_detector_gets_timms_features(name, detector):
    net, (images, _) = network(detector, name).eval(), batch()
    timms = timm.create_model(name, features_only=True, **ENCODERS[name]).eval()
    timms.load_state_dict(net.backbone.body.state_dict())
    x = net.transform(images)[0].tensors
    seen = []
    net.backbone.body.register_forward_hook(lambda module, args, features: seen.append(features))
    net(images)
    expected = timms(x)
    assert len(expected) == 4 and all(map(torch.equal, seen[0], expected))
    assert [x.shape[2] // f.shape[2] for f in expected] == timms.feature_info.reduction() == [4, 8, 16, 32]
