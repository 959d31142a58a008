"""An adapter on disk: a PEFT folder made canonical, and the digest of what it computes.

PEFT writes `adapter_config.json` with sets in hash order, its own version and the path that the base model was
loaded from; none of that is the adapter. Knows the safetensors layout (8 bytes of header length, a JSON header, the
bytes), so that neither torch nor safetensors is imported. A pickle is refused, never opened.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from pathlib import Path
from typing import Any, BinaryIO

from bt_compiler.canonical import canonical_json
from bt_compiler.errors import BundleError

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PICKLES = ("adapter_model.bin", "adapter_model.pt", "adapter_model.pth")
_MAX_HEADER = 100 * 1024 * 1024
_CHUNK = 1 << 20
_UNORDERED = ("target_modules", "exclude_modules", "modules_to_save", "target_parameters", "layers_to_transform")
"""Settings that PEFT treats as sets, whatever order it writes them in."""
_NOISE = ("peft_version", "auto_mapping", "revision")
"""Settings that say how the folder came about and not what it computes."""


def canonical_adapter(folder: Path, *, base_model: str) -> None:
    """Rewrites `adapter_config.json` so that equal training gives equal bytes; PEFT and vLLM load it as before.

    Sets are sorted, version and local paths go, keys are sorted, `base_model_name_or_path` becomes `base_model` (its
    last part where it is a local path). Raises BundleError (BTC561) where the folder is no adapter.
    """
    config = _normal(_config(folder))
    config["base_model_name_or_path"] = Path(base_model).name if Path(base_model).is_absolute() else base_model
    config["inference_mode"] = True
    path = folder / CONFIG
    part = path.with_name(f".{CONFIG}.new")
    with part.open("w", encoding="utf-8") as file:
        file.write(json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def adapter_digest(folder: Path) -> str:
    """SHA-256 in hex over the normalised config and, by tensor name, dtype, shape and bytes.

    Independent of the order of tensors in the file, of the file's metadata and of where the base model lay.
    Raises BundleError (BTC561) where the folder is no adapter or the file is damaged.
    """
    config = _normal(_config(folder))
    config.pop("base_model_name_or_path", None)
    config.pop("inference_mode", None)
    found = hashlib.sha256(canonical_json(config).encode())
    path = folder / WEIGHTS
    try:
        with path.open("rb") as file:
            start, tensors = _header(file, path)
            for name in sorted(tensors):
                entry = tensors[name]
                found.update(canonical_json([name, entry["dtype"], entry["shape"]]).encode())
                first, end = entry["data_offsets"]
                file.seek(start + first)
                left = end - first
                while left:
                    block = file.read(min(left, _CHUNK))
                    if not block:
                        raise _unusable(folder, f"`{WEIGHTS}` ends within tensor `{name}`")
                    found.update(block)
                    left -= len(block)
    except OSError as error:
        raise _unusable(folder, f"`{WEIGHTS}` cannot be read: {error.strerror}") from error
    return found.hexdigest()


def _unusable(folder: Path, why: str) -> BundleError:
    return BundleError.of(
        "BTC561",
        f"`{folder}` is not a usable adapter: {why}",
        help=f"an adapter is a PEFT folder with `{CONFIG}` and `{WEIGHTS}`",
    )


def _config(folder: Path) -> dict[str, Any]:
    """The config as it lies there, after seeing that the folder is what it has to be."""
    for name in _PICKLES:
        if (folder / name).exists():
            raise _unusable(folder, f"`{name}` is a pickle, which could run code when opened")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except OSError as error:
        raise _unusable(folder, f"`{CONFIG}` cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise _unusable(folder, f"`{CONFIG}` is not JSON: {error}") from error
    if not isinstance(config, dict) or not config.get("peft_type"):
        raise _unusable(folder, f"`{CONFIG}` has no `peft_type`")
    if not (folder / WEIGHTS).is_file():
        raise _unusable(folder, f"`{WEIGHTS}` is missing")
    return config


def _normal(config: dict[str, Any]) -> dict[str, Any]:
    """The config without noise, sets sorted."""
    kept = {key: value for key, value in config.items() if key not in _NOISE}
    for key in _UNORDERED:
        if isinstance(kept.get(key), list):
            kept[key] = sorted(kept[key])
    return kept


def _header(file: BinaryIO, path: Path) -> tuple[int, dict[str, Any]]:
    """Offset of the first byte of data, and the tensors by name. Checks sizes before it believes them."""
    total = path.stat().st_size
    prefix = file.read(8)
    length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
    if not 2 <= length <= min(_MAX_HEADER, total - 8):
        raise _unusable(path.parent, f"`{WEIGHTS}` has no safetensors header")
    try:
        header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            first, end = entry["data_offsets"]
            if not (isinstance(entry["dtype"], str) and isinstance(entry["shape"], list) and 0 <= first <= end):
                raise ValueError(f"tensor `{name}` has wrong offsets")
            if 8 + length + end > total:
                raise ValueError(f"tensor `{name}` lies beyond the end of the file")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _unusable(path.parent, f"the safetensors header is damaged: {error}") from error
    return 8 + length, header
