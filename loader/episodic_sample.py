"""Samples of OptimizedEpisodicDataset: from what its subclasses load to padded, normalised tensors."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from epistream.errors import FormatError, OptionError
from epistream.loader.normalize import Normalizer

Sample = dict[str, Any]


def assemble(onestep: Mapping[str, Any], camera_names: Sequence[str], chunk_size: int, where: str) -> Sample:
    """A sample, without its place and its normalisation, from the dict of `load_onestep_from_episode`.

    Args:
        onestep: ``action`` (n, A), ``image`` {camera: (H, W, C)}, ``state`` (D,), and perhaps ``language_instruction``
            and ``reasoning``.
        camera_names: the order of the cameras.
        chunk_size: actions to pad to, with zeros, or cut to.
        where: names the episode in messages.

    Raises:
        FormatError: something is missing; it never becomes a black image or an empty array.
    """
    missing = [key for key in ("action", "image", "state") if onestep.get(key) is None]
    missing += [name for name in camera_names if name not in (onestep.get("image") or {})]
    if missing:
        raise FormatError(f"{where}: a step without {', '.join(missing)}, it has {sorted(onestep)}.")
    action = np.asarray(onestep["action"], np.float32)[:chunk_size]
    padded = np.zeros((chunk_size, *action.shape[1:]), np.float32)
    padded[: len(action)] = action
    image = torch.stack([torch.as_tensor(np.asarray(onestep["image"][name])) for name in camera_names])
    return {
        "image": image.movedim(-1, -3),
        "state": torch.tensor(np.asarray(onestep["state"], np.float32)),
        "action": torch.from_numpy(padded),
        "is_pad": torch.arange(chunk_size) >= len(action),
        "raw_lang": onestep.get("language_instruction") or "",
        "reasoning": onestep.get("reasoning") or "",
    }


def normalized(values: Tensor, normalizers: Any, folders: Sequence[str], features: Sequence[str]) -> Tensor:
    """`values` by the normalizer that belongs to them, as float32.

    Args:
        values: of one sample.
        normalizers: one, or a dict of them by dataset folder; empty for none.
        folders: the folders under which this sample's may be found, the nearest first.
        features: what `values` are, for a `Normalizer`.

    Raises:
        OptionError: a dict without an entry for any of the folders.
    """
    chosen = normalizers
    if isinstance(normalizers, Mapping):
        if not normalizers:
            return values
        key = next((folder for folder in folders if folder in normalizers), None)
        if key is None:
            raise OptionError(
                f"normalizers: for {sorted(map(str, normalizers))}, wanted one for {folders[0]}. "
                "Use get_dataset_dir() as the key."
            )
        chosen = normalizers[key]
    if isinstance(chosen, Normalizer):
        if len(features) != 1:
            raise OptionError(f"normalizers: {list(features)} are joined, wanted a normalizer of the joined values.")
        return chosen.normalize(features[0], values)
    function = getattr(chosen, "normalize", chosen)
    result = function(values.numpy())
    return torch.as_tensor(result, dtype=torch.float32)
