"""Training dictionaries."""

from hfsae.data.sources import Mixture
from hfsae.train.api import train
from hfsae.train.callbacks import Callback, Figures, History, LogTo, ProgressBar
from hfsae.train.config import DataConfig, DeadConfig, OptimizerConfig, TrainConfig
from hfsae.train.end_to_end import finetune
from hfsae.train.trainer import Trainer

__all__ = [
    "Callback",
    "DataConfig",
    "DeadConfig",
    "Figures",
    "History",
    "LogTo",
    "Mixture",
    "OptimizerConfig",
    "ProgressBar",
    "TrainConfig",
    "Trainer",
    "finetune",
    "train",
]
