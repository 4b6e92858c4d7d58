"""Which models are built from names and arguments that come from elsewhere: those of timm's registry, as drawn.

Names of hubs and folders would load code and weights from there, and so would some arguments.
"""

import difflib

import timm
from timm.models import is_model

import s4nd.models  # noqa: F401  registers S4ND's models with timm

LOADING_ARGS = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir")


def check_registered(name: str, key: str) -> None:
    """timm's registry must have this model.

    Args:
        key: of the config or the command that names it.

    Raises:
        ValueError: it has not; names the nearest that it has, or S4ND's.
    """
    if "/" in name or ":" in name or not is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"S4ND's are {', '.join(timm.list_models('s4nd_*'))}"
        raise ValueError(f"{key}={name!r} is not a model of timm's registry; {hint}")
