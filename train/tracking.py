"""Weights & Biases: an optional mirror of a run's log, which may be slow, offline or gone and never stops a training.

Where it cannot be reached the mirror is written offline, in the run's folder, for `wandb sync`; where that fails too, or later,
there is a warning and no mirror. WANDB_MODE, WANDB_ENTITY and the other variables of wandb hold. It waits at most `PATIENCE`
seconds each to log in, to begin, and to upload what is left at the end.
"""

import logging
import secrets
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from .config import Config, config_to_dict
from .files import write_atomically

ID_FILE = "wandb.id"
PATIENCE = 60.0

logger = logging.getLogger("s4nd")


def require_wandb() -> ModuleType:
    """The package.

    Raises:
        ValueError: it is not installed; names the extra.
    """
    try:
        import wandb

        wandb.init  # noqa: B018  a folder of this name, which wandb makes, is a package to Python
    except (ImportError, AttributeError):
        raise ValueError("wandb=PROJECT needs the extra: pip install 's4nd[wandb]'") from None
    return wandb


class Mirror:
    """One run of a wandb project: its id is kept in the run's folder, so that a run that goes on is the same there.

    A run that goes on in another folder (resume=FOLDER out=OTHER) is another one there.

    Args:
        folder: the run directory.
        config: of the run; `config.wandb` is the project.
    """

    def __init__(self, folder: Path, config: Config):
        self.wandb, self.folder, self.config = require_wandb(), folder, config
        self.seen: set[str] = set()
        self.run: Any = None
        mode = None  # as WANDB_MODE says
        for mode in (None, "offline"):
            try:
                self.run = self._begin(mode)
                return
            except Exception as error:
                logger.warning("wandb%s: %s", " offline" if mode else "", error)
                self.wandb.teardown()  # or the id would be in use by what failed
        logger.warning("wandb: the run is not mirrored")

    def log(self, record: dict, axis: str) -> None:
        """Numbers and texts, of which one, `axis`, is where they stand: an epoch or a step."""

        def send() -> None:
            for key in record.keys() - self.seen - {axis}:
                self.run.define_metric(key, step_metric=axis)
            self.seen |= record.keys()
            self.run.log(record)

        self._safely(send)

    def close(self) -> None:
        self._safely(lambda: self.run.finish())
        self.run = None

    def _begin(self, mode: str | None) -> Any:
        wandb, id_file = self.wandb, self.folder / ID_FILE
        if not id_file.is_file():
            write_atomically(id_file, secrets.token_hex(4).encode())
        settings = wandb.Settings(
            init_timeout=PATIENCE, login_timeout=PATIENCE, finish_timeout=PATIENCE, console="off", silent=True
        )
        return wandb.init(
            project=self.config.wandb,
            id=id_file.read_text(encoding="utf-8").strip(),
            resume="allow",
            name=self.folder.name,
            dir=self.folder,
            config=config_to_dict(self.config),
            allow_val_change=True,
            mode=mode,
            reinit="create_new",
            settings=settings,
        )

    def _safely(self, act: Callable[[], None]) -> None:
        if self.run is None:
            return
        try:
            act()
        except Exception as error:
            logger.warning("wandb: %s; the run is mirrored no longer", error)
            self.run = None
