"""The scripts of examples/, run as a reader runs them: what they print and write against what they say that they show.

Accuracies are of 280 crops of 14 photographs: by chance 7 %, with a standard error of at most 3 points (half a root of 280).
"""

import ast
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import timm
from PIL import Image
from safetensors.torch import load_file

import s4nd.models  # noqa: F401  registers S4ND's models with timm
from s4nd.train.data import Photos
from s4nd.train.resolution import evaluate_sizes

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = {path.stem: path for path in sorted((ROOT / "examples").glob("*.py"))}
LONGEST = 1800  # seconds
STANDARD_ERROR = 3.0  # points
EXPORTED = 1e-4  # of the largest logit: what `s4nd export` asks of a file
NEEDED_BY_S4ND = {"s4nd", "torch", "torchvision", "timm", "numpy", "safetensors"}
ROUNDING = 2.0**-24  # of a float32

each_script = pytest.mark.parametrize("name", SCRIPTS)
slow = pytest.mark.slow


def imported(nodes):
    """The modules of the import statements among the nodes."""
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def packages_of(name):
    """What a script asks for first: the packages that s4nd does without."""
    asked = next(node for node in ast.parse(SCRIPTS[name].read_text()).body if isinstance(node, ast.Try))
    return list(dict.fromkeys(module.partition(".")[0] for module in imported(asked.body)))


