"""A training step on CUDA without a GPU (tests/fake_cuda.py): what it waits for, and what it copies.

The backward pass needs a device: gradients are put in its place.
"""

from types import SimpleNamespace

import pytest
import torch
from timm.data import Mixup
from timm.utils import ModelEmaV3
from torch import Tensor

from s4nd.train import engine
from s4nd.train.config import load_config
from s4nd.train.model import build_model, per_channel
from s4nd.train.optim import create_optimizer
from s4nd.train.processes import Place
from s4nd.train.requests import Requests
from s4nd.train.step import Step
from s4nd.train.task import TASKS
from tests.fake_cuda import fake_cuda, on_cuda

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def nothing_fake_is_kept():
    yield
    per_channel.cache_clear()


@pytest.fixture
def gradients_without_a_device(monkeypatch):
    """gradients_without_a_device(model): its parameters get gradients from a backward pass that is none."""

    def put(model):
        def backward(loss: Tensor) -> None:
            assert loss.is_cuda and loss.requires_grad
            for p in model.parameters():
                p.grad = torch.empty_like(p)

        monkeypatch.setattr(Tensor, "backward", backward)

    return put


def batch_of(task="single-label"):
    images = torch.empty(16, 3, 8, 8, dtype=torch.uint8)
    return images, torch.empty((16,) if task == "single-label" else (16, 2), dtype=torch.int64)


@pytest.fixture
def second_step(write_config, gradients_without_a_device):
    """second_step(*overrides, mix=None, task="single-label") -> Waits, of one step: the first leaves what is kept."""

    def run(*overrides, mix=None, task="single-label"):
        config = load_config(write_config("s4nd_iso_tiny"), list(overrides))
        model = build_model(config, 2)
        ema = None if config.ema is None else ModelEmaV3(model, decay=config.ema, use_warmup=True)
        gradients_without_a_device(model)
        with fake_cuda() as waits:
            on_cuda(model)
            if ema is not None:
                on_cuda(ema)
            optimizer = create_optimizer(model, config.optim)
            criterion = TASKS[task].criterion(label_smoothing=config.label_smoothing)
            step = Step(model, model, optimizer, criterion, config, CUDA, mix=mix, ema=ema)
            step(*batch_of(task), 0, 1, with_norm=True)
            waits.found.clear(), waits.uploads.clear()
            step(*batch_of(task), 0, 2, with_norm=True)
            assert all(x.is_cuda for x in (step.loss_sum, step.loss, step.grad_norm, step.bad_step))
        return waits

    return run


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["amp=bf16", "optim.opt=lamb"],
        ["optim.clip_grad=1.0", "ema=0.99", "channels_last=true", "label_smoothing=0.1"],
        ["model.args.in_chans=1"],
        ["stages.0.resample=hold"],
    ],
    ids=" ".join,
)
def test_a_step_copies_images_and_labels_and_waits_for_nothing(second_step, overrides):
    waits = second_step(*overrides)
    assert waits.found == [] and waits.uploads == [(16, 3, 8, 8), (16,)]


@pytest.mark.parametrize("task", ["single-label", "multi-label"])  # restoration has no labels to mix
@pytest.mark.parametrize("kind", [dict(mixup_alpha=0.8), dict(mixup_alpha=0.0, cutmix_alpha=1.0)], ids=str)
def test_mixing_waits_for_nothing(second_step, kind, task):
    mix = TASKS[task].mixup(2, prob=1.0, **kind)
    assert isinstance(mix, Mixup)
    waits = second_step(mix=mix, task=task)
    assert waits.found == [] and len(waits.uploads) == 2


def test_micro_batches_are_copied_each_and_wait_for_nothing(second_step):
    waits = second_step("accumulate=2")
    assert waits.found == [] and waits.uploads == 2 * [(8, 3, 8, 8), (8,)]


@pytest.fixture
def trainer(write_config, gradients_without_a_device, monkeypatch):
    """A run on the CPU that has begun; trainer.to_cuda(), where tensors are fake, takes it to the device, and makes batches of
    twelve steps and of three to judge by."""
    run = engine.Trainer(load_config(write_config("s4nd_iso_tiny"), ["log_every=4"]), CPU)
    run.enter(0)
    model = run.learner.model
    gradients_without_a_device(model)

    def to_cuda():
        on_cuda(model)
        run.place = run.learner.place = Place(CUDA, 0, 1)
        run.learner.optimizer.param_groups.clear()
        run.learner.optimizer.add_param_group({"params": list(model.parameters()), "lr_scale": 1.0})
        monkeypatch.setattr(run.feed, "batches", lambda *args: ((i + 1, *batch_of()) for i in range(12)))
        monkeypatch.setattr(run.feed, "judging", lambda *args: (batch_of() for _ in range(3)))
        run.train_step(*batch_of())  # what is kept is there
        run.step = 0

    run.to_cuda = to_cuda
    return run


def test_an_epoch_waits_where_steps_are_logged_and_at_its_end(trainer, tmp_path):
    """Of twelve steps the fourth, the eighth and the last are logged."""
    records, at = [], []
    log = SimpleNamespace(write_step=records.append)
    with fake_cuda() as waits:
        trainer.to_cuda()
        waits.found.clear()

        def between_steps():
            before = len(waits.found)
            trainer.between_steps(tmp_path, log, Requests())
            at.append((before, len(waits.found)))

        trainer.train_epoch(0, between_steps)
    read = [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3]
    assert [after for _, after in at] == read and [before for before, _ in at] == [0, *read[:-1]]
    assert [record["step"] for record in records] == [4, 8, 12]
    weights = len(list(trainer.learner.model.parameters()))
    assert len(waits.found) == 3 + 1 + weights + 1  # the last check, each weight's, and the sum of the losses


def test_a_test_waits_once_for_its_score(trainer):
    with fake_cuda() as waits:
        trainer.to_cuda()
        waits.found.clear(), waits.uploads.clear()
        trainer.test()
    assert waits.uploads == 3 * [(16,), (16, 3, 8, 8)]
    assert waits.found == ["aten._to_copy.default, cuda to cpu"]
