"""Optimizer groups and schedule against what the modules say and the schedule's closed form."""

import io
import math

import pytest
import timm
import torch
from timm.optim import list_optimizers, param_groups_layer_decay

import s4nd.models  # noqa: F401
from s4nd import param_groups
from s4nd.nn.optim_settings import settings_of
from s4nd.train.config import OptimConfig, ScheduleConfig, load_config
from s4nd.train.config.optimizers import problems_of_optimizer
from s4nd.train.engine import Trainer
from s4nd.train.optim import create_optimizer, create_schedule, layer_scales


@pytest.fixture
def model():
    return timm.create_model("s4nd_iso_tiny", embed_dim=8, depth=1, img_size=8)


def rates(optimizer) -> dict[str, float]:
    """Learning rate by group: `ssm` for the group of log_dt, `base` for the others'."""
    base = {group["lr"] for group in optimizer.param_groups if group["lr_scale"] == 1}
    ssm = {group["lr"] for group in optimizer.param_groups if group["lr_scale"] != 1}
    return {"base": base.pop() if len(base) == 1 else base, "ssm": ssm.pop() if len(ssm) == 1 else ssm}


def lr_and_decay_of(model, optimizer, ending):
    wanted = {id(p) for name, p in model.named_parameters() if name.endswith(ending)}
    groups = [g for g in optimizer.param_groups if wanted & {id(p) for p in g["params"]}]
    assert len(groups) == 1
    return groups[0]["lr"] * groups[0]["lr_scale"], groups[0]["weight_decay"]


def test_every_parameter_is_in_one_group(model):
    optimizer = create_optimizer(model, OptimConfig())
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())


def test_groups_follow_what_modules_say(model):
    optimizer = create_optimizer(model, OptimConfig(lr=0.01, weight_decay=0.05))
    assert lr_and_decay_of(model, optimizer, "log_dt") == (pytest.approx(1e-3), 0.0)
    assert lr_and_decay_of(model, optimizer, "proj.weight") == (pytest.approx(0.01), 0.05)
    assert lr_and_decay_of(model, optimizer, "norm.bias") == (pytest.approx(0.01), 0.0)


def test_ssm_lr_overrides_what_modules_say(model):
    optimizer = create_optimizer(model, OptimConfig(lr=0.01, ssm_lr=2e-4))
    assert lr_and_decay_of(model, optimizer, "log_dt")[0] == pytest.approx(2e-4)


def test_schedule_is_its_closed_form_and_groups_keep_their_ratio(model):
    lr, low, epochs, steps, W = 0.01, 1e-4, 5, 10, 20
    optimizer = create_optimizer(model, OptimConfig(lr=lr))
    schedule = create_schedule(optimizer, ScheduleConfig(warmup_epochs=2, min_lr=low), epochs, steps)
    for t in range(epochs * steps):
        schedule.step_update(t)
        cosine = low + (lr - low) * (1 + math.cos(math.pi * (t - W) / (epochs * steps - W))) / 2
        expected = lr * t / W if t < W else cosine
        assert rates(optimizer) == {"base": pytest.approx(expected), "ssm": pytest.approx(0.1 * expected)}


def test_no_group_starts_above_its_own_rate(model):
    optimizer = create_optimizer(model, OptimConfig(lr=0.01))
    create_schedule(optimizer, ScheduleConfig(warmup_epochs=1), 2, 10)
    assert rates(optimizer) == {"base": 0.0, "ssm": 0.0}


def test_single_step_is_made_at_the_full_rate(model):
    optimizer = create_optimizer(model, OptimConfig(lr=0.01))
    create_schedule(optimizer, ScheduleConfig(warmup_epochs=0.9), 1, 1).step_update(0)
    assert rates(optimizer)["base"] == 0.01


# ---- any optimizer of timm's


def choices() -> list[str]:
    """The optimizers that the door lets in."""
    return [name for name in list_optimizers() if not [*problems_of_optimizer(OptimConfig(opt=name), "ddp")]]


@pytest.fixture
def eager():
    with torch.compiler.set_stance("force_eager"):
        yield


def walk(model, optimizer, steps):
    """Steps with gradients that follow from their number, the first one at a rate of 0, as at the start of a warm-up."""
    for t in steps:
        rng = torch.Generator().manual_seed(t)
        for group in optimizer.param_groups:
            group["lr"] = group["lr_scale"] * 0.01 * min(t, 2) / 2
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=rng)
        optimizer.step()


def built(weights=None, **args):
    torch.manual_seed(0)
    args = dict(embed_dim=4, depth=1, d_state=2, img_size=8, num_classes=2) | args
    model = timm.create_model("s4nd_iso_tiny", **args)
    if weights is not None:
        model.load_state_dict(weights)
    return model


