"""Runs of several processes, against those of one."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch

from s4nd.train.checkpoint import load_model
from s4nd.train.cli import main
from s4nd.train.config import load_config
from s4nd.train.engine import Trainer, train


def run_processes(count, path, overrides, folders):
    """`s4nd train` in `count` processes that meet as torchrun's do, each in a working directory of its own."""
    return run_commands(count, ["train", str(path), *overrides], folders)


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


ALONE = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])}


def run_commands(count, command, folders):
    where = ALONE | {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "s4nd.train.cli", *command],
            env=os.environ | where | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, folder in enumerate(folders)
    ]
    return [(process.communicate(timeout=300), process.returncode) for process in processes]


def weights(folder):
    state = torch.load(folder / "last.state", weights_only=True)
    return state, {**state["model"], **{f"ema.{key}": value for key, value in (state["ema"] or {}).items()}}


WHOLE = [
    "stages=[{size: 8, epochs: 1, bandlimit: 0.5}, {size: 10, epochs: 2}]",
    *("ema=0.9", "mixup=0.5", "cutmix=1.0", "label_smoothing=0.1", "data.pad=0.125", "optim.clip_grad=1.0"),
    *("schedule.warmup_epochs=0.5", "batch_size=16"),
]


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["accumulate=2", "channels_last=true"], ["parallel=fsdp", "accumulate=2"]])
def test_two_processes_train_what_one_does_with_the_same_global_batch(write_config, tmp_path, options):
    """S4ND with stages, averaging and mixup; float32 sums in another order are off by 1e-6 or so of a gradient."""
    path = write_config("s4nd_iso_tiny", d_state=4)
    overrides = [*WHOLE, *options, f"out={tmp_path / 'two'}"]
    for (out, err), status in run_processes(2, path, overrides, [tmp_path, tmp_path]):
        assert status == 0, out + err
    train(load_config(path, [*WHOLE, f"out={tmp_path / 'one'}"]))
    (one, a), (two, b) = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert one["step"] == two["step"] == 9 and a.keys() == b.keys()
    start = weights_at_start(path)
    moved = {key: (a[key].double() - start[key].double()).abs().max().item() for key in start}
    for key, value in start.items():
        if value.is_floating_point():
            # float32: a step of AdamW changes by the relative error of the gradient, 1e-6 or so, and little more.
            assert (a[key] - b[key]).abs().max() <= 1e-3 * moved[key] + 1e-7, key
    logs = [map(json.loads, (tmp_path / run / "log.jsonl").read_text().splitlines()) for run in ("one", "two")]
    for one, two in zip(*logs, strict=True):
        assert one["train_loss"] == pytest.approx(two["train_loss"], rel=1e-5)


def weights_at_start(path):
    trainer = Trainer(load_config(path, WHOLE), torch.device("cpu"))
    return trainer.learner.model.state_dict()


@pytest.mark.slow
def test_first_process_decides_what_is_continued_where_there_is_no_disk_in_common(write_config, tmp_path):
    path = write_config("s4nd_iso_tiny", d_state=4)
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    common = ["out=run", "ema=0.9", "batch_size=16"]
    for more in (["stages.0.epochs=1"], ["stages.0.epochs=2", "resume=auto"]):
        for (out, err), status in run_processes(2, path, [*common, *more], folders):
            assert status == 0, out + err
    assert not (folders[1] / "run" / "last.state").exists()
    for more in (["stages.0.epochs=1"], ["stages.0.epochs=2", "resume=auto"]):
        alone = train(load_config(path, [*common, *more, f"out={tmp_path / 'alone'}"]))
    (continued, a), (_, b) = weights(folders[0] / "run"), weights(alone)
    assert continued["epoch"] == 2
    for key, value in a.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, b[key], rtol=1e-3, atol=1e-4)
    for (_, err), status in run_processes(2, path, [*common, "resume=nowhere", "out=other"], folders):
        assert status == 2 and "no run to resume in nowhere" in err


