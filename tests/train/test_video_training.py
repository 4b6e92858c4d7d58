"""Training and evaluation on videos, end to end on small ones made here, and the score of a video against doing it by hand."""

import json
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

import s4nd.models.s4nd_convnext3d  # noqa: F401  registers the models
from s4nd.train.checkpoint import load_model, read_checkpoint
from s4nd.train.cli import main
from s4nd.train.config import load_config
from s4nd.train.evaluate import evaluate
from s4nd.train.model import to_input

CPU = torch.device("cpu")
CONFIG = """
data: {{name: video, root: {root}, frames: 4, seconds: 1.0{data}}}
model: {{name: {model}, args: {{depths: [1, 1, 1, 1], dims: [8, 8, 8, 16]{args}}}}}
stages: [{{size: 32, epochs: {epochs}}}]
optim: {{lr: 0.01}}
batch_size: 4
device: cpu
out: {out}
"""


class Summed(nn.Module):
    """Logits of a clip from its first and last frame."""

    pretrained_cfg = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}  # noqa: RUF012

    def forward(self, x):
        return torch.stack([x[:, 0, 0].mean((1, 2)), x[:, 1, -1].mean((1, 2)), x[:, 2].mean((1, 2, 3))], 1)


@pytest.fixture
def videos(write_video):
    """Two classes that only the order of time tells apart: growing brighter, growing darker."""
    pytest.importorskip("av", reason="needs PyAV, the extra `video`")
    for split, count in (("train", 4), ("val", 2)):
        for i in range(count):
            write_video(f"videos/{split}/brighter/{i}.mp4", 20 + i, grey=lambda i: 10 * i)
            last = write_video(f"videos/{split}/darker/{i}.mp4", 20 + i, grey=lambda i: 240 - 10 * i)
    return last.parents[2]


@pytest.fixture
def write(tmp_path, videos):
    def write(model="s4nd_convnext3d_micro", epochs=2, data="", args=", d_state: 4, stem_channels: 4"):
        path = tmp_path / f"{model}.yaml"
        args = args if model.startswith("s4nd") else ""
        out = tmp_path / "run" / model
        path.write_text(CONFIG.format(root=videos, model=model, epochs=epochs, data=data, args=args, out=out))
        return path

    return write


def test_clips_are_normalised_by_channel():
    clips, model = torch.randint(256, (2, 3, 4, 5, 6), dtype=torch.uint8), Summed()
    by_frame = [to_input(frame, model, CPU) for frame in clips.unbind(2)]
    assert torch.equal(to_input(clips, model, CPU), torch.stack(by_frame, 2))


@pytest.mark.parametrize("at_once", [1, 2, 9])
def test_score_of_a_video_is_that_of_its_mean_probabilities(at_once):
    model, generator = Summed(), torch.Generator().manual_seed(0)
    batches = [
        (torch.randint(256, (K, 3, 4, 5, 6), dtype=torch.uint8, generator=generator), torch.tensor([K % 3]))
        for K in (1, 2, 5, 3)
    ]
    means = torch.stack([model(to_input(clips, model, CPU)).softmax(-1).mean(0) for clips, _ in batches])
    labels = torch.cat([labels for _, labels in batches])
    score = evaluate(model, batches, CPU, at_once)
    assert score.images == 4 and score.accuracy == (means.argmax(-1) == labels).double().mean()
    assert score.loss == pytest.approx(-means[range(4), labels].log().mean().item(), rel=1e-5)


@pytest.mark.parametrize("model", ["s4nd_convnext3d_micro", "convnext_i3d_micro", "convnext_s3d_micro"])
def test_every_family_trains_and_is_evaluated_at_other_sizes_and_frame_counts(write, tmp_path, capsys, model):
    path = write(model, epochs=1)
    assert main(["train", str(path), "mixup=0.2"]) == 0
    protocol = "accuracy per video: mean probability of clips that cover it, at most 32, of 4 frames over 1 s each"
    assert protocol in capsys.readouterr().out
    checkpoint = tmp_path / "run" / model / "last.safetensors"
    assert main(["eval", str(checkpoint), "--sizes", "32", "48", "--frames", "4", "8"]) == 0
    out = capsys.readouterr().out
    assert protocol in out and protocol.replace("4 frames", "8 frames") in out
    assert f"{model}, 4 frames" in out and f"{model}, 8 frames" in out
    _, _, meta = read_checkpoint(checkpoint)
    assert f"{model}, 4 frames: {100 * meta.accuracy:.1f} % at 32 (trained)" in out