@pytest.mark.parametrize("opt", choices())
def test_optimizer_goes_on_from_its_saved_moments_and_decays_no_state_space_parameter(opt, eager):
    config, whole = OptimConfig(opt=opt, lr=0.01, weight_decay=0.1), built()
    walk(whole, create_optimizer(whole, config), range(6))
    first = built()
    optimizer = create_optimizer(first, config)
    walk(first, optimizer, range(3))
    file = io.BytesIO()
    torch.save([first.state_dict(), optimizer.state_dict()], file)
    file.seek(0)
    weights, moments = torch.load(file, weights_only=True)  # as train/state.py keeps them
    second = built(weights)
    optimizer = create_optimizer(second, config)
    optimizer.load_state_dict(moments)
    walk(second, optimizer, range(3, 6))
    for (name, one), other in zip(whole.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other) and one.isfinite().all(), name
    ssm = {name for name in dict(whole.named_parameters()) if name.endswith(("log_dt", "log_A_real", "A_imag"))}
    said = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for name in ssm:
        group = said[id(dict(second.named_parameters())[name])]
        assert (group["lr_scale"], group["weight_decay"]) == (pytest.approx(0.1), 0.0)
    assert len(ssm) >= 2


@pytest.mark.parametrize("opt", ["sgd", "lamb", "lion", "adafactor", "radamw"])
def test_decay_leaves_state_space_parameters(opt):
    """Without a gradient nothing moves but what decays."""
    model = built()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = create_optimizer(model, OptimConfig(opt=opt, lr=0.1, weight_decay=0.5))
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert "blocks.0.mixer.proj.weight" in moved and not [
        name for name in moved if "kernels" in name and "C" not in name
    ]


def test_muon_takes_no_state_space_parameters(eager):
    """Those of several SSMs with several modes have the shape of a map."""
    model = built(n_ssm=4, d_state=8)
    optimizer = create_optimizer(model, OptimConfig(opt="muon", lr=0.01))
    walk(model, optimizer, range(1, 2))
    own = settings_of(model)
    taken = {name for name, p in model.named_parameters() if optimizer.state[p]["use_muon"]}
    assert "blocks.0.mixer.proj.weight" in taken and own and not taken & own.keys()


def found(opt="adamw", parallel="ddp", **args):
    return "; ".join(problems_of_optimizer(OptimConfig(opt=opt, args=args), parallel))


@pytest.mark.parametrize(
    "opt, reason",
    [
        ("adahessian", "it needs second derivatives"),
        ("lookahead_adamw", "its slow weights are not among the moments"),
        ("kronw", "a run that is continued from its saved state goes on otherwise"),
        ("bnbadam8bit", "it is of the package bitsandbytes"),
        ("fusedlamb", "it is of the package apex"),
        ("adam_w", "timm has no optimizer of this name; did you mean adamw"),
        ("AdamW", "timm has no optimizer of this name; did you mean adamw"),
    ],
)
def test_optimizer_that_cannot_be_is_refused_by_name(opt, reason):
    assert f"optim.opt={opt!r} cannot be trained with: {reason}" in found(opt)


@pytest.mark.parametrize("opt", ["muon", "nadamuon", "csgdp", "novogradw", "madgradw"])
def test_optimizer_of_whole_matrices_is_not_divided(opt):
    assert "parallel=fsdp divides them" in found(opt, "fsdp") and not found(opt)


@pytest.mark.parametrize(
    "opt, args, message",
    [
        ("adamw", {"beta": [0.9, 0.95]}, "optim.args.beta is unknown; did you mean betas?"),
        ("adamw", {"momentum": 0.9}, "optim.args.momentum is unknown; adamw takes betas, eps"),
        ("lion", {"eps": 1e-6}, "optim.args.eps is unknown; lion takes"),
        ("adamw", {"lr": 0.1}, "optim.args.lr cannot be set: it is optim.lr"),
        ("muon", {"adamw_lr": 0.1}, "optim.args.adamw_lr cannot be set: a rate of its own would not follow"),
        ("adamw", {"betas": [0.9, 1.5]}, "adamw refuses it: Invalid beta parameter at index 1: 1.5"),
        ("sgd", {"momentum": -1}, "sgd refuses it: Invalid momentum value: -1"),
        ("sgd", {"momentum": 0.0}, "sgd refuses it: Nesterov momentum requires a momentum"),
        ("adamw", {"betas": "many"}, "adamw refuses it"),
    ],
)
def test_argument_that_the_optimizer_does_not_take_is_named(opt, args, message):
    assert message in found(opt, **args)


def test_arguments_come_from_files_and_overrides(tmp_path):
    (tmp_path / "x.yaml").write_text("stages: [{size: 8}]\noptim: {opt: sgd, args: {momentum: 0.5, nesterov: false}}")
    config = load_config(tmp_path / "x.yaml", ["optim.args.momentum=0.75", "optim.args.dampening=0.5"]).optim
    assert config.args == {"momentum": 0.75, "nesterov": False, "dampening": 0.5}
    (group, *_) = create_optimizer(built(), config).param_groups
    assert (group["momentum"], group["nesterov"], group["dampening"]) == (0.75, False, 0.5)


