"""init.weights and init.inflate against the weights in the file, and what is refused; a continued run does not read it."""

import json

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import s4nd
from s4nd.models import inflate
from s4nd.models.shipped import WEIGHTS, shipped_file
from s4nd.train.checkpoint import Meta, load_model, read_checkpoint, save_checkpoint
from s4nd.train.config import load_config
from s4nd.train.engine import Trainer, train
from s4nd.train.initial import initialise
from s4nd.train.model import build_model

CLASSES = ["columns", "rows"]  # of the images that are trained on
HEAD = ("head.fc.weight", "head.fc.bias")
CONVNEXT = "{depths: [1, 1, 1, 1], dims: [8, 8, 8, 16], d_state: 4}"
SIZE = "stages=[{size: 32, epochs: 1}]"


@pytest.fixture
def config(write_config):
    return lambda *overrides: load_config(write_config("s4nd_iso_tiny", d_state=4), ["stages.0.epochs=1", *overrides])


@pytest.fixture
def trained(config, tmp_path):
    return train(config(f"out={tmp_path / 'first'}")) / "last.safetensors"


def same(model, expected):
    return all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())


def saved(path, config, classes=CLASSES):
    """A checkpoint of a model as drawn."""
    model = build_model(config, len(classes))
    meta = Meta(1, 0, 0.5, list(classes), "model")
    save_checkpoint(path, model.state_dict(), config, meta)
    return model


def test_fresh_run_begins_with_the_weights_and_so_do_its_averages(config, trained, capsys):
    trainer = Trainer(config(f"init.weights={trained}", "ema=0.9", "seed=3"), torch.device("cpu"))
    trainer.learner.initialise()
    tensors, *_ = read_checkpoint(trained)
    for model in (trainer.learner.model, trainer.learner.ema.module):
        assert all(torch.equal(value, tensors[key]) for key, value in model.state_dict().items())
    assert f"init.weights={trained}: {len(tensors)} tensors\n" in capsys.readouterr().out


def test_plain_safetensors_file_will_do(config, trained, tmp_path):
    tensors, *_ = read_checkpoint(trained)
    save_file(tensors, tmp_path / "plain.safetensors", {"classes": json.dumps(CLASSES)})
    run = config(f"init.weights={tmp_path / 'plain.safetensors'}", "seed=3")
    model = build_model(run, 2)
    assert initialise(model, run, CLASSES).endswith(f"plain.safetensors: {len(tensors)} tensors")
    assert all(torch.equal(value, tensors[key]) for key, value in model.state_dict().items())


def test_classifier_of_a_file_without_names_stays_as_drawn(config, trained, tmp_path):
    tensors, *_ = read_checkpoint(trained)
    save_file(tensors, tmp_path / "plain.safetensors")
    run = config(f"init.weights={tmp_path / 'plain.safetensors'}", "seed=3")
    model = build_model(run, 2)
    drawn = {key: value.clone() for key, value in model.state_dict().items()}
    expected = f"{len(tensors) - 2} tensors; the file does not name its classes; classifier as drawn: {', '.join(HEAD)}"
    assert initialise(model, run, CLASSES).endswith(expected)
    assert same(model, {**tensors, **{key: drawn[key] for key in HEAD}})


@pytest.mark.parametrize("classes", ["columns", '{"a": 1}', "[1, 2]", "null"])
def test_classes_that_are_no_names_are_refused(config, trained, tmp_path, classes):
    save_file(read_checkpoint(trained)[0], tmp_path / "plain.safetensors", {"classes": classes})
    run = config(f"init.weights={tmp_path / 'plain.safetensors'}")
    with pytest.raises(
        ValueError, match=r"plain.safetensors: the metadata's classes must be a JSON list of names, got"
    ):
        initialise(build_model(run, 2), run, CLASSES)


def test_file_that_names_more_classes_than_it_has_is_refused(config, trained, tmp_path):
    save_file(read_checkpoint(trained)[0], tmp_path / "plain.safetensors", {"classes": '["a", "b", "c"]'})
    run = config(f"init.weights={tmp_path / 'plain.safetensors'}")
    for classes in (["a", "b", "c"], ["c", "b", "a"]):
        with pytest.raises(ValueError, match=r"2 of another shape: head.fc.weight \(2, 8\) for \(3, 8\)"):
            initialise(build_model(run, 3), run, classes)


@pytest.mark.parametrize("plain", [False, True])
def test_classes_in_another_order_are_taken_by_name(config, tmp_path, plain):
    path = tmp_path / "turned.safetensors"
    source = saved(path, config(), ["x", "y", "z"])
    if plain:
        save_file(source.state_dict(), path, {"classes": '["x", "y", "z"]'})
    run = config(f"init.weights={path}", "seed=3")
    model = build_model(run, 3)
    assert initialise(model, run, ["z", "x", "y"]).endswith("tensors; rows of the classifier taken by name")
    turned = {key: source.state_dict()[key][[2, 0, 1]] for key in HEAD}
    assert same(model, {**source.state_dict(), **turned})


