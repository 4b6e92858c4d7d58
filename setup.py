"""Packaging: s4nd, with models/ and train/ inside it as s4nd.models and s4nd.train through the symlinks in s4nd/."""

import re
from pathlib import Path

from setuptools import find_packages, setup

INIT = Path(__file__).with_name("s4nd") / "__init__.py"
VERSION = re.search(r'^__version__ = "(.+)"$', INIT.read_text(encoding="utf-8"), re.MULTILINE).group(1)

setup(
    name="s4nd",
    version=VERSION,
    description="S4ND: continuous global convolutions for images and videos, as PyTorch layers and timm models",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=find_packages(include=["s4nd", "s4nd.*"]),
    package_data={"s4nd.models": ["weights/*.safetensors", "weights/*.md"]},
    install_requires=[
        "torch>=2.7",  # the first with torch.compiler.is_exporting
        "torchvision>=0.22",
        "timm>=1.0.31",  # the first that records a model's input size
        "numpy>=1.26",
        "einops>=0.7",
        "omegaconf>=2.3",
        "pillow>=10.1",
        "pyyaml>=6.0",
        "packaging>=22.0",
        "safetensors>=0.4.3",
        "tensorboard>=2.16",
        "tqdm>=4.65",
    ],
    extras_require={
        "video": ["av>=17.0"],  # the first that converts frames in a given number of threads
        "keops": ["pykeops>=2.2"],
        "onnx": ["onnx>=1.17", "onnxscript>=0.3", "onnxruntime>=1.20"],
        "wds": ["webdataset>=1.0"],
        "hf": ["datasets>=4.0"],  # the first that runs no code of a data set
        "demo": ["scikit-image>=0.22", "matplotlib>=3.8", "pyarrow>=15.0"],
        "wandb": ["wandb>=0.31"],  # with an end to waiting for the network
        "dev": [
            "av>=17.0",
            "decord2>=3.0",
            "pytest>=8.0",
            "pytest-xdist>=3.5",
            "hypothesis>=6.100",
            "ruff>=0.6",
            "mypy>=2.4",
            "setuptools>=70.1",
            "pykeops>=2.2",
            'triton>=3.3; platform_system == "Linux"',  # comes with torch, but not with its builds for CPUs
            "onnx>=1.17",
            "onnxscript>=0.3",
            "onnxruntime>=1.20",
            "wandb>=0.31",
            "webdataset>=1.0",
            "datasets>=4.0",
        ],
    },
    entry_points={"console_scripts": ["s4nd = s4nd.train.cli:main"]},
)