# ---- layer decay


MODELS = {
    "s4nd_iso_tiny": {"embed_dim": 8, "depth": 3},
    "conv_iso_tiny": {"embed_dim": 8, "depth": 3},
    "s4nd_vit_tiny_patch16_224": {"embed_dim": 16, "depth": 3, "num_heads": 2, "patch_size": 4},
    "s4nd_convnext_micro": {"depths": (1, 2, 1, 1), "dims": (8, 8, 16, 16)},
    "convnext_atto": {"depths": (1, 2, 1, 1), "dims": (8, 8, 16, 16)},
    "s4nd_convnext3d_micro": {"depths": (1, 2, 1, 1), "dims": (8, 8, 16, 16)},
    "deit_tiny_patch16_224": {"embed_dim": 16, "depth": 3, "num_heads": 2},
    "resnet18": {},
}


def small(name):
    torch.manual_seed(0)
    size = {} if name.startswith(("convnext_atto", "resnet", "deit")) else {"img_size": 32}
    return timm.create_model(name, num_classes=3, **size, **MODELS[name])


@pytest.mark.parametrize("name", MODELS)
def test_layer_decay_is_that_of_timm_times_the_rate_of_the_parameter(name):
    """timm's own groups say the scale of each layer; the state-space parameters' largest rate is their modules'."""
    model, config = small(name), OptimConfig(lr=0.01, weight_decay=0.05, layer_decay=0.7)
    names = {id(p): n for n, p in model.named_parameters()}
    reference = param_groups_layer_decay(model, layer_decay=0.7)
    scales = {names[id(p)]: group["lr_scale"] for group in reference for p in group["params"]}
    assert len(set(scales.values())) > 3
    said, seen = settings_of(model), {}
    for group in create_optimizer(model, config).param_groups:
        for p in group["params"]:
            assert names[id(p)] not in seen
            seen[names[id(p)]] = group["lr"] * group["lr_scale"], group["weight_decay"]
    assert seen.keys() == scales.keys() == set(names.values())
    plain = {id(p): g["weight_decay"] for g in param_groups(model, 0.01, 0.05) for p in g["params"]}
    for key, (rate, decay) in seen.items():
        assert rate == pytest.approx((1e-3 if key in said else 0.01) * scales[key]), key
        assert decay == plain[id(model.get_parameter(key))]
    assert bool(said) == name.startswith("s4nd")


def test_layer_decay_goes_by_depth():
    """Of three blocks: the head at the full rate, and from there down half the rate for each layer."""
    scales = layer_scales(small("s4nd_iso_tiny"), 0.5)
    expected = {"head.fc.weight": 0, "norm.weight": 1, "blocks.2.norm.weight": 1, "blocks.1.norm.weight": 2}
    expected |= {"blocks.0.mixer.s4nd.kernels.0.log_dt": 3, "stem.weight": 4}
    assert {name: scales[name] for name in expected} == {name: 0.5**above for name, above in expected.items()}


def test_layer_decay_of_one_changes_no_rate():
    model = small("s4nd_iso_tiny")
    for decay in (None, 1.0):
        optimizer = create_optimizer(model, OptimConfig(lr=0.01, layer_decay=decay))
        assert {group["lr_scale"] for group in optimizer.param_groups} == {1.0, 1e-3 / 0.01}


def test_ssm_lr_and_schedule_keep_their_ratio_under_layer_decay():
    model = small("s4nd_iso_tiny")
    optimizer = create_optimizer(model, OptimConfig(lr=0.01, ssm_lr=0.002, layer_decay=0.5))
    schedule = create_schedule(optimizer, ScheduleConfig(warmup_epochs=1, warmup_lr=0.001, min_lr=0.0005), 3, 10)
    for t in (0, 5, 29):
        schedule.step_update(t)
        by_name = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        lr = {name: by_name[id(p)] for name, p in model.named_parameters()}
        assert lr["stem.weight"] == pytest.approx(lr["head.fc.weight"] / 16) and lr["head.fc.weight"] > 0
        assert lr["blocks.0.mixer.s4nd.kernels.0.log_dt"] == pytest.approx(lr["head.fc.weight"] * 0.2 / 8)


def test_model_that_does_not_say_its_layers_is_refused_before_it_trains(write_config):
    with pytest.raises(ValueError, match=r"optim.layer_decay: Linear does not say its layers"):
        layer_scales(torch.nn.Linear(2, 2), 0.5)

    class One(torch.nn.Linear):
        def group_matcher(self, coarse=False):
            return dict(stem=r".*")

    with pytest.raises(ValueError, match=r"all parameters of One are of one layer"):
        layer_scales(One(2, 2), 0.5)
    trainer = Trainer(load_config(write_config(), ["optim.layer_decay=0.5"]), torch.device("cpu"))
    trainer.learner.check_stages()
    trainer.learner.model = One(2, 2)
    with pytest.raises(ValueError, match="are of one layer"):
        trainer.learner.check_stages()