@pytest.mark.parametrize("classes", [["columns", "waves"], ["columns", "columns"], ["0", "1"]])
def test_classifier_of_as_many_other_classes_stays_as_drawn(config, tmp_path, classes):
    path = tmp_path / "others.safetensors"
    source = saved(path, config(), classes)
    run = config(f"init.weights={path}", "seed=3")
    model = build_model(run, 2)
    drawn = {key: value.clone() for key, value in model.state_dict().items()}
    report = initialise(model, run, CLASSES)
    assert "only in the data: " in report and "rows" in report
    assert report.endswith("classifier as drawn, for other classes: head.fc.weight, head.fc.bias")
    assert same(model, {**source.state_dict(), **{key: drawn[key] for key in HEAD}})


def test_all_heads_of_a_distilled_model_count_as_classifier(bare, tmp_path):
    """timm's cfg of such a model names several."""
    name = ["model.name=deit_tiny_distilled_patch16_224", "stages=[{size: 32, epochs: 1}]"]
    small = ["model.args.embed_dim=8", "model.args.depth=1", "model.args.num_heads=2"]
    path = tmp_path / "distilled.safetensors"
    source = saved(path, bare(*name, *small), ["x", "y", "z"])
    run = bare(*name, *small, f"init.weights={path}", "seed=3")
    heads = ("head.weight", "head.bias", "head_dist.weight", "head_dist.bias")
    model = build_model(run, 3)
    initialise(model, run, ["z", "x", "y"])
    assert same(model, {**source.state_dict(), **{key: source.state_dict()[key][[2, 0, 1]] for key in heads}})
    other = build_model(run, 3)
    drawn = {key: value.clone() for key, value in other.state_dict().items()}
    initialise(other, run, ["a", "b", "c"])
    assert same(other, {**source.state_dict(), **{key: drawn[key] for key in heads}})


def test_continued_run_and_its_checkpoint_do_not_read_the_file(config, trained):
    begun = [f"init.weights={trained}", "stages.0.epochs=2"]
    folder = train(config(*begun))
    expected = read_checkpoint(folder / "last.safetensors")[0]
    trained.unlink()
    assert train(config(*begun[:1], "stages.0.epochs=2", "resume=auto")) == folder
    model, *_ = load_model(folder / "last.safetensors")
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())


def test_classifier_of_other_classes_stays_as_drawn_and_is_named(config, tmp_path):
    path = tmp_path / "five.safetensors"
    source = saved(path, config(), list("abcde"))
    run = config(f"init.weights={path}", "seed=3")
    model = build_model(run, 2)
    drawn = {key: value.clone() for key, value in model.state_dict().items()}
    assert initialise(model, run, CLASSES).endswith("as drawn, for other classes: head.fc.weight, head.fc.bias")
    for key, value in model.state_dict().items():
        assert torch.equal(value, (drawn if key.startswith("head.fc.") else source.state_dict())[key])


def test_checkpoint_of_another_size_is_re_sampled(config, tmp_path):
    path = tmp_path / "small.safetensors"
    source = saved(path, config()).eval()
    s4nd.set_resample(source, "continuous")
    run = config(f"init.weights={path}", "stages.0.size=12")
    model = build_model(run, 2).eval()
    x = torch.randn(1, 3, 12, 12)
    expected = source(x)
    initialise(model, run, CLASSES)
    assert model.img_size == (12, 12)
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def convnext(config, name, *overrides):
    return config(SIZE, f"model.name={name}", "model.args={}", f"model.args={CONVNEXT}", *overrides)


@pytest.fixture
def bare(write_config, tmp_path):
    """A config without arguments of the isotropic network."""
    path = write_config("bare")
    path.write_text(path.read_text().replace("{embed_dim: 8, depth: 2}", "{}"))
    return lambda *overrides: load_config(path, overrides)


