"""Writing dictionaries as SAELens 6 reads them: what it can express is written without loss, the rest is refused.

Every thresholded architecture is a JumpReLU at inference, which is how SAELens saves its own BatchTopK. Where the
dictionary belongs is written twice: in TransformerLens' names, and as we say it, so that reading it back loses nothing.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hfsae.errors import InvalidValue, Unsupported
from hfsae.formats.checkpoint import Checkpoint
from hfsae.formats.files import write_folder_atomically, write_json
from hfsae.formats.places import to_hook
from hfsae.formats.safetensors_io import write_tensors
from hfsae.sae.config import SAEConfig
from hfsae.sae.folding import fold_scale

CONFIG, WEIGHTS, SPARSITY, OURS = "cfg.json", "sae_weights.safetensors", "sparsity.safetensors", "hfsae"
_VERSION = "6.54.0"
"""The version whose layout this is."""
BELONGS = (
    *("site", "layer", "module", "io", "stack", "write_site", "write_layer", "write_module", "base_model"),
    *("base_revision", "exclude_special_tokens", "exclude_first_position", "norm_outlier", "training"),
)


def write(checkpoint: Checkpoint, folder: Path) -> None:
    """Write a dictionary into a folder of its own, replacing a SAELens dictionary that is there.

    Raises:
        Unsupported: when SAELens cannot express it.
        InvalidValue: when the folder holds something else.
        CheckpointError: when it cannot be written there.
    """
    if checkpoint.features is not None:
        raise Unsupported("This is a slice of a dictionary. Only whole ones are saved. Load it without features=.")
    config, tensors = fold_scale(checkpoint.config, checkpoint.tensors)
    architecture = _architecture(config)
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / CONFIG).exists())):
        raise InvalidValue(f"{folder} holds something else. SAELens gives each dictionary a folder of its own.")
    stored = _stored(tensors)

    def fill(aside: Path) -> None:
        write_json(aside / CONFIG, _config(config, architecture, stored["W_enc"].dtype))
        write_tensors(aside / WEIGHTS, stored)
        if checkpoint.statistics is not None:
            density = checkpoint.statistics.density.clamp(min=1e-10)
            write_tensors(aside / SPARSITY, {"sparsity": density.log10()})

    write_folder_atomically(folder, fill)


def _architecture(config: SAEConfig) -> str:
    kind, transcoder = config.row.kind, config.is_transcoder
    if kind == "sequential" or (kind == "topk" and transcoder):
        what = f"a {config.architecture} transcoder" if transcoder else config.architecture
        raise Unsupported(
            f"SAELens cannot express {what}. It reads thresholded dictionaries, and topk that writes "
            "what it reads. Save it with format='hfsae'."
        )
    if config.b_pre == "own" or (config.b_pre == "tied" and transcoder):
        raise Unsupported(
            f"SAELens cannot express b_pre={config.b_pre!r} here. It subtracts b_dec or nothing, and nothing in a "
            "transcoder. Save it with format='hfsae'."
        )
    if kind == "topk":
        return "topk"
    jumps = config.row.has_threshold
    if not transcoder:
        return "jumprelu" if jumps else "standard"
    return ("jumprelu_" if jumps else "") + ("skip_transcoder" if config.skip else "transcoder")


def _stored(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors in their layout; with thresholds all in fp32, since they cast everything to one dtype."""
    wide = torch.float32 if "threshold" in tensors else tensors["W_enc"].dtype
    dtype = torch.promote_types(tensors["W_enc"].dtype, wide)
    turned = {name: tensor.T if name == "W_enc" else tensor for name, tensor in tensors.items()}
    return {name: tensor.to(dtype) for name, tensor in turned.items()}


def _config(config: SAEConfig, architecture: str, dtype: torch.dtype) -> dict[str, Any]:
    values = config.to_dict()
    training = values["training"] or {}
    hook = to_hook(config.site, config.layer)
    metadata = {
        "model_name": config.base_model,
        "hook_name": hook,
        "hook_name_out": to_hook(config.write_site, config.write_layer),
        "exclude_special_tokens": config.exclude_special_tokens,
        "context_size": training.get("context_size"),
        "dataset_path": training.get("dataset_path"),
        "prepend_bos": training.get("prepend_bos"),
        "sae_lens_version": _VERSION,
        OURS: {name: values[name] for name in BELONGS},
    }
    written = {
        "architecture": architecture,
        "d_in": config.d_in,
        "d_sae": config.d_sae,
        "dtype": str(dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": config.b_pre == "tied",
        "normalize_activations": config.normalize,
        "reshape_activations": "hook_z" if hook is not None and hook.endswith("hook_z") else "none",
        "metadata": {name: value for name, value in metadata.items() if value is not None},
    }
    if architecture == "topk":
        written |= {"k": config.k, "rescale_acts_by_decoder_norm": False}
    if config.is_transcoder:
        written["d_out"] = config.d_write
    return written
