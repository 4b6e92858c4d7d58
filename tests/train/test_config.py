"""Configs against what a user may get wrong: every mistake has an error that names the key and says what was needed."""

import re
from pathlib import Path

import pytest
import yaml

from s4nd.train.config import Config, config_from_dict, config_to_dict, load_config

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.fixture
def write(tmp_path):
    def write(text: str = "stages: [{size: 16, epochs: 3}]") -> Path:
        path = tmp_path / "x.yaml"
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*/*.yaml")), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_shipped_config_loads_and_names_its_command(path):
    load_config(path)
    name = f"configs/{path.parent.name}/{path.name}"
    commands = (f"# s4nd train {name}", f"# torchrun --nproc-per-node 8 -m s4nd.train {name}")
    assert path.read_text().startswith(commands)


@pytest.mark.parametrize(
    "text, message",
    [
        ("optim: {weigth_decay: 0.05}", "optim.weigth_decay is unknown; did you mean weight_decay?"),
        ("stages: [{size: 8}, {sise: 8}]", "stages.1.sise is unknown; did you mean size?"),
        ("batchsize: 3", "batchsize is unknown; did you mean batch_size?"),
        ("qqq: 3", "qqq is unknown; known here: data, model, stages"),
    ],
)
def test_unknown_key_names_file_and_nearest_key(write, text, message):
    path = write(text)
    with pytest.raises(KeyError, match=re.escape(f"{path}: {message}")):
        load_config(path)


@pytest.mark.parametrize(
    "text, message",
    [
        ("optim: {lr: fast}", "optim.lr: Value 'fast'"),
        ("stages: [{size: 8}, {size: big}]", "stages.1.size: Value 'big'"),
        ("optim: 3", "optim must be a mapping of keys to values, got 3"),
        ("stages: [3]", "stages.0 must be a mapping"),
        ("stages: 3", "stages: "),
        ("model: {args: 3}", "model.args: "),
        ("- 1", "the config must be a mapping"),
        ("a: [1", "not valid YAML"),
        ("seed: ${nowhere}", "nowhere"),
    ],
)
def test_wrong_type_names_the_key(write, text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        load_config(write(text))


@pytest.mark.parametrize(
    "override, message",
    [
        ("stages.0.size=0", "stages.0.size must be at least 1, got 0"),
        ("stages.0.epochs=-1", "stages.0.epochs must be at least 1, got -1"),
        ("stages=[]", "stages must hold at least one stage"),
        ("optim.lr=0", "optim.lr must be positive, got 0"),
        ("optim.lr=.nan", "optim.lr must be at least 0, got nan"),
        ("data.pad=2", "data.pad must be in [0, 1], got 2"),
        ("batch_size=0", "batch_size must be at least 1, got 0"),
        ("amp=fp8", "amp must be none, bf16 or fp16, got 'fp8'"),
        ("schedule.warmup_epochs=3", "schedule.warmup_epochs=3 must be less than stages.0.epochs=3"),
        (
            "model.args.pretrained=true",
            "model.args.pretrained cannot be set: models are built from their name as drawn; init.weights",
        ),
        ("model.args.num_classes=3", "model.args.num_classes cannot be set: it is the number of classes in the data"),
        (
            "data.auto_augment=rand-m9-q",
            "data.auto_augment 'rand-m9-q' has the unknown part 'q'; known in rand: mN, nN, pN",
        ),
        ("data.crop_scale=[0.5]", "data.crop_scale must be two numbers above 0, low and high, at most 1, got [0.5]"),
        ("data.crop_scale=0.5", "data.crop_scale: Invalid value assigned: float is not a ListConfig"),
        (
            "data.interpolation=cubic",
            "data.interpolation must be one of bilinear, bicubic, nearest, box, hamming, lanczos",
        ),
        ("data.reprob=2", "data.reprob must be in [0, 1], got 2"),
        ("data.recount=3", "data.recount is of random erasing: it needs a reprob above 0"),
        ("data.aug_repeats=0", "data.aug_repeats must be at least 1, got 0"),
        ("mixup_mode=all", "mixup_mode must be batch, pair or elem, got 'all'"),
        ("mixup_mode=pair", "mixup_mode is of mixup and cutmix: set one of them"),
        ("mixup_prob=1.5", "mixup_prob must be in [0, 1], got 1.5"),
        ("mixup_prob=0.5", "mixup_prob is of mixup and cutmix: set one of them"),
        ("mixup_switch_prob=0.3", "mixup_switch_prob is between mixup and cutmix: set both"),
        ("wandb=a/b", "wandb must be the name of a project, at most 128 characters and none of / "),
        ("wandb=''", "wandb must be the name of a project"),
        ("optim.layer_decay=1.5", "optim.layer_decay must be in [0, 1], got 1.5"),
        ("optim.layer_decay=0", "optim.layer_decay must be positive, got 0"),
        ("optim.opt=adahessian", "optim.opt='adahessian' cannot be trained with: it needs second derivatives"),
        ("optim.args.eta=3", "optim.args.eta is unknown; did you mean"),
        ("seed", "an override must be key=value, got 'seed'"),
    ],
)
def test_bad_value_says_what_was_needed(write, override, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        load_config(write(), [override])


def test_shift_and_random_crops_exclude_each_other(write):
    with pytest.raises(ValueError, match=r"data\.pad and data\.crop_scale are two ways to crop at random"):
        load_config(write(), ["data.pad=0.1", "data.crop_scale=[0.08, 1]"])


@pytest.mark.parametrize(
    "key, value",
    [
        ("interpolation", "bicubic"),
        ("train_interpolation", "bicubic"),
        ("crop_pct", "0.9"),
        ("crop_scale", "[0.08, 1]"),
        ("auto_augment", "rand-m9"),
        ("color_jitter", "0.4"),
        ("reprob", "0.25"),
        ("aug_repeats", "3"),
    ],
)
def test_transforms_of_images_are_refused_for_videos_and_kept_for_images(write, key, value):
    with pytest.raises(ValueError, match=f"data.{key} is for images, and data.name is video"):
        load_config(write(), ["data.name=video", f"data.{key}={value}"])
    transforms = load_config(write(), [f"data.{key}={value}"]).data.transforms()
    assert getattr(transforms, key) == yaml.safe_load(value)


def test_imagenet_recipe_survives_the_way_through_plain_containers(write):
    recipe = [
        "crop_scale=[0.08, 1]",
        "auto_augment=rand-m9-mstd0.5-inc1",
        "reprob=0.25",
        "aug_repeats=3",
        "crop_pct=0.875",
    ]
    config = load_config(write(), ["mixup=0.8", "cutmix=1", "mixup_mode=elem", *(f"data.{key}" for key in recipe)])
    assert config_from_dict(config_to_dict(config), "there") == config and config.data.crop_scale == [0.08, 1]


def test_overrides_reach_stages_and_free_model_args(write):
    config = load_config(
        write(), ["stages.0.size=24", "optim.lr=3e-4", "model.args.depth=3", "model.args.kernel=[a, b]"]
    )
    assert config.stages[0].size == 24 and config.stages[0].epochs == 3
    assert config.optim.lr == 3e-4
    assert config.model.args == {"depth": 3, "kernel": ["a", "b"]}


def test_unknown_override_names_itself(write):
    with pytest.raises(KeyError, match=re.escape("override 'optim.Lr=3': optim.Lr is unknown; did you mean lr?")):
        load_config(write(), ["optim.Lr=3"])
    with pytest.raises(KeyError, match="there are 1 stages, counted from 0"):
        load_config(write(), ["stages.1.size=3"])


def test_config_survives_the_way_through_plain_containers(write):
    config = load_config(write(), ["model.args.init=[lin, inv]", "stages.0.bandlimit=0.5"])
    assert config_from_dict(config_to_dict(config), "there") == config


def test_stored_config_cannot_read_the_environment(write):
    tree = config_to_dict(load_config(write())) | {"out": "${oc.env:HOME}"}
    with pytest.raises(ValueError, match="interpolations are not allowed"):
        config_from_dict(tree, "there")


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no config file"):
        load_config(tmp_path / "none.yaml")


def test_file_holds_only_what_differs_from_its_base(tmp_path):
    (tmp_path / "recipe.yaml").write_text(
        "data: {name: photos, hflip: false}\nmodel: {name: conv_iso_tiny, args: {depth: 2}}\noptim: {lr: 0.5}\n"
        "stages: [{size: 8, epochs: 3}, {size: 16, epochs: 1}]\n"
    )
    (tmp_path / "middle.yaml").write_text("base: recipe.yaml\noptim: {weight_decay: 0.25}\n")
    (tmp_path / "model.yaml").write_text(
        "base: middle.yaml\nmodel: {name: s4nd_iso_tiny, args: {rank: 2}}\nstages: [{size: 12, epochs: 2}]\n"
    )
    config = load_config(tmp_path / "model.yaml", ["optim.lr=0.125"])
    assert (config.optim.lr, config.optim.weight_decay, config.data.hflip) == (0.125, 0.25, False)
    assert (config.model.name, config.model.args) == ("s4nd_iso_tiny", {"depth": 2, "rank": 2})
    assert [(stage.size, stage.epochs) for stage in config.stages] == [(12, 2)]


def test_base_that_cannot_be_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("base: b.yaml\n")
    with pytest.raises(FileNotFoundError, match=r"b.yaml, the base of .*a.yaml"):
        load_config(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_text("base: a.yaml\n")
    with pytest.raises(ValueError, match="based on each other"):
        load_config(tmp_path / "a.yaml")
    (tmp_path / "a.yaml").write_text("base: [b.yaml]\n")
    with pytest.raises(ValueError, match="base must be the name of a file beside it"):
        load_config(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_text("optim: {lr2: 1}\n")
    (tmp_path / "a.yaml").write_text("base: b.yaml\n")
    with pytest.raises(KeyError, match=r"b.yaml: optim.lr2 is unknown"):
        load_config(tmp_path / "a.yaml")


def refused(write, text):
    """The message with which a file is refused."""
    with pytest.raises(ValueError) as error:
        load_config(write(text))
    return str(error.value)


def tags(marker):
    """Values that would make a file, if they were made to what they stand for."""
    return [
        f"!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [{marker}]]",
        f"!!python/object/apply:os.system ['touch {marker}']",
        f"!!python/object/new:os.system ['touch {marker}']",
        f"!!python/object/apply:pathlib.Path [{marker}]",
        "!!python/name:os.system ''",
        "!own {a: 1}",
        "!!str text",
        "! text",
    ]


@pytest.mark.parametrize("which", range(8))
def test_tag_is_refused_by_name_wherever_it_stands_and_nothing_is_run(write, tmp_path, which):
    marker = tmp_path / "made"
    text = tags(marker)[which]
    tag = re.escape(text.split()[0].replace("!!", "tag:yaml.org,2002:"))
    message = f"line {{}}: the tag {tag} is refused"
    with pytest.raises(ValueError, match=rf"x\.yaml: {message.format(2)}"):
        load_config(write(f"seed: 1\nout: {text}"))
    with pytest.raises(ValueError, match=message.format(1)):
        load_config(write(), [f"out={text}"])
    with pytest.raises(ValueError, match=message.format(1)):
        load_config(write(), [f"model.args.kernel=[{text}]"])
    (tmp_path / "below.yaml").write_text(f"out: {text}")
    with pytest.raises(ValueError, match=rf"below\.yaml: {message.format(1)}"):
        load_config(write("base: below.yaml"))
    assert not marker.exists()


def test_tag_in_a_stored_config_is_only_text(write, tmp_path):
    marker = tmp_path / "made"
    for text in tags(marker):
        tree = config_to_dict(load_config(write())) | {"out": text}
        assert config_from_dict(tree, "there").out == text
    assert not marker.exists()


def test_stored_config_has_no_base(write):
    with pytest.raises(KeyError, match="there: base is unknown"):
        config_from_dict(config_to_dict(load_config(write())) | {"base": "/etc/passwd"}, "there")


def test_base_may_lie_in_any_folder(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    (tmp_path / "one" / "base.yaml").write_text("optim: {lr: 0.5}\nstages: [{size: 8}]")
    for name in ("../one/base.yaml", str(tmp_path / "one" / "base.yaml")):
        (tmp_path / "two" / "x.yaml").write_text(f"base: {name}")
        assert load_config(tmp_path / "two" / "x.yaml").optim.lr == 0.5


def test_aliases_are_refused_before_they_grow(write):
    """Of 9 lists of 9 of the one before, 9^9 values; and of an anchor that holds itself."""
    lines = ["a0: &a0 [1]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
    assert "line 2: the alias *a0 is refused" in refused(write, "\n".join(lines))
    assert "the alias *a is refused" in refused(write, "model: &a {args: *a}")
    with pytest.raises(ValueError, match="alias"):
        load_config(write(), ["model.args.a=[&a 1, *a]"])


@pytest.mark.parametrize("inside", ["[" * 3_000, "{a: " * 3_000, "[" * 33 + "]" * 33, "- " * 3_000])
def test_deep_nesting_is_an_error_that_says_so(write, inside):
    assert "more than 32 mappings and lists within each other" in refused(
        write, f"model:\n  args:\n    a:\n     {inside}"
    )
    with pytest.raises(ValueError, match="more than 32 mappings and lists"):
        load_config(write(), [f"model.args.a={inside}"])


def test_deep_nesting_of_a_stored_config_is_an_error(write):
    tree = config_to_dict(load_config(write()))
    for kind in (lambda inner: [inner], lambda inner: {"a": inner}):
        deep = 1
        for _ in range(20_000):
            deep = kind(deep)
        with pytest.raises(ValueError, match="there: more than 32 mappings"):
            config_from_dict(tree | {"model": {"args": {"a": deep}}}, "there")


def test_file_that_is_too_long_is_refused_before_it_is_read(write, tmp_path):
    path = tmp_path / "x.yaml"
    with path.open("wb") as file:
        file.truncate(50 * 2**20)
    with pytest.raises(ValueError, match=r"x\.yaml: a config must be at most 1048576 bytes long"):
        load_config(path)


def test_message_about_a_value_of_any_length_is_short(write):
    for text in (f"optim: [{'1, ' * 100_000}1]", f"optim: {{lr: {'x' * 100_000}}}", f"stages: [{'y' * 100_000}]"):
        assert len(refused(write, text)) < 1000


@pytest.mark.parametrize(
    "text, message",
    [
        ("seed: 1\nseed: 2", "line 2: seed is there twice"),
        ("optim: {lr: 1, lr: 2}", "line 1: optim.lr is there twice"),
        ("stages: [{size: 8}, {size: 8, size: 9}]", "line 1: stages.1.size is there twice"),
        ("optim: {lr: 1}\noptim.lr: 2", "line 2: optim.lr is there twice"),
        ('model: {args: {1: a, "1": b}}', "line 1: model.args.1 is there twice"),
        ("? [a]\n: 1", "line 1: a key must be a plain word"),
    ],
)
def test_key_that_is_there_twice_is_refused(write, text, message):
    assert message in refused(write, text)


def test_same_key_in_several_places_is_none_twice(write):
    config = load_config(write("stages: [{size: 8}, {size: 9}]\nmodel: {args: {size: [1, {a: 2}, {a: 3}]}}"))
    assert [stage.size for stage in config.stages] == [8, 9]


@pytest.mark.parametrize("content", [b"seed: \xff", b"seed: 1\0", b"\xff\xfes\0e\0", b"out: \x07"])
def test_file_that_is_no_text_is_refused(tmp_path, content):
    (tmp_path / "x.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.yaml: not valid YAML"):
        load_config(tmp_path / "x.yaml")


def test_config_that_was_not_loaded_has_no_run_directory():
    with pytest.raises(ValueError, match="out must name the run directory, got None"):
        Config().folder  # noqa: B018
