"""The configuration of a run: its keys, what they may be, and the door through which they come."""

from .load import config_from_dict, config_to_dict, load_config
from .schema import Config, DataConfig, InitConfig, ModelConfig, OptimConfig, ScheduleConfig, StageConfig

__all__ = [
    "Config",
    "DataConfig",
    "InitConfig",
    "ModelConfig",
    "OptimConfig",
    "ScheduleConfig",
    "StageConfig",
    "config_from_dict",
    "config_to_dict",
    "load_config",
]
