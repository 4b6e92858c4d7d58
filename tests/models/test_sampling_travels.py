"""A model saved in any way and loaded into one built for anything else, against the model that was saved, at three sizes."""

import functools
import json
import warnings

import pytest
import timm
import timm.utils
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, load_model, save_file, save_model
from timm.models import save_for_hf
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

from s4nd import S4ND, set_bandlimit
from tests.small import ARGS, SIZES, assert_close, build, images, layers

F32 = torch.float32
NAMES = [
    "s4nd_iso_tiny",
    "s4nd_convnext_micro",
    "s4nd_convnext_tiny, S4ND stem",
    "s4nd_vit_tiny_patch16_224",
    "s4nd_convnext3d_micro",
]
# Another size than the trained one, for each of them.
OTHER = {
    "s4nd_iso_tiny": dict(img_size=12),
    "s4nd_convnext_micro": dict(img_size=(64, 32)),
    "s4nd_convnext_tiny, S4ND stem": dict(img_size=64),
    "s4nd_vit_tiny_patch16_224": dict(img_size=48),
    "s4nd_convnext3d_micro": dict(img_size=48, num_frames=8),
}
SETTINGS = dict(bandlimit=0.7, align="edge", l_max=3)

every_model = pytest.mark.parametrize("name", NAMES)

pytestmark = pytest.mark.filterwarnings(
    "ignore:torch.distributed is disabled, unavailable or uninitialized:UserWarning"
)


def trained(name, seed=1):
    """As after training with a bandlimit."""
    model = build(name, seed, F32)
    set_bandlimit(model, 0.4)
    return model


def other(name, **changes):
    return build(name, 2, F32, **{**OTHER[name], **SETTINGS, **changes})


@torch.no_grad()
def answers(model, name, dtype=F32):
    return [model(images(name, number, dtype=dtype)) for number in range(len(SIZES[name]))]


@functools.cache
def saved(name):
    """For all tests that save it and do not change it: the model and its answers."""
    model = trained(name)
    return model, answers(model, name)


def assert_same(loaded, model, name, dtype=F32, expected=None):
    for y, e in zip(answers(loaded.eval(), name, dtype), expected or answers(model, name, dtype), strict=True):
        assert_close(y, e)
    for key, layer in layers(loaded).items():
        source = model.get_submodule(key)
        assert (layer.base_size, layer.l_max, layer.align) == (source.base_size, source.l_max, source.align)


def by_state_dict(model, name, folder):
    loaded = other(name)
    answers(loaded, name)  # it has been used before
    loaded.load_state_dict(model.state_dict())
    return loaded


def by_assignment(model, name, folder):
    loaded = other(name)
    loaded.load_state_dict(model.state_dict(), assign=True)
    return loaded


def not_strictly(model, name, folder):
    loaded = other(name)
    loaded.load_state_dict({"more": torch.zeros(1), **model.state_dict()}, strict=False)
    return loaded


def by_safetensors(model, name, folder):
    loaded = other(name)
    save_file(model.state_dict(), folder / "x.safetensors")
    loaded.load_state_dict(load_file(folder / "x.safetensors"))
    return loaded


def by_safetensors_model(model, name, folder):
    loaded = other(name)
    save_model(model, folder / "x.safetensors")
    load_model(loaded, folder / "x.safetensors")
    return loaded


def by_torch_save(model, name, folder):
    loaded = other(name)
    torch.save(model.state_dict(), folder / "x.pt")
    loaded.load_state_dict(torch.load(folder / "x.pt", weights_only=True))
    return loaded


def by_checkpoint_path(model, name, folder):
    save_file(model.state_dict(), folder / "x.safetensors")
    return other(name, checkpoint_path=str(folder / "x.safetensors"))


def by_timm_checkpoint(model, name, folder):
    """What timm's CheckpointSaver writes."""
    ema = timm.utils.ModelEmaV3(model)
    state = {"state_dict": build(name, 5, F32).state_dict(), "state_dict_ema": timm.utils.get_state_dict(ema)}
    torch.save({"epoch": 3, "arch": name, **state}, folder / "x.pth.tar")
    return other(name, checkpoint_path=str(folder / "x.pth.tar"))


