"""What a layer was trained on, in its state dict: against a layer that was built so, and against damage."""

import copy
import io
import pickle
import warnings

import pytest
import torch
from safetensors.torch import load, save

from s4nd import S4ND
from tests.small import F64, assert_close

STATE = "_extra_state"
SETTINGS = ("base_size", "l_max", "bandlimit", "align", "resample")
SAMPLINGS = {
    "as built": dict(),
    "trained at 6": dict(base_size=6),
    "an axis that extends": dict(base_size=(5, None)),
    "a window": dict(base_size=(7, 4), l_max=(3, None)),
    "a bandlimit": dict(base_size=9, bandlimit=0.3),
    "at the edge": dict(base_size=8, align="edge"),
    "held": dict(base_size=(5, 7), resample="hold"),
    "everything": dict(
        base_size=(1024, 7), l_max=(300, 2), bandlimit=1 / 3, align="edge", resample=("continuous", "hold")
    ),
}
GRIDS = [(6, 6), (5, 8), (9, 3)]


def make(seed=0, ndim=2, **options):
    torch.manual_seed(seed)
    return S4ND(3, ndim, kernel="s4d", d_state=8, dtype=F64, **options).eval()


def settings(layer):
    """The bandlimit in six digits."""
    found = {name: getattr(layer, name) for name in SETTINGS}
    return {**found, "bandlimit": found["bandlimit"] and float(f"{found['bandlimit']:.6g}")}


@torch.no_grad()
def answers(layer):
    xs = [torch.randn(1, 3, *grid, generator=torch.Generator().manual_seed(1), dtype=F64) for grid in GRIDS]
    return [layer(x) for x in xs]


def assert_same(layer, expected):
    assert settings(layer) == settings(expected)
    for y, e in zip(answers(layer), answers(expected), strict=True):
        assert_close(y, e)


@pytest.mark.parametrize("built", SAMPLINGS)
@pytest.mark.parametrize("trained", SAMPLINGS)
def test_loading_sets_it_whatever_the_layer_was_built_with(trained, built):
    source, layer = make(0, **SAMPLINGS[trained]), make(1, **SAMPLINGS[built])
    answers(layer)  # something is kept for the sampling before
    layer.load_state_dict(source.state_dict())
    assert_same(layer, source)


@pytest.mark.parametrize("bandlimit", [None, 0.001, 0.3, 1 / 3, 0.5, 1.0, 2.5])
def test_bandlimit_is_not_rounded_to_another_mode(bandlimit):
    layer = make(1)
    layer.load_state_dict(make(bandlimit=bandlimit).state_dict())
    assert layer.bandlimit == (bandlimit if bandlimit is None else pytest.approx(bandlimit, rel=1e-6))


def test_it_is_one_small_tensor_of_integers_and_follows_the_settings():
    layer = make(**SAMPLINGS["everything"])
    before = layer.state_dict()[STATE]
    assert not before.is_floating_point() and not before.is_complex() and before.numel() <= 64
    others = dict(base_size=(3, None), l_max=(None, 2), bandlimit=0.7, align="centre", resample=("hold", "hold"))
    for name, value in others.items():
        setattr(layer, name, value)
        assert settings(layer)[name] == value
        after = layer.state_dict()[STATE]
        assert after.shape == before.shape and not torch.equal(after, before)
        before = after
    loaded = make(1)
    loaded.load_state_dict(layer.state_dict())
    assert_same(loaded, layer)


def test_a_state_dict_taken_before_a_change_keeps_what_was():
    layer = make(**SAMPLINGS["a window"])
    expected, state = copy.deepcopy(layer), {key: value.clone() for key, value in layer.state_dict().items()}
    layer.base_size, layer.l_max, layer.bandlimit, layer.align = (3, 3), (None, None), 0.1, "edge"
    layer.load_state_dict(state)
    assert_same(layer, expected)


def test_settings_can_be_changed_after_loading():
    layer, expected = make(1), make(0, base_size=(4, 5), l_max=(2, None), bandlimit=0.6)
    layer.load_state_dict(make(0, base_size=9, align="edge").state_dict())
    for name, value in settings(expected).items():
        setattr(layer, name, value)
    assert_same(layer, expected)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
@pytest.mark.parametrize("name", SAMPLINGS)
def test_copies_have_their_own(name, duplicate):
    layer = make(**SAMPLINGS[name])
    twin = duplicate(layer)
    assert_same(twin, layer)
    twin.base_size, twin.bandlimit = (2, 2), 0.2
    assert_same(layer, make(**SAMPLINGS[name]))


