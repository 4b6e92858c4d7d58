"""Packaging: s4nd, with the folders models/ and train/ inside it as s4nd.models and s4nd.train.

The links s4nd/models and s4nd/train say the same to whoever imports from a checkout; to build and install, nothing needs them.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
INIT = HERE / "s4nd" / "__init__.py"
VERSION = re.search(r'^__version__ = "(.+)"$', INIT.read_text(encoding="utf-8"), re.MULTILINE).group(1)
# A package index shows the README alone: its links and images within the repository would lead nowhere there.
README = re.sub(
    r"(!?)\[([^\]]*)\]\((?!https://)[^)]*\)",
    lambda link: f"*Figure, in the repository: {link[2]}.*" if link[1] else link[2],
    (HERE / "README.md").read_text(encoding="utf-8"),
)
FOLDERS = {"s4nd": "s4nd", "s4nd.models": "models", "s4nd.train": "train"}

setup(
    name="s4nd",
    version=VERSION,
    description="S4ND: continuous global convolutions for images and videos, as PyTorch layers and timm models",
    long_description=README,
    long_description_content_type="text/markdown",
    author="The S4ND library's authors",
    project_urls={"Paper": "https://arxiv.org/abs/2210.06583"},
    keywords=[
        "state space models",
        "S4ND",
        "S4",
        "timm",
        "image classification",
        "video classification",
        "convolution",
    ],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3 :: Only",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=sorted(
        {*FOLDERS, *(f"{top}.{name}" for top, folder in FOLDERS.items() for name in find_packages(folder))}
    ),
    package_dir=FOLDERS,
    # py.typed is packed by setuptools itself, from 69 on.
    package_data={"s4nd": ["py.typed"], "s4nd.models": ["weights/*.safetensors", "weights/*.md"]},
    install_requires=[
        "torch>=2.7",  # the first with torch.compiler.is_exporting
        "torchvision>=0.22",
        "timm>=1.0.31",  # the first that records a model's input size
        "numpy>=1.26",
        "einops>=0.7",
        "omegaconf>=2.3",
        "pillow>=10.1",
        "pyyaml>=6.0.1",  # the first that can be built today
        "packaging>=22.0",
        "safetensors>=0.4.3",
        "tensorboard>=2.16.2",  # the first of its series that does not ask for nightly builds of TensorFlow
        "tqdm>=4.65",
    ],
    extras_require={
        "video": ["av>=17.0"],  # the first that converts frames in a given number of threads
        "keops": ["pykeops>=2.2"],
        "onnx": ["onnx>=1.20", "onnxscript>=0.7.2", "onnxruntime>=1.20"],  # with torch 2.7 too
        "wds": ["webdataset>=1.0.2"],
        "hf": ["datasets>=4.0"],  # the first that runs no code of a data set
        "demo": ["scikit-image>=0.22", "matplotlib>=3.8", "pyarrow>=15.0"],
        "wandb": ["wandb>=0.31"],  # with an end to waiting for the network
        "examples": [
            "scikit-image>=0.22",
            "matplotlib>=3.8",
            "av>=17.0",
            "onnx>=1.20",
            "onnxscript>=0.7.2",
            "onnxruntime>=1.20",
            "segmentation-models-pytorch>=0.5",
            "grad-cam>=1.5",
        ],
        "docs": ["mkdocs-material>=9.7", "mkdocstrings-python>=2.0", "ruff>=0.6"],  # ruff wraps signatures
        "dev": [
            "av>=17.0",
            "decord2>=3.0",
            "pytest>=8.0",
            "pytest-xdist>=3.5",
            "hypothesis>=6.100",
            "ruff>=0.6",
            "mypy>=2.4",
            "setuptools>=70.1",
            "packaging>=24.2",  # the first that knows the metadata of today's wheels
            "pykeops>=2.2",
            'triton>=3.3; platform_system == "Linux"',  # comes with torch, but not with its builds for CPUs
            "onnx>=1.20",
            "onnxscript>=0.7.2",
            "onnxruntime>=1.20",
            "wandb>=0.31",
            "webdataset>=1.0.2",
            "datasets>=4.0",
            "transformers>=5.0",
            "segmentation-models-pytorch>=0.5",
            "grad-cam>=1.5",
            "captum>=0.8",
            "torchao>=0.14",
        ],
    },
    entry_points={"console_scripts": ["s4nd = s4nd.train.cli:main"]},
)
