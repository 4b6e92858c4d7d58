"""Fixtures that more than one folder of tests needs."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault(
        "TRITON_INTERPRET", "1"
    )  # read where a kernel is decorated: before any module of them is imported

GOLDEN = Path(__file__).parent / "golden"
SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Reference numbers and real data beside the checkout; the tests that need them skip where they are absent."""
    if not SHARED.is_dir():
        if os.environ.get("S4ND_REQUIRE_SHARED"):
            pytest.fail(f"S4ND_REQUIRE_SHARED is set but {SHARED} is absent")
        pytest.skip("needs the reference numbers and data sets in ../shared beside the checkout")
    return SHARED


@pytest.fixture(scope="session")
def golden():
    """Reads the arrays of one case of a file of tests/golden: golden("s4nd_1d", "bi") -> {name: array}."""

    def read(file: str, case: str) -> dict[str, np.ndarray]:
        with np.load(GOLDEN / f"{file}.npz", allow_pickle=False) as arrays:
            return {key[len(case) + 1 :]: arrays[key] for key in arrays.files if key.startswith(f"{case}/")}

    return read
