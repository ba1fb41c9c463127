"""Samples of OptimizedEpisodicDataset: from what its subclasses load to padded, normalised tensors."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from epistream.errors import FormatError, OptionError
from epistream.loader.samples.normalize import Normalizer

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


def find_normalizer(normalizers: Any, path: str, dataset_dir: Callable[[], str]) -> Any:
    """The normalizer that belongs to an episode, or None where there is none at all.

    Args:
        normalizers: one for all, or a dict of them by dataset folder.
        path: of the episode; its own folder comes first.
        dataset_dir: gives the folder of the dataset, which may have to be looked at.

    Raises:
        OptionError: a dict with entries for other folders only.
    """
    if not isinstance(normalizers, Mapping):
        return normalizers
    if not normalizers:
        return None
    folder = str(Path(path).parent)
    chosen = normalizers.get(folder)
    if chosen is None:
        chosen = normalizers.get(dataset_dir())
    if chosen is None:
        raise OptionError(
            f"normalizers: for {sorted(map(str, normalizers))}, wanted one for {folder}. "
            "Use get_dataset_dir() as the key."
        )
    return chosen


def normalized(values: Tensor, normalizer: Any, features: Sequence[str], datatype: str) -> Tensor:
    """`values` of one sample, normalised, as float32.

    Args:
        values: what to normalise.
        normalizer: a `Normalizer`, an object with ``normalize(values)``, or a function; the latter two get numpy.
        features: what `values` are, for a `Normalizer`.
        datatype: the same for others, ``"state"`` or ``"action"``: handed on to those that take such an argument, as
            IL-Studio's normalizers do, which hold the statistics of both.
    """
    if isinstance(normalizer, Normalizer):
        if len(features) != 1:
            raise OptionError(f"normalizers: {list(features)} are joined, wanted a normalizer of the joined values.")
        return normalizer.normalize(features[0], values)
    function = getattr(normalizer, "normalize", normalizer)
    try:
        options = {"datatype": datatype} if "datatype" in inspect.signature(function).parameters else {}
    except (TypeError, ValueError):  # some builtins do not say
        options = {}
    return torch.as_tensor(function(values.numpy(), **options), dtype=torch.float32)
