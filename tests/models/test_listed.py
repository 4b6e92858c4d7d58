"""timm's own lists against what s4nd.models registers and ships."""

import timm

import s4nd.models  # noqa: F401  registers S4ND's models with timm
from s4nd.models.shipped import shipped_tags


def test_every_registered_model_is_listed_by_timm_and_hides_none_of_timms_own():
    ours = [name for name in timm.list_models() if timm.model_entrypoint(name).__module__.startswith("s4nd.models.")]
    s4nd_named = [name for name in ours if name.startswith("s4nd_")]
    assert timm.list_models("*s4nd*") == s4nd_named and len(s4nd_named) == 14
    assert [name for name in ours if hasattr(timm.models, name)] == []
    shipped = shipped_tags()
    everything = timm.list_models(pretrained=True)
    assert [name for name in everything if name.partition(".")[0] in ours] == shipped
    assert timm.list_models("*s4nd*", pretrained=True) == shipped
    tagged = timm.list_models("*s4nd*", include_tags=True)
    assert sorted({name.partition(".")[0] for name in tagged}) == s4nd_named
    assert [name for name in tagged if "." in name] == shipped
