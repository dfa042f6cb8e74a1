"""The cache that delphi explains features from: where each fires, and how strongly, in rows of one length.

    <folder>/<module>/<first>_<last>.safetensors    locations [n, 3]: row, position, feature less the first;
                                                    activations [n]; tokens [rows, context]
    <folder>/<module>/config.json                   how it was made

Explanations come back by `hfsae.features.load_labels` of delphi's folder of explanations.
Source: https://github.com/EleutherAI/delphi, delphi/latents, as of 2025.
"""

from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hfsae.attach import Attachment
from hfsae.errors import InvalidValue
from hfsae.features.firings import CONTEXT, firings, read
from hfsae.formats.files import write_folder_atomically, write_json
from hfsae.measuring.passes import at_rest
from hfsae.sites import base_model_id, unwrap


def save_delphi_cache(
    attachment: Attachment,
    data: object,
    folder: str | Path,
    *,
    tokenizer: Any = None,
    files: int = 8,
    **reading: Any,
) -> Path:
    """Write which features fire where on data, as delphi reads it, and return the folder of the module.

    Only rows full of tokens are written, since delphi's are of one length. All firings are held in memory: 12 bytes
    each, 16 of them per token where 16 features fire.

    Args:
        folder: Where the modules' folders are; that of this module is replaced.
        files: How many files the features are divided among.
        reading: How data become batches: ``batch_size``, ``context``, ``max_tokens`` and so on.

    Raises: InvalidValue: when the data fill no row, or there are to be more files than features.
    """
    d_sae = attachment.dictionary.config.d_sae
    if not 1 <= files <= d_sae:
        raise InvalidValue(f"files={files} is out of range. 1 to d_sae={d_sae} files can hold the features.")
    reading = {"context": CONTEXT} | reading
    tokens, places, values = _collected(attachment, read(attachment, data, tokenizer, reading), reading["context"])
    target = Path(folder) / attachment.module_path
    told = {
        "model_name": base_model_id(unwrap(attachment.model)),
        "cache_ctx_len": reading["context"],
        "n_tokens": tokens.numel(),
        "n_splits": files,
    }

    def write(aside: Path) -> None:
        bounds = torch.linspace(0, d_sae, files + 1).long().tolist()
        for first, after in pairwise(bounds):
            mine = (places[:, 2] >= first) & (places[:, 2] < after)
            locations = places[mine] - torch.tensor([0, 0, first], dtype=places.dtype)
            _write(aside / f"{first}_{after - 1}.safetensors", locations, values[mine], tokens)
        write_json(aside / "config.json", told)

    write_folder_atomically(target, write)
    return target


def _collected(attachment: Attachment, stream: Any, context: int) -> tuple[Tensor, Tensor, Tensor]:
    """The tokens of all full rows, and row, position and feature of each firing on them with its activation."""
    tokens, places, values, rows = [], [], [], 0
    with at_rest(unwrap(attachment.model)):
        for batch, _, fired in firings(attachment, stream):
            full = batch.valid.sum(1) == context
            number = full.cumsum(0) - 1 + rows
            kept = full[fired.row]
            place = torch.stack([number[fired.row], fired.position, fired.feature], 1)[kept]
            tokens.append(batch.input_ids[full])
            places.append(place.int())
            values.append(fired.value[kept].half())
            rows += int(full.sum())
    if not rows:
        raise InvalidValue(f"The data fill no row of {context} tokens. Give more text, or a smaller context.")
    return torch.cat(tokens), torch.cat(places), torch.cat(values)


def _write(path: Path, locations: Tensor, activations: Tensor, tokens: Tensor) -> None:
    from safetensors.numpy import save_file

    # delphi takes locations that are unsigned, in 16 or 32 bits.
    arrays = {"locations": locations.numpy().astype("uint32"), "activations": activations.numpy()}
    save_file(arrays | {"tokens": tokens.long().numpy()}, path)