def call(name, folder, *path):
    """The finished process of a script, begun in an empty folder, where it may write to `out` alone."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join([*map(str, path), str(ROOT)]), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, SCRIPTS[name], "--out", "out"],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=LONGEST,
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """run(name) -> (what the script printed, the folder that it wrote): once for all tests."""

    @cache
    def run(name):
        for package in packages_of(name):
            pytest.importorskip(package, reason=f"examples/{name}.py needs {package}")
        folder = tmp_path_factory.mktemp(name)
        done = call(name, folder)
        assert done.returncode == 0, done.stderr
        assert done.stderr == "", "a reader would see warnings"
        assert [path.name for path in folder.iterdir()] == ["out"]
        return done.stdout, folder / "out"

    return run


def frames_of(path):
    import av

    with av.open(path) as film:
        return [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]


def nodes_of(path):
    import onnx

    onnx.checker.check_model(path, full_check=True)
    return [node.op_type for node in onnx.load(path).graph.node]


READERS = {
    ".png": lambda path: Image.open(path).convert("L").getextrema(),
    ".safetensors": load_file,
    ".mp4": frames_of,
    ".onnx": nodes_of,
}


def numbers(pattern, text):
    """The groups of every match, as numbers; there is one at least."""
    found = [tuple(map(float, match.groups())) for match in re.finditer(pattern, text)]
    assert found, f"nothing like {pattern} in {text}"
    return found


@slow
@each_script
def test_script_runs_prints_figures_and_writes_files_that_can_be_read(name, run):
    printed, out = run(name)
    assert re.search(r"\d", printed)
    files = [*out.iterdir()]
    assert files
    for path in files:
        found = READERS[path.suffix](path)
        if path.suffix == ".png":
            assert found[0] < found[1], f"{path.name} is of one colour"
        assert found


@each_script
def test_script_says_its_command_and_names_the_files_that_it_writes(name):
    text = SCRIPTS[name].read_text(encoding="utf-8")
    about = ast.get_docstring(ast.parse(text))
    assert f"\n    python examples/{name}.py --out runs/examples\n" in about
    assert '"--out", type=Path, default=Path("runs/examples")' in text
    written = set(re.findall(rf'"(\w+(?:{"|".join(READERS)}))"', text))
    assert written and written <= set(re.findall(r"\w+\.\w+", about))


@each_script
def test_script_without_its_packages_says_in_one_line_what_to_install(name, tmp_path):
    missing = packages_of(name)
    for package in missing:
        (tmp_path / f"{package}.py").write_text(f"raise ModuleNotFoundError('No module named {package}')")
    done = call(name, tmp_path, tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f'No module named {missing[0]}: pip install "s4nd[examples]"\n'
    everywhere = {module.partition(".")[0] for module in imported(ast.walk(ast.parse(SCRIPTS[name].read_text())))}
    assert everywhere - {*missing} - sys.stdlib_module_names <= NEEDED_BY_S4ND


def test_page_has_every_script_and_its_command():
    page = (ROOT / "docs" / "examples.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^python examples/(\w+)\.py", page, re.MULTILINE)) == [*SCRIPTS]


@slow
def test_fine_tuning_learns_and_gains_by_the_weights_it_begins_with(run):
    printed, out = run("fine_tune")
    (_, drawn), (before, tuned) = numbers(r"accuracy ([\d.]+) % before, ([\d.]+) % after", printed)
    assert tuned > before + 10 * STANDARD_ERROR
    assert tuned > drawn + 2 * STANDARD_ERROR
    weights = out / "fine_tuned.safetensors"
    model = timm.create_model("s4nd_iso_tiny", num_classes=14, checkpoint_path=weights)
    again = evaluate_sizes(model, Photos("test", 20), [16])[16]
    assert abs(100 * again - tuned) < STANDARD_ERROR  # it sees the crops resized by another filter


@slow
def test_accuracy_is_kept_at_unseen_sizes_and_kernels_are_spread(run):
    printed, _ = run("unseen_sizes")
    found = numbers(r"at (\d+) x \1: accuracy ([\d.]+) %, resized to 16: ([\d.]+) %", printed)
    assert [size for size, *_ in found] == [16, 32, 48]
    assert found[0][1] == found[0][2]  # at the trained size nothing is resized
    for _, itself, resized in found:
        assert itself > found[0][1] - 2 * STANDARD_ERROR and abs(itself - resized) < 3 * STANDARD_ERROR
    ((error,),) = numbers(r"but for (\S+) of the largest tap", printed)
    assert error < 2 * 9 * ROUNDING  # 9 samples of each tap, a product and a sum each


@slow
def test_replaced_layers_learn(run):
    printed, _ = run("replace_layers")
    ((before, after),) = numbers(r"accuracy ([\d.]+) % before, ([\d.]+) % after", printed)
    assert after > before + 10 * STANDARD_ERROR
    layers = re.findall(r"(\S+): on a grid of (\(.*?\)), kernels changed by (\d+) %", printed)
    assert [name for name, *_ in layers] == [f"stages.{i}.blocks.0.conv_dw" for i in range(4)]
    assert [ast.literal_eval(grid) for _, grid, _ in layers] == [(16, 16), (8, 8), (4, 4), (2, 2)]
    assert min(int(change) for *_, change in layers) > 0


@slow
def test_inflated_model_classifies_clips_as_the_image_model_does_frames(run):
    printed, _ = run("inflate")
    accuracies = dict(re.findall(r"^(.+?): accuracy ([\d.]+) % of", printed, re.MULTILINE))
    images, drawn, inflated = (float(accuracies[f"{name} model{how}"]) for name, how in
                               (("image", ""), ("video", " as drawn"), ("video", " inflated")))  # fmt: skip
    assert inflated > drawn + 8 * STANDARD_ERROR
    assert inflated > images - 3 * STANDARD_ERROR
    assert "0 tensors unused" in printed


@slow
def test_running_answers_are_those_of_the_whole_clip(run):
    printed, out = run("stream_video")
    found = numbers(r"(\d+) s: .* by (\S+) of the largest logit, .* by (\S+); a state of (\d+) numbers", printed)
    assert [second for second, *_ in found] == [1, 2, 3, 4]
    assert max(error for _, error, *_ in found) < EXPORTED
    assert min(change for *_, change, _ in found[1:]) > 10 * EXPORTED  # the answers do change
    assert len({size for *_, size in found}) == 1
    assert len(frames_of(out / "film.mp4")) == 48


@slow
def test_onnx_file_is_plain_convolutions_with_the_models_logits(run):
    printed, out = run("export_onnx")
    ((error,),) = numbers(r"logits differ by (\S+) of the largest", printed)
    assert error < EXPORTED
    (torchs,), (theirs,) = numbers(r"accuracy ([\d.]+) % at 32 x 32", printed)
    assert torchs == theirs > 60
    operators = set(nodes_of(out / "model.onnx"))
    assert "Conv" in operators and not operators & {"DFT", "Exp", "Sin", "Cos", "Loop", "Scan", "If"}


@slow
def test_masks_are_found_at_both_sizes(run):
    printed, _ = run("segment")
    ((all_coin,),) = numbers(r"were all of it coin: IoU ([\d.]+) %", printed)
    ((coarse,),) = numbers(r"at 64 x 64: IoU ([\d.]+) %", printed)
    ((fine, control),) = numbers(r"at 128 x 128: IoU ([\d.]+) %, control: ([\d.]+) %", printed)
    assert min(coarse, fine, control) > (all_coin + 100) / 2  # half of the way from knowing nothing to everything
    assert 100 - fine < 1.5 * (100 - control)  # with kernels left as they were it is twice


@slow
def test_maps_lie_in_the_half_of_their_class(run):
    printed, _ = run("grad_cam")
    found = numbers(r"(\d+) % lies in that half, in (\d+) of (\d+) most of it", printed)
    assert len(found) == 2
    for (
        share,
        most,
        maps,
    ) in found:  # by chance half of it, and in half of the maps, with an error of half a root of them
        assert share > 60 and most > maps / 2 + 3 * maps**0.5 / 2
