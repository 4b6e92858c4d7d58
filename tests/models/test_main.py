"""`python -m s4nd.models SCRIPT` against Python's own way to run a script, and with scripts in the manner of timm's."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config

from s4nd.models.__main__ import main

ROOT = Path(__file__).resolve().parents[2]

SHOW = """
import json, sys
try:
    import beside
except ImportError:
    beside = None
timm = sys.modules.get("timm")
known = timm is not None and timm.is_model("s4nd_iso_tiny")
print(json.dumps([__name__, __file__, sys.argv, sys.path, getattr(beside, "WHERE", None)]), known, sep="\\n")
if __name__ == "__main__":
    sys.exit(3)
"""

VALIDATE = """
import argparse, json, timm, torch
from timm.data import create_dataset, create_loader, resolve_input_data_config

parser = argparse.ArgumentParser()
parser.add_argument("data")
parser.add_argument("--model")
parser.add_argument("--img-size", type=int)
parser.add_argument("--device")
args = parser.parse_args()
if __name__ == "__main__":
    model = timm.create_model(args.model, pretrained=True).eval()
    config = resolve_input_data_config(model, vars(args))
    config = {key: config[key] for key in ("input_size", "mean", "std", "interpolation", "crop_pct")}
    dataset = create_dataset("", args.data)
    loader = create_loader(dataset, batch_size=2, num_workers=1, device=torch.device(args.device), **config)
    with torch.no_grad():
        logits = torch.cat([model(images) for images, _ in loader])
    print("--result", json.dumps({"files": dataset.filenames(basename=True), "logits": logits.tolist()}), sep="\\n")
"""

# What timm's bulk_runner.py does with `-m yes s4nd.models validate.py DIR`: a process per model, the module first.
BULK = """
import argparse, subprocess, sys, timm

parser = argparse.ArgumentParser()
parser.add_argument("--model-list")
parser.add_argument("-m", "--module")
parser.add_argument("script")
parser.add_argument("script_args", nargs=argparse.REMAINDER)
args = parser.parse_args()
for model in timm.list_models(args.model_list, pretrained=True):
    command = [sys.executable, "-u", *(["-m"] if args.module else []), args.script, *args.script_args, "--model", model]
    print(model, subprocess.check_output(command, text=True).split("--result")[-1], sep="\\n")
"""


def run(*arguments, cwd, status=0, **env):
    command = [sys.executable, *map(str, arguments)]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | env
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == status, done.stderr
    return done.stdout


@pytest.mark.parametrize("safe", ["", "1"])
def test_script_sees_what_it_would_see_without_and_knows_the_models(tmp_path, safe):
    """PYTHONSAFEPATH, from Python 3.11 on, leaves the script's folder out of the search path."""
    for folder in ("scripts", "elsewhere"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "beside.py").write_text(f"WHERE = {folder!r}")
    script = tmp_path / "scripts" / "show.py"
    script.write_text(SHOW)
    arguments = [script, "--model", "x", "--", "-h", "--debug", "a b"]
    settings = {"cwd": tmp_path / "elsewhere", "status": 3, "PYTHONSAFEPATH": safe}
    plain = run(*arguments, **settings).splitlines()
    found = run("-m", "s4nd.models", *arguments, **settings).splitlines()
    found_path, plain_path = (json.loads(lines[0]).pop(3) for lines in (found, plain))
    assert found_path[: len(plain_path)] == plain_path  # torch 2.7 appends a folder of its own, last of all
    assert [*json.loads(found[0])[:3], json.loads(found[0])[4]] == [*json.loads(plain[0])[:3], json.loads(plain[0])[4]]
    assert json.loads(found[0])[2] == [*map(str, arguments)]
    assert (plain[1], found[1]) == ("False", "True")


@pytest.mark.slow
def test_validation_of_a_model_by_a_script_that_another_one_starts(tmp_path):
    rng, pixels = np.random.default_rng(0), {}
    (tmp_path / "images" / "any").mkdir(parents=True)
    for i in range(3):
        pixels[f"{i}.png"] = Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8))
        pixels[f"{i}.png"].save(tmp_path / "images" / "any" / f"{i}.png")
    (tmp_path / "bulk_runner.py").write_text(BULK)
    (tmp_path / "validate.py").write_text(VALIDATE)
    validate = ["validate.py", "images", "--device", "cpu", "--img-size", 24]
    bulk = ["bulk_runner.py", "--model-list", "*photos", "-m", "yes", "s4nd.models"]
    name, answer = run("-m", "s4nd.models", *bulk, *validate, cwd=tmp_path).split("\n", 1)
    assert name == "s4nd_iso_tiny.photos"
    model = timm.create_model(name, pretrained=True).eval()
    transform = create_transform(**resolve_data_config({"img_size": 24}, model=model))
    answer = json.loads(answer)
    assert sorted(answer["files"]) == [*pixels]
    with torch.no_grad():
        expected = model(torch.stack([transform(pixels[file]) for file in answer["files"]]))
    # Roundings of another batch and of timm's normalisation on the device.
    torch.testing.assert_close(
        torch.tensor(answer["logits"]), expected, rtol=0, atol=1e-5 * expected.abs().max().item()
    )


@pytest.mark.parametrize(
    ("script", "content", "message"),
    [
        ("absent.py", None, "must be the path of a Python file, got 'absent.py', which is no file"),
        ("--model", None, "got '--model', which is no file"),
        (".", None, "got '.', which is a folder"),
        ("model.py", b"\x7fELF\0\0", "model.py is not a Python file that can be run: source code"),
        ("model.py", b"print('ran')\nif:\n", "is not a Python file that can be run: invalid syntax (model.py, line 2)"),
    ],
)
def test_what_is_no_script_is_refused_before_anything_runs(tmp_path, monkeypatch, capsys, script, content, message):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path(script).write_bytes(content)
    assert main([script, "--model", "x"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("python -m s4nd.models: error: ") and message in err and err.count("\n") == 1


def test_without_a_script_it_says_how_it_is_used(capsys):
    assert main([]) == 2 and "usage: python -m s4nd.models SCRIPT" in capsys.readouterr().err
    assert main(["--help"]) == 0 and capsys.readouterr().out.startswith("usage: python -m s4nd.models SCRIPT")
