"""The classes that `replace` looks for against the installed timm, and against one that lacks some."""

import os
import subprocess
import sys
from pathlib import Path

from s4nd.models.replaceable import ATTENTION, BLOCKS, timm_classes


def test_every_class_of_timm_that_is_named_exists():
    assert len(timm_classes([*ATTENTION, *BLOCKS])) == len(ATTENTION) + len(BLOCKS)


def test_a_timm_without_some_of_these_classes_imports_and_replaces():
    """Their modules cannot be imported, or lack them."""
    code = """
import sys, timm, timm.layers, timm.models
for name in ("beit", "byobnet", "cait", "eva", "metaformer", "repvit", "vision_transformer_relpos"):
    sys.modules["timm.models." + name] = None
del timm.layers.DiffAttention, sys.modules["timm.models.fastvit"].MobileOneBlock
import s4nd.models
for name, target in (("test_convnext", "depthwise"), ("test_vit", "attention")):
    model = s4nd.models.replace(timm.create_model(name), target, img_size=160)
    assert any(isinstance(m, s4nd.S4ND) for m in model.modules())
"""
    root = Path(__file__).parents[2]
    env = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
