"""Where a backbone's files are, and the digest of its weights.

A name that is a folder or a file on this machine is taken from there. Any other name is looked up in the
Hugging Face hub's own cache folder, and fetched into it where there is a network.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import xxhash

from embedcache.errors import CheckpointError, CheckpointNotFoundError

if TYPE_CHECKING:
    import torch

SAFETENSORS = "model.safetensors"
WEIGHT_NAMES = (SAFETENSORS, "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_SMALL_FILES = ("*.json", "*.txt", "*.model")
_OTHERS = ["onnx/*", "openvino/*", "coreml/*", "*.gguf"]
_COARSE_NS: Final = 2_000_000_000
_DIGESTS: Final[dict[Any, str]] = {}
"""Digests that this process has made, by the state of their files."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's folder on this machine. commit: the hub's, where it came from there."""

    name: str
    folder: Path
    commit: str | None = None


def is_local(name: str) -> bool:
    """Whether a checkpoint's name is a path on this machine and not a name on the hub."""
    return name.startswith((".", "/", "~")) or Path(name).exists()


def find(name: str, revision: str | None, alias: str) -> Checkpoint:
    """The checkpoint's folder: a local one, the hub's cached snapshot, or one fetched now.

    Raises CheckpointNotFoundError, which names the checkpoint, the folder that was looked in and the command
    that brings the files.
    """
    if is_local(name):
        folder = Path(name).expanduser()
        if not folder.is_dir():
            raise CheckpointNotFoundError(f"There is no checkpoint folder {name}.")
        return Checkpoint(folder.resolve().name, folder)
    found = cached(name, revision)
    return found or fetch(name, revision, alias)


def cached(name: str, revision: str | None) -> Checkpoint | None:
    """The hub's cached snapshot, or None where it is missing or has no weights. Touches no network."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    return Checkpoint(name, folder, commit=folder.name) if _has_weights(folder) else None


def _has_weights(folder: Path) -> bool:
    """In it, or where older sentence-transformers keep them (``0_Transformer``)."""
    return any((folder / name).exists() or any(folder.glob(f"0_*/{name}")) for name in WEIGHT_NAMES)


def fetch(name: str, revision: str | None, alias: str) -> Checkpoint:
    """Bring a checkpoint's files from the hub: configuration, tokenizer, and weights in one format."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError

    def bring(weights: Sequence[str]) -> Path:
        patterns = [*_SMALL_FILES, *weights]
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns, ignore_patterns=_OTHERS))

    try:
        folder = bring(["*.safetensors"])
        if not _has_weights(folder):
            folder = bring(["pytorch_model*.bin", "*/pytorch_model.bin"])
    except GatedRepoError as error:
        raise CheckpointNotFoundError(
            f"The checkpoint {name!r} is gated: accept its terms on its page on the hub, log in with "
            f"'hf auth login', then run: python cli.py fetch {alias}"
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = f"the hub cannot be reached ({type(error).__name__})"
        raise _not_here(name, revision, alias, Path(constants.HF_HUB_CACHE), reason) from error
    if not _has_weights(folder):
        reason = "what is there, or on the hub, has no weights in safetensors or torch's format"
        raise _not_here(name, revision, alias, Path(constants.HF_HUB_CACHE), reason)
    return Checkpoint(name, folder, commit=folder.name)


def _not_here(name: str, revision: str | None, alias: str, where: Path, reason: str) -> CheckpointNotFoundError:
    return CheckpointNotFoundError(
        f"The files of the checkpoint {name!r}{f' at revision {revision}' if revision else ''} are not on this "
        f"machine: looked in {where}, and {reason}. Where there is a network, run: python cli.py fetch {alias}  "
        f"(then copy {where / _folder_name(name)} here, or set HF_HOME)."
    )


def _folder_name(name: str) -> str:
    return "models--" + name.replace("/", "--")


def weight_files(folder: Path) -> list[Path]:
    """A folder's weight files, in one format. Raises CheckpointNotFoundError where there are none."""
    for pattern in ("model*.safetensors", "*.safetensors", "pytorch_model*.bin", "*.pth", "*.pt", "*.bin"):
        if found := sorted(folder.glob(pattern)):
            return found
    raise CheckpointNotFoundError(f"The folder {folder} holds no weights (model.safetensors or pytorch_model.bin).")


def read_tensors(files: Sequence[Path]) -> dict[str, torch.Tensor]:
    """All tensors of weight files, on the CPU, mapped where the format allows. No pickle is ever run.

    A checkpoint that wraps its tensors (``state_dict``, ``model``) is unwrapped, a ``module.`` prefix taken off.
    """
    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        tensors.update(_read_safetensors(file) if file.suffix == ".safetensors" else _read_torch(file))
    return tensors


def _read_safetensors(file: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise CheckpointNotFoundError(f"There is no weight file {file}.") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} cannot be read as safetensors: {error}") from error


def _read_torch(file: Path) -> dict[str, torch.Tensor]:
    import torch

    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointNotFoundError(f"There is no weight file {file}.") from error
    except Exception as error:  # damaged bytes meet torch's unpickler in many ways: IndexError, TypeError, …
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{file} cannot be loaded as tensors alone, and code in a file is never run ({reason})."
        ) from error
    for wrapper in ("state_dict", "model_state_dict", "model"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
            break
    return dict(_named_tensors(loaded, file))


def _named_tensors(loaded: Any, file: Path) -> Iterator[tuple[str, torch.Tensor]]:
    import torch

    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"{file} holds a {type(loaded).__name__}, not named tensors.")
    for name, value in loaded.items():
        if isinstance(value, torch.Tensor):
            yield str(name).removeprefix("module."), value


