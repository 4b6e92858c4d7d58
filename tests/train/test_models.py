"""`s4nd models` against timm's registry, models that are built for real, and numbers that the paper prints."""

import pytest
import timm
import torch

from s4nd.models.shipped import shipped_tags
from s4nd.train.cli import main
from s4nd.train.commands import models
from s4nd.train.commands.models import list_registered


def test_every_model_and_tag_has_a_line_and_no_other(capsys):
    assert main(["models"]) == 0
    heading, *lines = capsys.readouterr().out.splitlines()
    assert heading.split() == ["name", "parameters", "classes", "input", "weights"]
    ours = [n for n in timm.list_models() if timm.model_entrypoint(n).__module__.startswith("s4nd.models.")]
    assert sorted(line.split()[0] for line in lines) == sorted([*ours, *shipped_tags()])
    of = {line.split()[0]: " ".join(line.split()[1:]) for line in lines}
    assert of["s4nd_vit_base_patch16_224"] == "88,786,408 1000 3 x 224 x 224 -"
    assert of["s4nd_convnext_tiny"] == "29,980,456 1000 3 x 224 x 224 -"
    assert of["s4nd_iso_base"] == "5,282,826 10 3 x 32 x 32 -"
    assert of["s4nd_convnext3d_tiny"] == "31,381,587 51 3 x 30 x 224 x 224 -"
    assert of["convnext_s3d_tiny"] == "27,859,406 51 3 x any x 224 x 224 -"
    assert of["s4nd_iso_tiny.cifar10"] == "68,874 10 3 x 16 x 16 shipped"
    assert len({line.index(" x ") for line in lines}) == 1  # a column is a column


def test_counts_are_those_of_models_that_are_there():
    for row in list_registered(["conv_iso_tiny", "s4nd_iso_tiny.photos", "s4nd_seq_tiny"]):
        model = timm.create_model(row.name)
        assert row.parameters == sum(p.numel() for p in model.parameters())
        assert row.classes == model(torch.zeros(1, *row.input_size)).shape[1]


def test_nothing_is_allocated_to_count(monkeypatch):
    built = []
    create = timm.create_model
    monkeypatch.setattr(models.timm, "create_model", lambda *args, **kw: built.append(create(*args, **kw)) or built[-1])
    list_registered(["s4nd_convnext_base", "s4nd_iso_tiny*"])
    assert len(built) == 4
    assert all(p.is_meta for model in built for p in model.parameters())


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (["*convnext3d*", "*i3d_micro"], ["convnext_i3d_micro", "s4nd_convnext3d_micro", "s4nd_convnext3d_tiny"]),
        (["s4nd_iso_tiny"], ["s4nd_iso_tiny", "s4nd_iso_tiny.cifar10", "s4nd_iso_tiny.photos"]),
        (["*photos"], ["s4nd_iso_tiny.photos"]),
        (["conv_iso_?ase"], ["conv_iso_base"]),
    ],
)
def test_patterns_are_those_of_timm(patterns, names):
    assert sorted(row.name for row in list_registered(patterns)) == names


def test_pretrained_is_what_timm_loads_weights_of(capsys):
    assert main(["models", "--pretrained"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[0] for line in lines] == timm.list_models("*s4nd*", pretrained=True) == shipped_tags()
    assert all(line.endswith("shipped") for line in lines)


def test_pattern_that_nothing_fits_is_an_error(capsys):
    assert main(["models", "convnext", "resnet50"]) == 2  # timm's, not ours
    assert capsys.readouterr().err == (
        "s4nd: error: no model of s4nd fits 'convnext' or 'resnet50'; a pattern fits whole names, such as '*convnext*'\n"
    )
    assert main(["models", "*vit*", "--pretrained"]) == 2
    assert "no weights that ship with s4nd fit '*vit*'" in capsys.readouterr().err