@pytest.mark.slow
def test_two_machines_of_which_one_loses_its_process_and_has_no_disk_in_common(write_config, tmp_path):
    """An agent of torchrun for each, which meet by its rendezvous, and again after the kill."""
    path = write_config("s4nd_iso_tiny", d_state=4)
    folders = [tmp_path / "first", tmp_path / "second"]
    agent = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", "2"]
    agent += ["--rdzv-backend", "c10d", "--rdzv-id", "run", "--rdzv-endpoint", f"localhost:{free_port()}"]
    command = [
        sys.executable,
        *agent,
        "-m",
        "s4nd.train",
        str(path),
        *WHOLE,
        "save_every_steps=1",
        "resume=auto",
        "out=run",
    ]
    agents = []
    for folder in folders:
        folder.mkdir()
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        agents.append(subprocess.Popen(command, env=os.environ | ALONE, cwd=folder, **options))
    state, deadline = folders[0] / "run" / "last.state", time.monotonic() + 120
    other = folders[1] / "run" / "last.state"  # which of them is the first, they agree on themselves
    while not (state.exists() or other.exists()) and time.monotonic() < deadline:
        time.sleep(0.05)
    children = subprocess.run(["pgrep", "-P", str(agents[1].pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(children[-1]), signal.SIGKILL)
    for process in agents:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, out + err
    (written,) = [folder for folder in folders if (folder / "run" / "last.state").exists()]
    assert not [*(folders[written == folders[0]]).rglob("*.safetensors")]
    for (out, err), status in run_processes(2, path, [*WHOLE, f"out={tmp_path / 'left'}"], [tmp_path] * 2):
        assert status == 0, out + err
    (one, a), (two, b) = weights(written / "run"), weights(tmp_path / "left")
    assert one["step"] == two["step"] and all(torch.equal(a[key], b[key]) for key in b)


@pytest.mark.slow
def test_divided_run_goes_on_bit_for_bit_from_a_state_of_whole_weights(write_config, tmp_path):
    path, out = write_config("s4nd_iso_tiny", d_state=4), tmp_path / "run"
    divided = [*WHOLE, "parallel=fsdp", "save_every_steps=2", "amp=fp16", f"out={out}"]
    for (said, err), status in run_processes(2, path, divided, [tmp_path] * 2):
        assert status == 0, said + err
    _, once = weights(out)
    (out / "previous.state").replace(out / "last.state")  # of step 8 of 9, within the last epoch
    state, before = weights(out)
    assert state["step"] == 8 and state["position"]["steps"] == 2
    shapes = {name: p.shape for name, p in load_model(out / "last.safetensors")[0].named_parameters()}
    assert {name: before[name].shape for name in shapes} == shapes
    for (said, err), status in run_processes(2, path, [*divided, "resume=auto"], [tmp_path] * 2):
        assert status == 0, said + err
    _, again = weights(out)
    assert all(torch.equal(once[key], again[key]) for key in once)
    assert not all(torch.equal(once[key], before[key]) for key in once)


@pytest.mark.slow
@pytest.mark.parametrize("task", [[], ["data.noise=25"]])
def test_processes_share_the_images_of_an_evaluation(write_config, tmp_path, capsys, task):
    checkpoint = train(load_config(write_config(), ["stages.0.epochs=1", *task])) / "last.safetensors"
    command = ["eval", str(checkpoint), "--sizes", "8", "12", "--control", "--device", "cpu"]
    capsys.readouterr()
    assert main([*command, "--out", str(tmp_path / "one.png")]) == 0
    alone = capsys.readouterr().out
    ((out, err), status), ((other, told), _) = run_commands(
        2, [*command, "--out", str(tmp_path / "two.png")], [tmp_path] * 2
    )
    assert status == 0, err
    assert out.replace("two.png", "one.png") == alone and other == ""
    assert " 12 px: " in err and " px: " not in told