def digest_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """xxh3-128 of the tensors' names, types, shapes and bytes, in the order of their names.

    The file format does not enter: the same tensors as safetensors or as torch's own give one digest.
    """
    import torch

    state = xxhash.xxh3_128()
    for name in sorted(tensors):
        tensor = tensors[name].detach().contiguous()
        state.update(f"{name}|{str(tensor.dtype).removeprefix('torch.')}|{tuple(tensor.shape)}\0".encode())
        state.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


def digest_of_files(files: Sequence[Path], tensors: Callable[[], Mapping[str, torch.Tensor]], part: Any = None) -> str:
    """``digest_tensors`` of what is read of some files, made once in a process while no file changes.

    tensors: reads them. part: which of the files' tensors these are, and under which names. A file is the same one by
    its resolved path, device, inode, size, and the times of its last change of content and of inode, before and after
    it is read. One that changed less than two seconds ago is digested again: clocks of file systems are coarse.
    """
    began = time.time_ns()
    states = _states(files)
    key = states, repr(part)
    if states is not None and key in _DIGESTS:
        return _DIGESTS[key]
    found = digest_tensors(tensors())
    settled = states is not None and all(began - max(times) > _COARSE_NS for *_, times in states)
    if settled and _states(files) == states:
        _DIGESTS[key] = found
    return found


def _states(files: Sequence[Path]) -> tuple[Any, ...] | None:
    """What tells whether files are the same ones as before; None where one cannot be asked."""
    try:
        known = [(str(file.resolve()), file.stat()) for file in files]
    except OSError:
        return None
    return tuple((path, own.st_dev, own.st_ino, own.st_size, (own.st_mtime_ns, own.st_ctime_ns)) for path, own in known)


def digest_file(path: Path) -> str:
    """xxh3-128 of a small file; of JSON, of its content and not of its spacing."""
    import json

    data = path.read_bytes()
    if path.suffix == ".json":
        data = json.dumps(json.loads(data), sort_keys=True, ensure_ascii=False).encode()
    return xxhash.xxh3_128_hexdigest(data)
