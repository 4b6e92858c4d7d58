"""`s4nd doctor`: a real run, and a simulated fault of each kind against its line and the exit status."""

import os
import re
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

import s4nd.ops
from s4nd.ops import BackendError
from s4nd.train.cli import main
from s4nd.train.commands import doctor
from s4nd.train.commands.doctor import computing
from s4nd.train.commands.doctor.computing import _may_refuse, _products, compilers, models
from s4nd.train.commands.doctor.packages import _read_as_written, packages
from s4nd.train.commands.doctor.trial import Finding, Trial

ROOT = Path(__file__).resolve().parents[2]


def ask(*probe, seconds=100):
    trial = Trial(seconds, *probe)
    try:
        return trial.findings()
    finally:
        trial.close()


@pytest.fixture
def install(tmp_path, monkeypatch):
    """install(distribution, code) -> a package of that name, version 1.0, is found before all others."""

    def install(distribution, code, module=None):
        module = module or distribution
        (tmp_path / module).mkdir()
        (tmp_path / module / "__init__.py").write_text(textwrap.dedent(code))
        about = tmp_path / f"{distribution}-1.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        (about / "RECORD").write_text(f"{module}/__init__.py,,\n{about.name}/METADATA,,\n")
        monkeypatch.syspath_prepend(tmp_path)

    return install


@pytest.mark.slow
def test_everything_that_is_here_works_and_has_a_line(tmp_path):
    """From another folder, and by the search path of the asking process."""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "s4nd.train.cli", "doctor"], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    *lines, last = done.stdout.splitlines()
    assert last == "0 faults"
    found = {name: (state, text) for state, name, text in (re.match(r"(\w+) +(.+?): (.*)", x).groups() for x in lines)}
    assert found["s4nd"] == ("ok", f"{s4nd.__version__} in {ROOT / 's4nd'}; a model runs at two sizes")
    assert found["torch"][1].startswith(torch.__version__.partition("+")[0])
    assert set(found) >= {"python", "torchvision", "timm", "numpy", "einops", "C++ compiler", "nvcc", "ptxas", "triton"}
    assert set(found) >= {"pykeops", "av", "onnx", "onnxruntime", "webdataset", "datasets", "wandb", "scikit-image"}
    assert found["cpu"][1].endswith('backend="auto" is torch')
    assert re.fullmatch(r"vandermonde error \de-\d+, \d+\.\d\d ms; cauchy error .*", found["torch on cpu"][1])
    assert {"keops on cpu", "triton on cpu"} <= set(found)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("requirement", "state", "text"),
    [
        ("no-such-thing>=1", "FAULT", "RuntimeError: missing, and required: pip install 'no-such-thing>=1'"),
        ("no-such-thing>=1: pip install 's4nd[video]'", "none", r"missing: pip install 's4nd\[video\]'"),
        ("einops>=999: pip install x", "FAULT", r"RuntimeError: \S+ does not fit >=999: pip install 'einops>=999'"),
        ("einops>=0.1", "ok", r"\d\.\S+"),
        ("pyyaml>=0.1", "ok", r"\d\.\S+"),  # whose module has another name
    ],
)
def test_versions_of_packages(requirement, state, text):
    ((_, found, said),) = ask(packages, requirement)
    assert found == state and re.fullmatch(text, said)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("raise OSError('libgone.so: no such file')", "OSError: libgone.so: no such file"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "killed by SIGSEGV"),
        ("import os; print('cannot go on'); os._exit(3)", "ended with exit code 3: cannot go on"),
        ("raise SystemExit('not today')", "ended with exit code 1: not today"),
        ("import time; time.sleep(1000)", "no answer in 5 s"),
    ],
)
def test_package_that_fails_when_it_is_imported_is_a_fault_and_others_keep_their_lines(install, code, text):
    install("broken", f"print('much', flush=True)\n{code}")
    before, found = ask(packages, "einops", "broken: pip install it", seconds=5)[:2]
    assert before.state == "ok"
    assert found[:2] == ("broken", "FAULT") and found.text.removesuffix(": much") == text


def test_what_a_probe_started_is_killed_with_it(install, tmp_path):
    install("broken", "import subprocess; p = subprocess.Popen(['sleep', '1000']); print(p.pid, flush=True); p.wait()")
    trial = Trial(5, packages, "broken")
    assert trial.findings()[0].text.startswith("no answer in 5 s")
    pid = int(Path(trial.folder.name, "said").read_text())
    trial.close()
    for _ in range(1000):  # until its signal has come; a zombie has no command line
        if not (command := Path(f"/proc/{pid}/cmdline")).exists() or not command.read_bytes():
            return
        time.sleep(0.01)
    raise AssertionError("it still runs")