def by_average(model, name, folder):
    """As timm's avg_checkpoints.py averages files; here equal ones."""
    states = [model.state_dict() for _ in range(3)]
    average = {key: sum(state[key].double() for state in states) / 3 for key in states[0]}
    save_file({key: value.float() for key, value in average.items()}, folder / "x.safetensors")
    return other(name, checkpoint_path=str(folder / "x.safetensors"))


def by_hub_folder(model, name, folder):
    save_for_hf(model, folder, model_args=json.loads(json.dumps(ARGS[name])), safe_serialization=True)
    return timm.create_model(f"local-dir:{folder}", pretrained=True, **{**OTHER[name], **SETTINGS})


def by_hub_folder_without_arguments(model, name, folder):
    """Its config does not say the size."""
    args = {key: value for key, value in ARGS[name].items() if key not in ("img_size", "num_frames")}
    save_for_hf(model, folder, model_args=args)
    return timm.create_model(f"local-dir:{folder}", pretrained=True)


def by_averages(model, name, folder):
    """ModelEmaV3 of a model of another sampling, loaded with the averages of this one, then saved."""
    ema = timm.utils.ModelEmaV3(other(name))
    ema.load_state_dict(timm.utils.ModelEmaV3(model).state_dict())
    loaded = other(name)
    loaded.load_state_dict(ema.module.state_dict())
    return loaded


def by_distributed_checkpoint(model, name, folder):
    dcp.save({"model": get_model_state_dict(model)}, checkpoint_id=folder / "dcp", no_dist=True)
    loaded = other(name)
    state = {"model": get_model_state_dict(loaded)}
    dcp.load(state, checkpoint_id=folder / "dcp", no_dist=True)
    set_model_state_dict(loaded, state["model"])
    return loaded


def onto_meta_and_assigned(model, name, folder):
    with torch.device("meta"):
        loaded = other(name)
    loaded.load_state_dict(model.state_dict(), assign=True)
    return loaded


def onto_meta_and_emptied(model, name, folder):
    with torch.device("meta"):
        loaded = other(name)
    loaded.to_empty(device="cpu").load_state_dict(model.state_dict())
    return loaded


WAYS = {
    "state_dict": by_state_dict,
    "state_dict, assign": by_assignment,
    "state_dict, not strict": not_strictly,
    "safetensors": by_safetensors,
    "safetensors, save_model": by_safetensors_model,
    "torch.save": by_torch_save,
    "timm, checkpoint_path": by_checkpoint_path,
    "timm, CheckpointSaver with EMA": by_timm_checkpoint,
    "timm, average of checkpoints": by_average,
    "timm, hub": by_hub_folder,
    "timm, hub without arguments": by_hub_folder_without_arguments,
    "timm, ModelEmaV3": by_averages,
    "DCP": by_distributed_checkpoint,
    "meta, assign": onto_meta_and_assigned,
    "meta, to_empty": onto_meta_and_emptied,
}


@pytest.mark.parametrize("way", WAYS)
@every_model
def test_model_answers_the_same_after_any_way_of_saving(name, way, tmp_path):
    model, expected = saved(name)
    loaded = WAYS[way](model, name, tmp_path)
    assert all(p.device.type == "cpu" for p in loaded.parameters())
    assert_same(loaded, model, name, expected=expected)


@pytest.mark.parametrize("changed", ["size", *SETTINGS])
@every_model
def test_each_part_of_it_travels(name, changed):
    """The receiver differs in one thing only."""
    model, expected = saved(name)
    loaded = build(name, 1, F32, **(OTHER[name] if changed == "size" else {changed: SETTINGS[changed]}))
    loaded.load_state_dict(model.state_dict())
    assert_same(loaded, model, name, expected=expected)


@every_model
def test_without_it_the_answers_would_be_others(name):
    """Else the tests above could not fail."""
    model, loaded = trained(name), other(name)
    with torch.no_grad():
        for p, q in zip(loaded.parameters(), model.parameters(), strict=True):
            p.copy_(q)
    for y, e in zip(answers(loaded, name), answers(model, name), strict=True):
        assert (y - e).abs().max() > 1e-3 * e.abs().max()