def through_torch(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


STATES = {
    "torch.save": through_torch,
    "safetensors": lambda state: load(save(state)),
    "float32": lambda state: {**state, STATE: state[STATE].float()},  # as averages of checkpoints are
    "float64": lambda state: {**state, STATE: state[STATE].double()},
    "bfloat16": lambda state: {**state, STATE: state[STATE].bfloat16()},  # as checkpoints are made small
    "float16": lambda state: {**state, STATE: state[STATE].half()},
    "int32": lambda state: {**state, STATE: state[STATE].int()},
    "another order": lambda state: dict(reversed(state.items())),
}


@pytest.mark.parametrize("options", [dict(strict=True), dict(strict=False), dict(assign=True)])
@pytest.mark.parametrize("way", STATES)
def test_files_types_and_ways_of_loading_keep_it(way, options):
    source, layer = make(0, **SAMPLINGS["everything"]), make(1)
    layer.load_state_dict(STATES[way](source.state_dict()), **options)
    assert_same(layer, source)


@pytest.mark.parametrize("assign", [False, True])
def test_layer_on_the_meta_device_takes_it(assign):
    source, layer = (
        make(0, **SAMPLINGS["everything"]),
        S4ND(3, kernel="s4d", d_state=8, dtype=F64, device="meta").eval(),
    )
    assert settings(layer) == settings(make())
    if not assign:
        layer.to_empty(device="cpu")
    layer.load_state_dict(source.state_dict(), assign=assign)
    assert_same(layer, source)


def test_moving_to_the_meta_device_and_back_keeps_it():
    source = make(0, **SAMPLINGS["everything"])
    layer = copy.deepcopy(source).to("meta")
    assert settings(layer) == settings(source)
    assert settings(layer.to_empty(device="cpu")) == settings(source)
    layer.load_state_dict(source.state_dict())
    assert_same(layer, source)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_change_of_precision_keeps_it(dtype):
    source = make(0, **SAMPLINGS["everything"]).to(dtype)
    assert settings(source) == settings(make(**SAMPLINGS["everything"]))
    for layer in (make(1), make(1).to(dtype)):
        layer.load_state_dict(source.state_dict())
        assert settings(layer) == settings(source)


def old(state):
    return {key: value for key, value in state.items() if not key.endswith(STATE)}


@pytest.mark.parametrize("strict", [True, False])
def test_state_dict_without_it_loads_as_built_with_one_warning(strict):
    source, layer = make(0, **SAMPLINGS["everything"]), make(1, **SAMPLINGS["a window"])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        keys = layer.load_state_dict(old(source.state_dict()), strict=strict)
    assert [w.category for w in caught] == [UserWarning]
    assert "as" in str(caught[0].message) and "built" in str(caught[0].message)
    assert not keys.unexpected_keys
    assert_same(layer, make(0, **SAMPLINGS["a window"]))


def test_missing_weights_are_still_an_error():
    state = make().state_dict()
    state.pop("D")
    with pytest.raises(RuntimeError, match=r"Missing key.*D"):
        make().load_state_dict(state)


DAMAGED = {
    "one number less": lambda value: value[:-1],
    "one number more": lambda value: torch.cat([value, value[-1:]]),
    "nothing": lambda value: value[:0],
    "a number": lambda value: value.sum(),
    "another shape": lambda value: value[None],
    "not whole": lambda value: value.float() + 0.5,
    "negative": lambda value: -1000 - value,
    "nan": lambda value: torch.full_like(value, float("nan"), dtype=torch.float32),
    "infinite": lambda value: torch.full_like(value, float("inf"), dtype=torch.float32),
    "of one axis": lambda value: make(ndim=1).state_dict()[STATE],
    "of three axes": lambda value: make(ndim=3).state_dict()[STATE],
    "a string": lambda value: "base_size=6",
    "a dict": lambda value: {"base_size": 6},
    "None": lambda value: None,
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_one_is_an_error_and_changes_nothing(damage):
    layer = make(1, **SAMPLINGS["a window"])
    before, state = settings(layer), make(0, **SAMPLINGS["everything"]).state_dict()
    state[STATE] = DAMAGED[damage](state[STATE])
    for strict in (True, False):
        with pytest.raises((ValueError, RuntimeError), match=r"(?i)sampling"):
            layer.load_state_dict(state, strict=strict)
        assert settings(layer) == before


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("base_size", (6, 0), "base_size must be a positive integer, got 0"),
        ("base_size", (6,), "base_size must be one value or one per axis"),
        ("l_max", (0, None), "l_max must be a positive integer, got 0"),
        ("align", "center", "align must be one of .*got 'center'"),
    ],
)
def test_setting_that_no_layer_can_have_is_refused_when_it_is_set(name, value, message):
    layer = make(**SAMPLINGS["a window"])
    before = settings(layer)
    with pytest.raises(ValueError, match=message):
        setattr(layer, name, value)
    assert settings(layer) == before


def test_one_value_is_set_for_all_axes():
    layer = make()
    layer.base_size, layer.l_max = 6, 3
    assert layer.base_size == (6, 6) and layer.l_max == (3, 3)
    assert_same(layer, make(base_size=6, l_max=3))