@pytest.mark.parametrize("plain", [False, True])
def test_video_model_is_inflated(bare, tmp_path, plain):
    path = tmp_path / "image.safetensors"
    source = saved(path, convnext(bare, "s4nd_convnext_tiny"))
    if plain:
        save_file(source.state_dict(), path, {"classes": json.dumps(CLASSES)})
    run = convnext(bare, "s4nd_convnext3d_tiny", f"init.inflate={path}")
    model, expected = build_model(run, 2), build_model(run, 2)
    expected.load_state_dict(model.state_dict())
    report = inflate(source, expected)
    assert initialise(model, run, CLASSES) == f"init.inflate={path}: {report}" and report.inflated
    assert all(torch.equal(value, expected.state_dict()[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("found", [["rows", "columns"], ["rows", "waves"], None])
def test_inflated_classifier_is_worth_its_names(bare, tmp_path, plain, found):
    """By name where the names are the same; otherwise as the video model drew it, and the report says so."""
    if found is None and not plain:
        found = ["a", "b", "c"]  # a checkpoint always names them; of another number
    path = tmp_path / "image.safetensors"
    source = saved(path, convnext(bare, "s4nd_convnext_tiny"), found or CLASSES)
    if plain:
        save_file(source.state_dict(), path, {"classes": json.dumps(found)} if found else None)
    run = convnext(bare, "s4nd_convnext3d_tiny", f"init.inflate={path}")
    model, expected = build_model(run, 2), build_model(run, 2)
    expected.load_state_dict(model.state_dict())
    drawn = {key: value.clone() for key, value in model.state_dict().items()}
    full = inflate(source, expected)
    report = initialise(model, run, CLASSES)
    if found == ["rows", "columns"]:
        rows = {key: source.state_dict()[key][[1, 0]] for key in HEAD}
        assert report.endswith("; rows of the classifier taken by name") and f"{len(full.copied)} copied" in report
    else:
        rows = {key: drawn[key] for key in HEAD}
        assert f"{len(full.copied) - 2 * all(key in full.copied for key in HEAD)} copied" in report
        assert "classifier as drawn" in report and ("does not name" in report if found is None else "only in" in report)
    assert same(model, {**expected.state_dict(), **rows})


def test_nothing_to_begin_with_changes_nothing(config):
    model = build_model(config(), 2)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert initialise(model, config(), CLASSES) is None
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_what_does_not_fit_is_an_error_that_names_the_key(config, bare, trained, tmp_path):
    run = config(f"init.inflate={trained}")
    with pytest.raises(
        ValueError, match=r"init.inflate=.*last.safetensors: inflate fills a ConvNeXt over .*, got Isotropic"
    ):
        initialise(build_model(run, 2), run, CLASSES)
    run = config(f"init.weights={trained}", "model.args.depth=3")
    with pytest.raises(
        ValueError, match=r"init.weights=.*: the weights are of another model than Isotropic: \d+ missing"
    ):
        initialise(build_model(run, 2), run, CLASSES)
    run = config(f"init.weights={tmp_path / 'nothing'}")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint .*nothing"):
        train(run)
    trained.write_bytes(trained.read_bytes()[:1000])
    run = config(f"init.weights={trained}")
    with pytest.raises(ValueError, match=r"init.weights=.*damaged, or no safetensors file"):
        initialise(build_model(run, 2), run, CLASSES)
    with pytest.raises(ValueError, match=r"init\.inflate and init\.weights are two beginnings: set one of them"):
        config("init.inflate=a", "init.weights=b")


# ---- tags that ship with the package

TAG = "s4nd_iso_tiny.cifar10"
WHOLE = ["model.args={embed_dim: 64, depth: 4, d_state: 32}", "stages.0.size=16"]  # the model that the tag is of


def test_shipped_tag_gives_its_weights_and_the_rows_of_its_classifier_by_name(config):
    run, file = config(f"init.weights={TAG}", *WHOLE), load_file(shipped_file(TAG))
    classes = list(timm.get_pretrained_cfg(TAG).label_names)[::-1]
    model = build_model(run, 10)
    assert initialise(model, run, classes).endswith("tensors; rows of the classifier taken by name")
    assert same(model, {**file, **{key: file[key].flip(0) for key in HEAD}})


def test_classifier_of_a_shipped_tag_is_not_taken_for_other_classes(config):
    run, file = config(f"init.weights={TAG}", *WHOLE), load_file(shipped_file(TAG))
    model = build_model(run, 2)
    drawn = {key: model.state_dict()[key].clone() for key in HEAD}
    assert "classifier as drawn, for other classes: head.fc.weight, head.fc.bias" in initialise(model, run, CLASSES)
    assert same(model, {**file, **drawn})


def test_a_tag_as_the_models_name_says_that_its_weights_are_not_taken(config, capsys):
    trainer = Trainer(config(f"model.name={TAG}", *WHOLE), torch.device("cpu"))
    trainer.learner.initialise()
    assert f"model.name={TAG}: weights as drawn; init.weights names those to begin with\n" in capsys.readouterr().out
    assert not torch.equal(
        trainer.learner.model.state_dict()["stem.weight"], load_file(shipped_file(TAG))["stem.weight"]
    )


def test_what_a_run_from_a_tag_writes_does_not_say_where_the_package_lies(config, tmp_path):
    run = config(f"init.weights={TAG}", f"model.name={TAG}", *WHOLE, f"out={tmp_path / 'run'}", "data.train_limit=16")
    for path in train(run).rglob("*"):
        assert not path.is_file() or str(WEIGHTS.parent).encode() not in path.read_bytes(), path
    assert load_model(tmp_path / "run" / "last.safetensors")[1].init.weights == TAG
