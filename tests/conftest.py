"""Fixtures that more than one folder of tests needs."""

import os
from collections.abc import Generator
from pathlib import Path

import numpy as np
import pytest
import torch
from _pytest.reports import BaseReport as Report

if not torch.cuda.is_available():
    os.environ.setdefault(
        "TRITON_INTERPRET", "1"
    )  # read where a kernel is decorated: before any module of them is imported

GOLDEN = Path(__file__).parent / "golden"
SHARED = Path(__file__).resolve().parents[2] / "shared"

# Why a test may skip even where S4ND_REQUIRE_ALL is set: there is nothing to test, whatever is installed.
NOTHING_TO_TEST = {
    "s4 has no modes to fold",
    "s4 has one discretisation",
    "timm's own ConvNeXt has no such method, and these no S4ND layers",
    "a fully convolutional network knows no size",
    "TorchScript knows neither a sum over a generator nor einops",
    "needs TRITON_INTERPRET=1: tensors are on the CPU",  # where there is a GPU, Triton's programs run on it
}


def required(report: Report) -> Report:
    """The report as it is; under S4ND_REQUIRE_ALL that of a test or module that skips for want of something is a failure."""
    if report.skipped and os.environ.get("S4ND_REQUIRE_ALL") and isinstance(report.longrepr, tuple):  # not an xfail
        reason = report.longrepr[2].removeprefix("Skipped: ")
        if reason not in NOTHING_TO_TEST:
            report.outcome, report.longrepr = "failed", f"S4ND_REQUIRE_ALL is set, and this skips: {reason}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, Report, Report]:
    return required((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, Report, Report]:
    return required((yield))


@pytest.fixture(scope="session")
def shared() -> Path:
    """Reference numbers and real data beside the checkout; the tests that need them skip where they are absent."""
    if not SHARED.is_dir():
        pytest.skip("needs the reference numbers and data sets in ../shared beside the checkout")
    return SHARED


@pytest.fixture(scope="session")
def golden():
    """Reads the arrays of one case of a file of tests/golden: golden("s4nd_1d", "bi") -> {name: array}."""

    def read(file: str, case: str) -> dict[str, np.ndarray]:
        with np.load(GOLDEN / f"{file}.npz", allow_pickle=False) as arrays:
            return {key[len(case) + 1 :]: arrays[key] for key in arrays.files if key.startswith(f"{case}/")}

    return read
