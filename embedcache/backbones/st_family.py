"""sentence-transformers models: their own modules (transformer, pooling, normalisation) as one encoder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedcache.backbones import checkpoints
from embedcache.backbones.base import LAST_LAYER, BackboneSettings
from embedcache.backbones.hf_family import NEUTRAL_CONFIG, position_limit, quiet_progress, tokenizer_digests
from embedcache.errors import CheckpointError, UsageError
from embedcache.provenance import EncoderIdentity, Modality

if TYPE_CHECKING:
    import torch

    from embedcache.backbones.encoders import TextEncoder


@dataclass(frozen=True)
class StBackbone:
    """A sentence-transformers folder. Pooling is its own; the settings cannot change it."""

    name: str
    settings: BackboneSettings
    folder: Path
    checkpoint: str
    commit: str | None
    modality: Modality = "text"

    @cached_property
    def modules(self) -> list[dict[str, Any]]:
        """``modules.json``: the modules in order, each with its type and folder."""
        listed: list[dict[str, Any]] = json.loads((self.folder / "modules.json").read_text(encoding="utf-8"))
        return listed

    @cached_property
    def identity(self) -> EncoderIdentity:
        """Reads every module's configuration and digests every module's weights."""
        return EncoderIdentity(
            modality="text",
            family="st",
            weights=checkpoints.digest_of_files(self._files(), self._tensors, self.modules),
            architecture={module["path"] or ".": self._configuration(module) for module in self.modules},
            pooling="modules",
            preprocessing={
                "tokenizer": tokenizer_digests(self._first_folder()),
                "lowercase": self.settings.lowercase or bool(self._own.get("do_lower_case")),
                "prompt": self.prompt,
                "max_length": self.max_length,
            },
        )

    @cached_property
    def _own(self) -> dict[str, Any]:
        """How the first module treats texts, by the name that every version has given the file."""
        return _json(self._first_folder() / "sentence_bert_config.json")

    @property
    def prompt(self) -> str:
        """The settings', or the checkpoint's default one."""
        if self.settings.prompt is not None:
            return self.settings.prompt
        own = _json(self.folder / "config_sentence_transformers.json")
        return (own.get("prompts") or {}).get(own.get("default_prompt_name")) or ""

    @cached_property
    def max_length(self) -> int:
        """Tokens: the settings', or the checkpoint's own."""
        folder = self._first_folder()
        limit = position_limit(folder, _json(folder / "config.json"))
        own = int(self._own.get("max_seq_length") or limit)
        asked = self.settings.max_length
        if asked is not None and asked > max(own, limit):
            raise UsageError(f"{self.name} reads {max(own, limit)} tokens at most; --max-length asks for {asked}.")
        return asked or own

    def _first_folder(self) -> Path:
        return self.folder / str(self.modules[0]["path"])

    def _weights(self) -> dict[str, list[Path]]:
        """Weight files by the path of their module, of those that have weights."""
        folders = {str(module["path"]): self.folder / str(module["path"]) for module in self.modules}
        return {
            path: checkpoints.weight_files(folder)
            for path, folder in folders.items()
            if any(folder.glob("*.safetensors")) or any(folder.glob("*.bin"))
        }

    def _files(self) -> list[Path]:
        return [file for files in self._weights().values() for file in files]

    def _tensors(self) -> dict[str, torch.Tensor]:
        return {
            f"{path}/{name}": tensor
            for path, files in self._weights().items()
            for name, tensor in checkpoints.read_tensors(files).items()
        }

    def _configuration(self, module: Mapping[str, Any]) -> dict[str, Any]:
        config = _json(self.folder / str(module["path"]) / "config.json")
        kept = {key: value for key, value in config.items() if key not in NEUTRAL_CONFIG}
        return {"type": str(module["type"]).rsplit(".", 1)[-1], **kept}

    @property
    def record(self) -> dict[str, Any]:
        """Names that cannot change a number."""
        return {"checkpoint": f"st:{self.checkpoint}", "commit": self.commit}

    def load(self, device: str) -> TextEncoder:
        """The modules in float32; ``encode``'s own steps, batched by extraction's engine."""
        import torch
        from sentence_transformers import SentenceTransformer

        from embedcache.backbones.encoders import TextEncoder

        try:
            with quiet_progress():
                model = SentenceTransformer(
                    str(self.folder), device=device, local_files_only=True, model_kwargs={"dtype": torch.float32}
                )
                self._refuse_missing(model[0].auto_model)
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            raise CheckpointError(f"{self.name}: sentence-transformers cannot load it: {error}") from error
        prompt = self.prompt.lower() if self.settings.lowercase else self.prompt
        beside = {"prompt_length": prompt_length(model.tokenizer, prompt)} if prompt else {}

        def vectors(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            output = model({"input_ids": ids, "attention_mask": mask, **beside})
            embedding: torch.Tensor = output["sentence_embedding"]
            return embedding.float()

        return TextEncoder(
            model,
            model.tokenizer,
            vectors,
            device,
            max_length=self.max_length,
            lowercase=self.settings.lowercase,
            prompt=self.prompt,
        )

    def _refuse_missing(self, transformer: Any) -> None:
        """sentence-transformers says nothing of weights that the checkpoint lacks, so it is asked for here.

        The names in the weight files tell at once in the usual case. Where one does not stand there as the model has
        it (transformers renames some of old checkpoints), the checkpoint is read a second time for its report.
        """
        prefix = f"{transformer.base_model_prefix}."
        there = {name.removeprefix(prefix) for name in _names(checkpoints.weight_files(self._first_folder()))}
        if not [name for name in transformer.state_dict() if name not in there and not _of_pooler(name)]:
            return
        missing = [name for name in self._reported_missing() if not _of_pooler(name)]
        if missing:
            raise CheckpointError(
                f"{self.name}: {len(missing)} weights are missing from the checkpoint ({', '.join(missing[:6])} …); "
                "they would be random numbers."
            )

    def _reported_missing(self) -> list[str]:
        import torch
        from transformers import AutoModel

        _, report = AutoModel.from_pretrained(
            self._first_folder(), dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
        return sorted(str(key) for key in report["missing_keys"])


def prompt_length(tokenizer: Any, prompt: str) -> int:
    """Tokens of a prompt, without a special one at its end: a pooling may leave them out (``include_prompt``)."""
    ids = tokenizer(prompt)["input_ids"]
    return len(ids) - int(bool(ids) and ids[-1] in tokenizer.all_special_ids)


def _of_pooler(name: str) -> bool:
    """A pooler is built and never used: the pooling is a module of its own."""
    return "pooler" in name.split(".")


def _names(files: Sequence[Path]) -> Iterator[str]:
    """Names of the tensors in weight files; of safetensors, from the header alone."""
    from safetensors import safe_open

    for file in files:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as opened:
                yield from opened.keys()
        else:
            yield from checkpoints.read_tensors([file])


def _json(path: Path) -> dict[str, Any]:
    """A small JSON file; empty where there is none."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def resolve(name: str, checkpoint: str, settings: BackboneSettings) -> StBackbone:
    """A sentence-transformers backbone by hub name or local folder."""
    if settings.pooling != "auto":
        raise UsageError(f"{name}: sentence-transformers models bring their own pooling; leave --pooling out.")
    if settings.layer != LAST_LAYER:
        raise UsageError(f"{name}: sentence-transformers models pool their last layer; leave --layer out, or use hf:.")
    if settings.weights is not None:
        raise UsageError(f"{name}: --weights is not for sentence-transformers; give a folder: st:./FOLDER.")
    found = checkpoints.find(checkpoint, settings.revision, name)
    if not (found.folder / "modules.json").is_file():
        raise CheckpointError(
            f"{found.folder} has no modules.json: it is no sentence-transformers checkpoint. Try hf:{checkpoint}."
        )
    modules = json.loads((found.folder / "modules.json").read_text(encoding="utf-8"))
    first = str(modules[0]["type"]).rsplit(".", 1)[-1]
    if first != "Transformer":
        raise CheckpointError(f"{name} begins with a module {first!r}; only 'Transformer' is supported.")
    return StBackbone(name, settings, found.folder, found.name, found.commit)
