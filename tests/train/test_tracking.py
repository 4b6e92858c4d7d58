"""What wandb gets, read back from the files that it writes without a network, against what the logs hold."""

import json
import logging
import struct
import sys
from pathlib import Path

import pytest
import torch

from s4nd.train import logs, tracking
from s4nd.train.config import config_to_dict, load_config
from s4nd.train.engine import Trainer, train
from tests.train.test_engine import Killed, kill_at_step

SHORT = ["stages=[{size: 8, epochs: 2}]", "log_every=2", "wandb=stripes"]


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """Neither a network, nor a login, nor a file outside of tmp_path."""
    wandb = pytest.importorskip("wandb", reason="needs the extra: pip install 's4nd[wandb]'")
    wandb.teardown()  # it reads the environment once
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "wandb"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_DISABLE_GIT", "true")
    yield
    wandb.teardown()


def written(folder):
    """The records of each run's file: blocks of 32 KiB of (checksum, length, kind) and a piece of a record."""
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()  # as at the end of a process: until then its service may still be writing
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        data, at, piece = path.read_bytes(), 7, b""
        records = []
        while at + 7 <= len(data):
            if 32768 - at % 32768 < 7:
                at += 32768 - at % 32768
                continue
            _, length, kind = struct.unpack("<IHB", data[at : at + 7])
            piece += data[at + 7 : at + 7 + length]
            at += 7 + length
            if kind in (1, 4):  # whole, or the last piece
                records.append(Record.FromString(piece))
                piece = b""
        yield records


def history(records):
    """Every `log` of a file, without what wandb adds."""
    rows = []
    for record in records:
        if record.WhichOneof("record_type") == "history":
            items = {(i.key or ".".join(i.nested_key)): json.loads(i.value_json) for i in record.history.item}
            rows.append({key: value for key, value in items.items() if not key.startswith("_")})
    return rows


def lines(folder, name):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_run_without_a_network_holds_what_the_logs_hold(write_config, offline):
    config = load_config(write_config(), SHORT)
    folder = train(config)
    (records,) = written(folder)
    rows = history(records)
    assert [row for row in rows if "step/step" not in row] == lines(folder, "log.jsonl")
    steps = [{f"step/{key}": value for key, value in line.items()} for line in lines(folder, "steps.jsonl")]
    assert [row for row in rows if "step/step" in row] == steps and len(steps) == 2
    (run,) = (record.run for record in records if record.WhichOneof("record_type") == "run")
    assert (run.project, run.run_id) == ("stripes", (folder / "wandb.id").read_text())
    told = {item.key: json.loads(item.value_json) for item in run.config.update if item.key != "_wandb"}
    assert told == json.loads(json.dumps(config_to_dict(config)))
    axes = {r.metric.name: r.metric.step_metric for r in records if r.WhichOneof("record_type") == "metric"}
    assert (axes["train_loss"], axes["step/loss"]) == ("epoch", "step/step")


def test_run_that_goes_on_is_the_same_run_there(write_config, offline, monkeypatch):
    path = write_config()
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at_step(patch, 4)
        train(load_config(path, [*SHORT, "save_every_steps=1"]))
    folder = train(load_config(path, [*SHORT, "save_every_steps=1", "resume=auto"]))
    first, second = written(folder)
    ids = {r.run.run_id for r in first + second if r.WhichOneof("record_type") == "run"}
    assert ids == {(folder / "wandb.id").read_text()}
    epochs = [row["epoch"] for part in (first, second) for row in history(part) if "train_loss" in row]
    assert epochs == [1, 2]


def test_key_may_differ_in_a_run_that_goes_on(write_config, offline):
    path = write_config()
    train(load_config(path, ["stages=[{size: 8, epochs: 1}]"]))
    folder = train(load_config(path, [*SHORT, "resume=auto"]))
    (records,) = written(folder)
    assert [row["epoch"] for row in history(records) if "train_loss" in row] == [2]


def test_failing_mirror_is_one_warning_and_the_training_goes_on(write_config, offline, monkeypatch, caplog):
    import wandb

    def fail(self, *_, **__):
        raise BrokenPipeError("gone")

    plain = train(load_config(write_config(), [*SHORT[:2], f"out={write_config().parent / 'plain'}"]))
    monkeypatch.setattr(wandb.Run, "log", fail)
    with caplog.at_level(logging.WARNING, "s4nd"):
        folder = train(load_config(write_config(), SHORT))
    said = [record.getMessage() for record in caplog.records if record.name == "s4nd"]
    assert said == ["wandb: gone; the run is mirrored no longer"]
    assert [row["train_loss"] for row in lines(folder, "log.jsonl")] == [
        row["train_loss"] for row in lines(plain, "log.jsonl")
    ]


def test_network_that_is_gone_makes_the_run_an_offline_one(write_config, offline, monkeypatch, caplog):
    """A port that nobody listens at."""
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr(tracking, "PATIENCE", 3.0)
    with caplog.at_level(logging.WARNING, "s4nd"):
        folder = train(load_config(write_config(), SHORT))
    (said,) = [record.getMessage() for record in caplog.records if record.name == "s4nd"]
    assert said.startswith("wandb: ")
    (records,) = written(folder)
    assert [row for row in history(records) if "train_loss" in row] == lines(folder, "log.jsonl")


def test_account_that_is_not_there_makes_the_run_an_offline_one(write_config, offline, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setattr(tracking, "PATIENCE", 3.0)
    with caplog.at_level(logging.WARNING, "s4nd"):
        folder = train(load_config(write_config(), SHORT))
    assert len([*written(folder)]) == 1 and "wandb: " in caplog.text


def test_absent_package_is_an_error_that_names_the_extra_before_anything_is_written(write_config, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = load_config(write_config(), SHORT)
    with pytest.raises(ValueError, match=r"wandb=PROJECT needs the extra: pip install 's4nd\[wandb\]'"):
        train(config)
    assert not Path(config.out).exists()


def test_folder_of_wandb_is_not_the_package(tmp_path, monkeypatch):
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    for name in [name for name in sys.modules if name.partition(".")[0] == "wandb"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ValueError, match="needs the extra"):
        tracking.require_wandb()


def test_first_process_alone_mirrors(write_config, tmp_path, monkeypatch):
    begun = []
    monkeypatch.setattr(logs, "Mirror", lambda *given: begun.append(given))
    for rank, count in ((1, 0), (0, 1)):
        trainer = Trainer(
            load_config(write_config(), ["stages=[{size: 8, epochs: 1}]", "wandb=stripes"]), torch.device("cpu")
        )
        trainer.place = trainer.place._replace(rank=rank)
        (tmp_path / "run").mkdir(exist_ok=True)
        trainer.fit(tmp_path / "run")
        assert len(begun) == count
