"""Trains the two small backbones that the demo ships, on drawn birds that the demo lacks.

Both learn to name the attributes of a species, the image model from a picture and the text model
from one caption; then the classifiers are dropped and the frozen bodies are saved the way timm and
transformers save theirs. Every picture and caption is of a species of its own from the training
side of :func:`embedcache.demo.species.is_reserved`. Runs on CPU, some minutes each; the same seed
and thread count give the same weights.

    python scripts/train_demo_backbones.py image --out embedcache/demo/backbones
    python scripts/train_demo_backbones.py text --out embedcache/demo/backbones
"""

from __future__ import annotations

import argparse
import io
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt
import timm
import torch
from PIL import Image
from timm.data.transforms_factory import create_transform
from timm.models import save_for_hf
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from embedcache.demo.birds import JPEG_QUALITY
from embedcache.demo.captions import describe
from embedcache.demo.drawing import draw_bird
from embedcache.demo.species import CHOICES, TOLD, random_species

IMAGE_SIZE: Final = 112
IMAGE_MODEL: Final = "mobilenetv3_small_050"
MAX_TOKENS: Final = 64
SPECIAL_TOKENS: Final = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
VISIBLE: Final = tuple(name for name in CHOICES if name not in TOLD)
"""The attributes the image model learns: all but those that pictures hardly show."""

Labels = npt.NDArray[np.int64]


