"""Names of models from configs and commands: what is not in timm's registry is refused before anything is looked up."""

import pytest

from s4nd.train.registry import check_registered


@pytest.mark.parametrize("name", ["s4nd_iso_tiny", "s4nd_iso_tiny.photos", "resnet18"])
def test_name_and_tag_of_the_registry_pass(name):
    check_registered(name, "model.name")


# timm's own loader takes these: the parts after the colon or slash may even be names of its registry.
@pytest.mark.parametrize("name", ["hf-hub:timm/resnet18", "local-dir:resnet18", "timm/resnet18", "hf-hub:some/model"])
def test_names_of_hubs_and_folders_are_refused(name):
    with pytest.raises(ValueError, match=rf"^model\.name='{name}' is not a model of timm's registry; "):
        check_registered(name, "model.name")


def test_refusal_names_the_nearest_or_else_our_own():
    with pytest.raises(ValueError, match=r"did you mean .*s4nd_iso_base"):
        check_registered("s4nd_iso_bas", "model")
    with pytest.raises(ValueError, match=r"S4ND's are s4nd_convnext3d_micro, .*s4nd_vit_tiny_patch16_224$"):
        check_registered("?", "model")
