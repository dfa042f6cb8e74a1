"""`hfsae.SAE`: a dictionary as users hold it: the module, and how it is loaded, saved and published."""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from hfsae import hub
from hfsae.errors import CheckpointNotFound, InvalidType, InvalidValue, Mismatch, did_you_mean
from hfsae.formats import fingerprint, native, read_checkpoint, write_checkpoint
from hfsae.formats.checkpoint import Checkpoint
from hfsae.formats.holdings import locate
from hfsae.formats.safetensors_io import check_shapes
from hfsae.sae.base import SparseCoder, parameter_shapes
from hfsae.sae.config import DTYPES, SAEConfig
from hfsae.sae.folding import fold_scale
from hfsae.sae.sparse import FeatureList

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

    from hfsae.hub.publishing import Plan


@runtime_checkable
class Savable(Protocol):
    """What is published beside a dictionary, such as an `Evaluation`."""

    def save(self, folder: Path, /) -> None:
        """Write its files into a folder."""


@runtime_checkable
class Explaining(Savable, Protocol):
    """What says which features there are: a `FeatureIndex`."""

    def examples(self) -> list[dict[str, Any]]:
        """Return rows for the card."""


class SAE(SparseCoder):
    """A sparse autoencoder (or transcoder) for one place in one model: an `nn.Module` that knows where it belongs.

        f = activation_fn(W_enc (x - b_pre) + b_enc)        x_hat = f W_dec + b_dec

    `sae(x)` is the reconstruction, `sae.encode(x)` the feature activations, `sae.decode(f)` back. Row i of `W_enc` and
    `W_dec` is feature i. `config` says what it is, `statistics` what was measured of its features, `labels` what they
    are called.

    Args: config: What it is; its weights are random.
    Example:
        >>> sae = SAE(SAEConfig(architecture="topk", d_in=16, d_sae=64, k=4))
        >>> x = torch.randn(2, 5, 16)
        >>> sae.encode(x).shape, sae(x).shape
        (torch.Size([2, 5, 64]), torch.Size([2, 5, 16]))
        >>> sae.encode_sparse(x).indices.shape
        torch.Size([2, 5, 4])
    """

    def __init__(
        self, config: SAEConfig, *, features: Tensor | None = None, tensors: Mapping[str, Tensor] | None = None
    ) -> None:
        super().__init__(config, features=features, tensors=tensors)
        self._recorded: tuple[str, tuple[int, ...]] | None = None
        self.folder: Path | None = None
        """Where it was loaded from."""

    @property
    def id(self) -> str:
        """Which dictionary it is: base model, place, and eight hex digits that stand for its weights."""
        if self._recorded is not None and self._recorded[1] == self._versions():
            content = self._recorded[0]
        else:
            content = fingerprint.content_hash(*fold_scale(self.config, self._tensors()))
        return f"{self.config.base_model or 'unknown'}/{self.config.place}@{content}"

    @classmethod
    def from_pretrained(  # noqa: PLR0913 - the arguments of transformers' from_pretrained, and which dictionary
        cls,
        repo_or_folder: str | Path,
        *,
        layer: int | None = None,
        site: str | None = None,
        subfolder: str | None = None,
        revision: str | None = None,
        token: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
        features: FeatureList | None = None,
        format: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
    ) -> "SAE":
        """Load a dictionary from a folder or from the Hub, in our format or any of `hfsae.formats.FORMATS`.

        Args:
            repo_or_folder: A folder (of one dictionary or of several), a file, or a Hub id ``owner/name``.
            layer: Which one, where there are several; likewise `site` and `subfolder`.
            dtype: Cast the weights; None keeps what the file holds. Thresholds stay in fp32.
            features: Load only these rows. Such a slice of a top-k dictionary can decode and steer, not encode.
            format: What it is, where its content does not tell.
            revision: Branch, tag or commit on the Hub; `token`, `cache_dir`, `local_files_only` and `force_download`
                are as in transformers.
        Raises:
            CheckpointNotFound: when there is no such folder, repository or dictionary.
            CheckpointError: when a file is damaged or does not match its fingerprint.
            InvalidValue: when several dictionaries fit.
            Mismatch: when the dictionary is of another layer than asked for.
            HubError: when the Hub cannot be reached or refuses.
        """
        kind = _dtype_of(dtype)
        if _is_local(repo_or_folder):
            path = locate(Path(repo_or_folder).expanduser(), layer=layer, site=site, subfolder=subfolder)
        else:
            path = hub.fetch(
                str(repo_or_folder),
                layer=layer,
                site=site,
                subfolder=subfolder,
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                force_download=force_download,
            )
        checkpoint = read_checkpoint(path, format, features=features)
        _check_place(checkpoint, layer, site)
        sae = cls.from_checkpoint(checkpoint, device=device, dtype=kind)
        sae.folder = path if path.is_dir() else path.parent
        return sae

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: Checkpoint,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> "SAE":
        """Build it from what a format read.

        Raises: CheckpointError: when the tensors do not fit the config.
        """
        config = checkpoint.config
        if dtype is not None:
            config = SAEConfig.from_dict(config.to_dict() | {"dtype": str(dtype).removeprefix("torch.")})
        rows = None if checkpoint.features is None else len(checkpoint.features)
        check_shapes(Path(checkpoint.source), checkpoint.tensors, parameter_shapes(config, rows))
        sae = cls(config, features=checkpoint.features, tensors=_cast(checkpoint.tensors, config, device))
        sae.statistics, sae.labels = checkpoint.statistics, dict(checkpoint.labels)
        if checkpoint.content is not None:
            sae._recorded = (checkpoint.content, sae._versions())
        return sae.eval()

    def to_checkpoint(self) -> Checkpoint:
        """Return what a format writes."""
        return Checkpoint(
            config=self.config,
            tensors=self._tensors(),
            statistics=self.statistics,
            labels=self.labels,
            source=self.config.place,
            features=self.features,
        )

    def save_pretrained(self, folder: str | Path, *, format: str = "hfsae") -> Path:
        """Write it into a folder, beside the dictionaries that are there, and return its own folder.

        The write is atomic: killed at any instant, the folder holds what it held before or all of this.

        Args: format: "hfsae", or another one of `hfsae.formats.FORMATS` that can be written.
        Raises:
            InvalidValue: when a weight is NaN or infinite.
            Unsupported: when it is a slice, or the format cannot express it.
            CheckpointError: when it cannot be written there.
        """
        return write_checkpoint(self.to_checkpoint(), Path(folder).expanduser(), format)

    def push_to_hub(  # noqa: PLR0913 - the arguments of transformers' push_to_hub
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        commit_message: str | None = None,
        license: str | None = None,
        evaluation: Savable | None = None,
        index: Explaining | None = None,
        dry_run: bool = False,
    ) -> "CommitInfo | Plan":
        """Publish it on the Hub, beside the dictionaries in that repository, with a card made from what was measured.

        Args:
            private: Create the repository as private.
            create_pr: Open a pull request instead of committing.
            license: Of the dictionary, as the Hub abbreviates it.
            evaluation: What `hfsae.evaluate` returned; its figures are the card's.
            index: What `hfsae.index_features` returned, to be published with it; the card shows some of its features.
            dry_run: Send nothing and return what would be written.
        Raises: HubError: when the Hub cannot be reached or refuses; the repository is then unchanged.
        """
        with TemporaryDirectory() as folder:
            own = self.save_pretrained(Path(folder) / "repository")
            if evaluation is not None:
                evaluation.save(own)
            if index is not None:
                index.save(own / native.FEATURE_INDEX)
                native.note_measured(own, {"examples": index.examples()})
            return hub.push(
                Path(folder) / "repository",
                repo_id,
                private=private,
                token=token,
                revision=revision,
                create_pr=create_pr,
                commit_message=commit_message,
                license=license,
                dry_run=dry_run,
            )

    def _tensors(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self.named_parameters()}

    def _versions(self) -> tuple[int, ...]:
        return tuple(parameter._version for parameter in self.parameters())