class Namer(nn.Module):
    """One linear classifier per attribute on top of the vectors of a body."""

    def __init__(self, dim: int, names: Sequence[str]) -> None:
        """Classifiers of vectors of length ``dim`` for the attributes called ``names``."""
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(dim, len(CHOICES[name])) for name in names)

    def loss(self, vectors: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy over attributes; vectors (n, dim), labels int64 (n, attributes)."""
        losses = [
            functional.cross_entropy(head(vectors), labels[:, i], label_smoothing=0.05)
            for i, head in enumerate(self.heads)
        ]
        return torch.stack(losses).mean()

    @torch.no_grad()
    def hits(self, vectors: Tensor, labels: Tensor) -> Tensor:
        """Accuracy per attribute, (attributes,)."""
        guesses = torch.stack([head(vectors).argmax(1) for head in self.heads], dim=1)
        return (guesses == labels).float().mean(0)


# -------------------------------------------------------------------------------------------- image


def train_image(out: Path, seed: int, examples: int, epochs: int) -> None:
    """Trains the timm model on drawn pictures and saves it as a timm folder at ``out``."""
    pictures, labels = draw_examples(examples, seed)
    model = timm.create_model(IMAGE_MODEL, num_classes=0, pretrained_cfg=image_config())
    namer = Namer(cast(int, model.head_hidden_size), VISIBLE)
    model.to(memory_format=torch.channels_last)
    held_out = min(512, examples // 10)
    batches = ImageBatches(pictures[held_out:], labels[held_out:], batch_size=96)
    fit(model, namer, batches, epochs=epochs, lr=3e-3)
    report(namer, model(normalized(pictures[:held_out])), labels[:held_out], VISIBLE)
    save_image(model, out)


def image_config() -> dict[str, Any]:
    """What timm has to know to prepare pictures for the model."""
    return {
        "tag": "drawn_birds",
        "input_size": (3, IMAGE_SIZE, IMAGE_SIZE),
        "fixed_input_size": False,
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "crop_mode": "center",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "num_classes": 0,
        "pool_size": (4, 4),
        "first_conv": "conv_stem",
        "classifier": "classifier",
        "description": "Names the attributes of drawn birds",
    }


def draw_examples(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Pictures of as many species, uint8 (n, 3, 112, 112), and labels, int64 (n, attributes)."""
    seeds = [(seed, 10, index) for index in range(count)]
    with ProcessPoolExecutor(2) as pool:
        drawn = list(pool.map(draw_example, seeds, chunksize=64))
    pictures, labels = zip(*drawn, strict=True)
    return torch.from_numpy(np.stack(pictures)), torch.from_numpy(np.stack(labels))


def draw_example(seed: tuple[int, ...]) -> tuple[npt.NDArray[np.uint8], Labels]:
    """One picture as timm will prepare it, but for scaling, and its labels."""
    rng = np.random.default_rng(seed)
    species = random_species(rng)
    picture = through_jpeg(draw_bird(species, rng))
    labels = species.labels()
    return prepared(picture), np.array([labels[name] for name in VISIBLE])


def through_jpeg(picture: Image.Image) -> Image.Image:
    """The picture as it is read back from the data set's files."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return Image.open(buffer).convert("RGB")


def prepared(picture: Image.Image) -> npt.NDArray[np.uint8]:
    """Resized and cropped by timm's own transform, uint8 (3, 112, 112)."""
    transform = create_transform(IMAGE_SIZE, interpolation="bicubic", crop_pct=1.0, normalize=False)
    return np.asarray(transform(picture), dtype=np.uint8)


class ImageBatches:
    """Shuffled, jittered batches of pictures, anew in every epoch."""

    def __init__(self, pictures: Tensor, labels: Tensor, batch_size: int) -> None:
        """Pictures uint8 (n, 3, height, width), labels int64 (n, attributes)."""
        self.pictures, self.labels, self.batch_size = pictures, labels, batch_size

    def __len__(self) -> int:
        """Full batches in an epoch."""
        return len(self.pictures) // self.batch_size

    def __iter__(self) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
        """What the model takes, and labels."""
        for rows in shuffled(len(self.pictures), self.batch_size):
            yield (jittered(normalized(self.pictures[rows])),), self.labels[rows]


def normalized(pictures: Tensor) -> Tensor:
    """uint8 0 to 255 as float32 -1 to 1, laid out as convolutions on CPU are fastest."""
    return (pictures.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def jittered(pictures: Tensor) -> Tensor:
    """Mirrored at random and shifted by up to six pixels, the same shift for the whole batch."""
    mirror = torch.rand(len(pictures)) < 0.5
    pictures = torch.where(mirror[:, None, None, None], pictures.flip(3), pictures)
    dx, dy = (int(d) for d in torch.randint(0, 13, (2,)))
    padded = functional.pad(pictures, (6, 6, 6, 6), mode="replicate")
    return padded[:, :, dy : dy + IMAGE_SIZE, dx : dx + IMAGE_SIZE]


def save_image(model: nn.Module, out: Path) -> None:
    """``config.json`` and ``model.safetensors``, as on the hub."""
    model.to(memory_format=torch.contiguous_format)
    save_for_hf(model, str(out), safe_serialization=True)
    tidy_json(out / "config.json")


# --------------------------------------------------------------------------------------------- text


class MeanPooled(nn.Module):
    """A BERT whose vector of a text is the mean of its tokens' last hidden states."""

    def __init__(self, bert: BertModel) -> None:
        """Pools over ``bert``, which needs no pooler of its own."""
        super().__init__()
        self.bert = bert

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """int64 token ids and mask, (n, length) each, to float32 (n, dim)."""
        hidden = self.bert(input_ids=tokens, attention_mask=mask).last_hidden_state
        weights = mask[..., None].to(hidden.dtype)
        mean: Tensor = (hidden * weights).sum(1) / weights.sum(1)
        return mean


def train_text(out: Path, seed: int, examples: int, epochs: int) -> None:
    """Trains tokenizer and BERT on captions and saves both as a transformers folder at ``out``."""
    captions, labels = write_examples(examples, seed)
    tokenizer = train_tokenizer(captions[:20_000])
    tokens, mask = tokenized(tokenizer, captions)
    model = MeanPooled(BertModel(text_config(len(tokenizer)), add_pooling_layer=False))
    namer = Namer(model.bert.config.hidden_size, tuple(CHOICES))
    held_out = min(2048, examples // 10)
    batches = TextBatches(tokens[held_out:], mask[held_out:], labels[held_out:], batch_size=128)
    fit(model, namer, batches, epochs=epochs, lr=2e-3)
    report(namer, model(tokens[:held_out], mask[:held_out]), labels[:held_out], tuple(CHOICES))
    save_text(model.bert, tokenizer, out)


def write_examples(count: int, seed: int) -> tuple[list[str], Tensor]:
    """One caption each of as many species, and labels, int64 (n, attributes)."""
    captions, labels = [], []
    for index in range(count):
        rng = np.random.default_rng((seed, 11, index))
        species = random_species(rng)
        captions += describe(species, rng, count=1)
        labels.append([species.labels()[name] for name in CHOICES])
    return captions, torch.tensor(labels)


def train_tokenizer(captions: Sequence[str], vocabulary: int = 600) -> PreTrainedTokenizerFast:
    """A lower-casing WordPiece tokenizer; letters and digits are always known."""
    wordpiece = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    wordpiece.normalizer = normalizers.BertNormalizer(lowercase=True)
    wordpiece.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    alphabet = list("abcdefghijklmnopqrstuvwxyz0123456789.,;:!?'-()")
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary, special_tokens=list(SPECIAL_TOKENS), initial_alphabet=alphabet
    )
    inside = [f"e{letter}" for letter in alphabet if letter.isalnum()]
    wordpiece.train_from_iterator([*captions, *alphabet, *inside], trainer)
    wordpiece.post_processor = bert_template(wordpiece)
    return wrapped(wordpiece)


def bert_template(wordpiece: Tokenizer) -> processors.TemplateProcessing:
    """``[CLS] text [SEP]``, and pairs as BERT has them."""
    special = [(token, wordpiece.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    pair = "[CLS] $A [SEP] $B:1 [SEP]:1"
    return processors.TemplateProcessing("[CLS] $A [SEP]", pair=pair, special_tokens=special)


def wrapped(wordpiece: Tokenizer) -> PreTrainedTokenizerFast:
    """The tokenizer as transformers knows it."""
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    special = dict(zip(names, SPECIAL_TOKENS, strict=True))
    return PreTrainedTokenizerFast(
        tokenizer_object=wordpiece, model_max_length=MAX_TOKENS, padding_side="right", **special
    )


def tokenized(tokenizer: PreTrainedTokenizerFast, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Token ids and mask, int64 (n, length) each."""
    batch = tokenizer(list(captions), padding=True, truncation=True, return_tensors="pt")
    return batch["input_ids"], batch["attention_mask"]


def text_config(vocabulary: int) -> BertConfig:
    """A BERT of about a third of a million weights."""
    return BertConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=MAX_TOKENS,
        type_vocab_size=2,
    )


class TextBatches:
    """Shuffled batches of captions, each cut to its longest."""

    def __init__(self, tokens: Tensor, mask: Tensor, labels: Tensor, batch_size: int) -> None:
        """Tokens and mask int64 (n, length) each, labels int64 (n, attributes)."""
        self.tokens, self.mask, self.labels, self.batch_size = tokens, mask, labels, batch_size

    def __len__(self) -> int:
        """Full batches in an epoch."""
        return len(self.tokens) // self.batch_size

    def __iter__(self) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
        """What the model takes, and labels."""
        for rows in shuffled(len(self.tokens), self.batch_size):
            longest = int(self.mask[rows].sum(1).max())
            yield (self.tokens[rows, :longest], self.mask[rows, :longest]), self.labels[rows]


def save_text(bert: BertModel, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Weights, configuration and tokenizer, without a pooler."""
    bert.save_pretrained(out)
    tokenizer.save_pretrained(out)
    tidy_json(out / "config.json")
    tidy_json(out / "tokenizer_config.json", tokenizer_class="BertTokenizer")


# ------------------------------------------------------------------------------------------- shared


def shuffled(count: int, batch_size: int) -> Iterator[Tensor]:
    """Row numbers in random order, a full batch at a time; the rest is left out."""
    order = torch.randperm(count)
    for start in range(0, count - batch_size + 1, batch_size):
        yield order[start : start + batch_size]


def fit(model: nn.Module, namer: Namer, batches: ImageBatches | TextBatches, *, epochs: int, lr: float) -> None:
    """AdamW with a short warm-up and a cosine to zero; leaves the model in evaluation mode."""
    weights = [*model.parameters(), *namer.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=lr, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, cosine(epochs * len(batches)))
    model.train()
    for epoch in range(epochs):
        began = time.perf_counter()
        losses = [step(model, namer, batch, optimizer, schedule) for batch in batches]
        seconds = time.perf_counter() - began
        print(f"epoch {epoch}: {seconds:.0f} s, loss {np.mean(losses):.3f}", flush=True)
    model.eval()


def cosine(steps: int) -> Callable[[int], float]:
    """Learning-rate factor by step."""
    warm = max(1, steps // 20)
    return lambda at: min((at + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * min(1, at / steps)))


def step(
    model: nn.Module,
    namer: Namer,
    batch: tuple[tuple[Tensor, ...], Tensor],
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LambdaLR,
) -> float:
    """One update; gives its loss."""
    inputs, labels = batch
    loss = namer.loss(model(*inputs), labels)
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    nn.utils.clip_grad_norm_([*model.parameters(), *namer.parameters()], 1.0)
    optimizer.step()
    schedule.step()
    return float(loss.detach())


def report(namer: Namer, vectors: Tensor, labels: Tensor, names: Sequence[str]) -> None:
    """Prints held-out accuracy per attribute."""
    hits = namer.hits(vectors, labels)
    print(*(f"{name} {hit:.2f}" for name, hit in zip(names, hits, strict=True)), sep=", ")


def tidy_json(path: Path, **changes: str) -> None:
    """Rewrites a JSON file with its keys in order and without the folder it came from."""
    content: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    kept = {k: v for k, v in content.items() if k not in ("_name_or_path", "name_or_path")}
    text = json.dumps({**kept, **changes}, indent=2, sort_keys=True)
    path.write_text(text + "\n", encoding="utf-8")


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description="Trains the backbones of the demo.")
    parser.add_argument("which", choices=("image", "text"))
    parser.add_argument("--out", type=Path, default=Path("embedcache/demo/backbones"))
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--examples", type=int, help="pictures or captions to learn from")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def main() -> None:
    """Trains one of the two."""
    asked = arguments()
    torch.manual_seed(asked.seed)
    torch.set_num_threads(asked.threads)
    torch.use_deterministic_algorithms(True)
    train, examples, epochs = {
        "image": (train_image, 18_000, 14),
        "text": (train_text, 60_000, 5),
    }[asked.which]
    out: Path = asked.out / asked.which
    out.mkdir(parents=True, exist_ok=True)
    train(out, asked.seed, asked.examples or examples, asked.epochs or epochs)
    for path in out.iterdir():
        path.chmod(0o644)


if __name__ == "__main__":
    main()