def test_the_order_of_frames_is_learned(write):
    """A model that saw no time could not do better than chance: the same greys occur in both classes."""
    config = load_config(write(epochs=10))
    from s4nd.train.engine import train

    assert read_checkpoint(train(config) / "best.safetensors")[2].accuracy == 1


def test_model_is_built_for_the_frames_of_the_data(write):
    from s4nd.train.engine import train

    folder = train(load_config(write(epochs=1)))
    model, config, _ = load_model(folder / "last.safetensors")
    assert model.num_frames == config.data.frames == 4 and model.img_size == (32, 32)
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert len(records) == 1 and records[0]["test_accuracy"] >= 0 and records[0]["clips_per_second"] > 0
    assert records[0]["protocol"] == config.data.sampling().protocol()


@pytest.mark.slow
def test_two_processes_train_what_one_does(write, tmp_path):
    """Without noise a step over two processes is the step over their joint batch, up to the rounding of a mean."""
    still = ", d_state: 4, stem_channels: 4, drop_rate: 0.0, drop_path_rate: 0.0"
    command = ["-m", "s4nd.train.cli", "train", str(write(epochs=1, args=still)), "data.hflip=false"]
    runs = {}
    for name, launch in (
        ("one", []),
        ("two", ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]),
    ):
        out = tmp_path / name
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, *launch, *command, f"out={out}"], check=True, timeout=120, env=environment)
        runs[name] = read_checkpoint(out / "last.safetensors")
    (one, _, meta), (two, _, other) = runs["one"], runs["two"]
    assert all((one[key] - two[key]).abs().max() <= 1e-4 for key in one) and meta.accuracy == other.accuracy


def test_workers_change_nothing_about_the_weights(write, tmp_path):
    from s4nd.train.engine import train

    path = write(data=", randaugment: 9")
    whole = train(load_config(path, [f"out={tmp_path / 'whole'}"]))
    again = train(load_config(path, [f"out={tmp_path / 'again'}", "data.workers=2"]))
    one, two = (read_checkpoint(folder / "last.safetensors")[0] for folder in (whole, again))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_damaged_video_is_skipped_in_training_and_an_error_in_eval_unless_told(write, videos, tmp_path, capsys):
    path = write(epochs=1)
    for split in ("train", "val"):
        file = videos / split / "darker" / "0.mp4"
        file.write_bytes(file.read_bytes()[:999])
    assert main(["train", str(path)]) == 0
    checkpoint = str(tmp_path / "run" / "s4nd_convnext3d_micro" / "last.safetensors")
    assert main(["eval", checkpoint, "--sizes", "32"]) == 2
    assert "darker/0.mp4: not a video" in capsys.readouterr().err
    assert main(["eval", checkpoint, "--sizes", "32", "--skip-bad"]) == 0


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["cutmix=1.0"], "cutmix is for images"),
        (["data.motion=true"], "data.motion must be null, changes or moving, got 'True'"),
        (["data.pad=0.1"], "data.pad is for images"),
        (["data.motion=changes", "data.frames=1"], "data.motion needs data.frames of at least 2, got 1"),
        (["data.name=photos", "data.root=null"], "data.frames is for videos (video, hmdb51, ucf101)"),
        (["data.frames=0"], "data.frames must be at least 1, got 0"),
        (["data.seconds=0"], "data.seconds must be positive, got 0"),
        (["data.scale=0.5"], "data.scale must be at least 1, got 0.5"),
        (["data.randaugment=31"], "data.randaugment must be in [0, 30], got 31"),
        (["data.name=hmdb51"], "hmdb51 needs the folder of its official split files as lists"),
        (["data.lists=somewhere"], "video takes no lists"),
    ],
)
def test_mistake_names_the_key(write, capsys, overrides, message):
    assert main(["train", str(write()), *overrides]) == 2
    assert message in capsys.readouterr().err


def test_eval_refuses_the_other_kind_of_data(write, folder, tmp_path, capsys):
    main(["train", str(write(epochs=1))])
    checkpoint = str(tmp_path / "run" / "s4nd_convnext3d_micro" / "last.safetensors")
    assert main(["eval", checkpoint, "--sizes", "32", "--data", "folder", "--root", str(folder)]) == 2
    assert "not of the same kind" in capsys.readouterr().err