@pytest.mark.parametrize("built", ["old", "new", "third"])
@every_model
def test_model_fine_tuned_at_another_size_is_itself_wherever_it_is_loaded(name, built, tmp_path):
    """set_input_size, save, build at any size, load: what timm documents."""
    model = build(name, 1, F32)
    model.set_input_size(**OTHER[name])
    third = dict(img_size=24 if "vit" in name else 96, **({"num_frames": 12} if "3d" in name else {}))
    if name == "s4nd_iso_tiny":
        third = dict(img_size=5)
    loaded = build(name, 2, F32, **{"old": {}, "new": OTHER[name], "third": third}[built])
    save_file(model.state_dict(), tmp_path / "x.safetensors")
    loaded.load_state_dict(load_file(tmp_path / "x.safetensors"))
    assert_same(loaded, model, name)


@every_model
def test_size_can_be_set_twice_and_before_loading(name):
    model = trained(name)
    model.set_input_size(**OTHER[name])
    loaded = build(name, 2, F32)
    loaded.set_input_size(**OTHER[name])
    loaded.load_state_dict(model.state_dict())
    assert_same(loaded, model, name)
    back = {key: ARGS[name][key] for key in OTHER[name]}
    for one in (model, loaded):
        one.set_input_size(**back)
    assert_same(loaded, model, name)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@every_model
def test_models_of_other_precision_carry_it(name, dtype, tmp_path):
    model, loaded = trained(name).to(dtype), other(name).to(dtype)
    save_file(model.state_dict(), tmp_path / "x.safetensors")
    loaded.load_state_dict(load_file(tmp_path / "x.safetensors"))
    assert_same(loaded, model, name, dtype)
    assert_same(loaded.to(F32), model.to(F32), name)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@every_model
def test_weights_of_a_checkpoint_in_half_precision_leave_it_whole(name, dtype):
    """Only what is a floating-point number is cast, as checkpoints are made small."""
    model, loaded = trained(name), other(name)
    state = {key: value.to(dtype) if value.is_floating_point() else value for key, value in model.state_dict().items()}
    loaded.load_state_dict(state)
    for p in model.parameters():
        p.data = p.data.to(dtype).float()
    assert_same(loaded, model, name)


@pytest.mark.parametrize("strict", [True, False])
@every_model
def test_checkpoint_of_before_loads_as_built_with_one_warning(name, strict):
    model, loaded = build(name, 1, F32), build(name, 2, F32)
    assert len(layers(loaded)) > 1
    state = {key: value for key, value in model.state_dict().items() if not key.endswith("_extra_state")}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loaded.load_state_dict(state, strict=strict)
    assert [w.category for w in caught] == [UserWarning]
    assert "built" in str(caught[0].message)
    assert_same(loaded, model, name)
    with warnings.catch_warnings(record=True) as caught:  # every such load says so
        warnings.simplefilter("always")
        loaded.load_state_dict(state, strict=strict)
    assert len(caught) == 1


@every_model
def test_load_that_knows_all_samplings_warns_of_nothing(name):
    model, loaded = trained(name), other(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded.load_state_dict(model.state_dict())


@every_model
def test_damaged_sampling_of_one_layer_is_an_error_that_says_so(name, tmp_path):
    state = trained(name).state_dict()
    key = [key for key in state if key.endswith("_extra_state")][-1]
    state[key] = state[key][:-1]
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises((ValueError, RuntimeError), match=r"(?i)sampling"):
        other(name, checkpoint_path=str(tmp_path / "x.safetensors"))


def test_parts_of_a_model_loaded_alone_carry_theirs():
    name = "s4nd_iso_tiny"
    model, loaded = trained(name), other(name)
    for part in ("stem", "blocks.0", "blocks.1.mixer.s4nd", "norm", "head"):
        loaded.get_submodule(part).load_state_dict(model.get_submodule(part).state_dict())
    for key in ("blocks.0.mixer.s4nd", "blocks.1.mixer.s4nd"):
        ours, theirs = loaded.get_submodule(key), model.get_submodule(key)
        assert isinstance(ours, S4ND)
        assert (ours.base_size, ours.l_max, ours.align) == (theirs.base_size, theirs.l_max, theirs.align)
        assert ours.bandlimit == pytest.approx(theirs.bandlimit)