def _is_local(name: str | Path) -> bool:
    if not isinstance(name, (str, Path)):
        raise InvalidType(f"{name!r:.60} is no dictionary. Give a folder, or a Hub id like 'owner/name'.")
    if not str(name):
        raise InvalidValue("The name of the dictionary is empty. Give a folder, or a Hub id like 'owner/name'.")
    if "\0" in str(name):
        raise InvalidValue(f"{str(name)[:60]!r} cannot be a path. Give a folder, or a Hub id like 'owner/name'.")
    path = Path(name).expanduser()
    if isinstance(name, Path) or path.exists() or str(name).startswith(("/", ".", "~")):
        return True
    if str(name).count("/") != 1:
        raise CheckpointNotFound(
            f"{str(name)[:200]!r} is no folder here and no Hub id. Give an existing folder, or 'owner/name'."
        )
    return False


def _dtype_of(dtype: torch.dtype | str | None) -> torch.dtype | None:
    if dtype is None:
        return None
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise InvalidValue(f"dtype={name[:60]!r} is unknown.{did_you_mean(name[:60], DTYPES)}")
    kind: torch.dtype = getattr(torch, name)
    return kind


def _check_place(checkpoint: Checkpoint, layer: int | None, site: str | None) -> None:
    asked, config = {"layer": layer, "site": site}, checkpoint.config
    for name, value in asked.items():
        found = getattr(config, name)
        if value is not None and found is not None and value != found:
            raise Mismatch(f"{checkpoint.source} is of {name} {found!r}, asked for was {value!r}. Which one is meant?")


def _cast(tensors: dict[str, Tensor], config: SAEConfig, device: Any) -> dict[str, Tensor]:
    kinds = {name: torch.float32 if name == "threshold" else getattr(torch, config.dtype) for name in tensors}
    return {name: tensor.to(device=device, dtype=kinds[name]) for name, tensor in tensors.items()}
