"""Running out of memory while training, said in terms of the settings that help."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from hfsae.errors import TrainingError
from hfsae.train.config import TrainConfig

_CPU = "can't allocate memory"
"""How torch says it on a CPU, in a plain RuntimeError."""


@contextmanager
def memory_explained(config: TrainConfig, d_sae: int) -> Iterator[None]:
    """Turn an error of memory that ran out into one that names the settings.

    Raises: TrainingError: in its place.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and _CPU not in str(error):
            raise
        raise TrainingError(
            f"Memory ran out ({str(error).splitlines()[0] if str(error) else type(error).__name__}). Three settings "
            f"decide how much is needed: batch_size={config.batch}, d_sae={d_sae} and, in config.data, "
            f"buffer_bytes={config.data.buffer_bytes}. Lower one of them, the first one first."
        ) from error