@pytest.mark.parametrize(
    ("distribution", "module", "code", "text"),
    [
        ("av", "av", "", "AttributeError: module 'av' has no attribute 'open'"),
        ("pillow", "PIL", "class Image: new = None", "TypeError: 'NoneType' object is not callable"),
        ("onnxruntime", "onnxruntime", "get_available_providers = list", "AttributeError: module 'onnxruntime' has no"),
        ("decord2", "decord", "", "AttributeError: module 'decord' has no attribute 'VideoReader'"),
    ],
)
def test_package_that_fails_when_it_is_used_is_a_fault(install, distribution, module, code, text):
    install(distribution, code, module)
    ((name, state, said),) = ask(packages, f"{distribution}: pip install it")
    assert (name, state) == (distribution, "FAULT") and said.startswith(text)


def test_clip_that_is_decoded_wrongly_is_a_fault():
    assert _read_as_written([41, 118, 200]) == ", a clip of 3 frames decoded"
    for levels in ([], [40, 120], [40, 40, 120], [40, 120, 200, 200]):
        with pytest.raises(RuntimeError, match=r"a clip of grey levels \[40, 120, 200\] is decoded as \["):
            _read_as_written(levels)


def test_compiler_that_cannot_be_run_is_a_fault_and_none_is_not(monkeypatch):
    monkeypatch.setenv("CXX", "/nowhere/cxx")
    found = ask(compilers)[0]
    assert found[:2] == ("C++ compiler", "FAULT") and "/nowhere/cxx" in found.text
    monkeypatch.setenv("CXX", "")
    monkeypatch.setenv("PATH", "/nowhere")
    assert ask(compilers)[0] == (
        "C++ compiler",
        "none",
        "torch.compile and KeOps need one: install g++, or set CXX",
    )


@pytest.mark.parametrize("name", ["vandermonde", "cauchy"])
def test_backend_that_gives_wrong_numbers_is_a_fault(monkeypatch, name):
    cpu, right = torch.device("cpu"), getattr(s4nd.ops, name)
    assert _products("torch", cpu).count("error") == 2
    monkeypatch.setattr(s4nd.ops, name, lambda *given, backend: 1.0001 * right(*given, backend=backend))
    with pytest.raises(RuntimeError, match=f"a {name} product is off by 1e-04 of its largest value"):
        _products("torch", cpu)


@pytest.mark.parametrize("compiler", [None, "there"])
@pytest.mark.parametrize("package", [None, "there"])
def test_keops_that_refuses_is_a_fault_where_it_and_a_compiler_are_installed(monkeypatch, package, compiler):
    def refuse(*given, backend):
        raise BackendError("the reason")

    monkeypatch.setattr(s4nd.ops, "vandermonde", refuse)
    monkeypatch.setattr(computing, "cxx", lambda: compiler)
    monkeypatch.setattr(computing.importlib.util, "find_spec", lambda name: package)
    if package and compiler:
        with pytest.raises(BackendError, match="the reason"):
            _products("keops", torch.device("cpu"))
    else:
        assert _products("keops", torch.device("cpu")) == "none: the reason"


def test_triton_may_refuse_where_there_is_no_cuda():
    assert _may_refuse("triton", "cpu") and not _may_refuse("torch", "cpu")
    assert not _may_refuse("triton", "cuda")  # it is installed here


def test_a_fault_is_exit_status_1(monkeypatch, capsys):
    found = [Finding("a", "ok", "1.0"), Finding("b", "none", "missing"), Finding("c", "FAULT", "no answer in 5 s")]
    for count, faults in (2, 0), (3, 1):
        monkeypatch.setattr(doctor, "findings", lambda count=count: iter(found[:count]))
        assert main(["doctor"]) == (1 if faults else 0)
    assert capsys.readouterr().out.splitlines()[-4:] == [
        "ok     a: 1.0",
        "none   b: missing",
        "FAULT  c: no answer in 5 s",
        "1 fault",
    ]


def test_an_interpreter_that_does_not_run_is_a_fault_of_every_probe(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    found = list(doctor.findings())
    assert {f.text for f in found if f.state == "FAULT"} == {"ended with exit code 1"}
    assert [f.state for f in found].count("FAULT") == len(doctor._plan())


def test_what_runs_ahead_is_killed_where_it_is_broken_off(monkeypatch):
    started = []
    monkeypatch.setattr(doctor, "_plan", lambda: [(100, compilers), (100, models), (100, models)])
    monkeypatch.setattr(doctor, "Trial", lambda *plan: started.append(Trial(*plan)) or started[-1])
    finding = doctor.findings()
    next(finding), next(finding)
    finding.close()
    assert started and all(t.process.poll() is not None and not Path(t.folder.name).exists() for t in started)


def test_every_extra_and_required_package_is_tried():
    required, optional = doctor._requirements()
    assert {"torch", "timm", "einops"} <= {re.match(r"[\w-]+", r).group() for r in required}
    assert "pip install 's4nd[video]'" in {o.partition(": ")[2] for o in optional if o.startswith("av>=")}
    extras = {o.partition(": ")[2] for o in optional}
    names = ("video", "keops", "onnx", "wds", "hf", "demo", "wandb", "examples")
    assert extras == {f"pip install 's4nd[{name}]'" for name in names}
