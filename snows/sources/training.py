"""Train the two bundled networks from scratch: `python -m snows train --model NAME`.

The recipes are short on purpose: a laptop without a GPU reproduces either checkpoint while its owner has lunch. Nothing in
the pruning engine uses labels or calls this module; it exists so that the bundled weights have a history one can re-run.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import date
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from snows.config import AnyPath, InputError, as_path
from snows.sources import data, models


@dataclass(frozen=True)
class Recipe:
    """What it takes to reproduce one checkpoint. `peak_lr` is the top of a one-cycle schedule (Smith & Topin, 2018)."""

    optimizer: str
    epochs: int
    batch_size: int
    peak_lr: float
    weight_decay: float
    warmup: float  # share of the steps on which the learning rate rises
    autocast: bool  # bfloat16 forward and backward: 1.4x faster for the ResNet on AVX-512 CPUs, no gain for the ViT


RECIPES: dict[str, Recipe] = {
    "resnet20-fashion": Recipe("sgd", 12, 128, 0.1, 5e-4, 0.25, autocast=True),
    "vit-fashion": Recipe("muon", 10, 128, 2e-3, 0.05, 0.15, autocast=False),
}


def augment(images: torch.Tensor, generator: torch.Generator, *, shift: int = 2) -> torch.Tensor:
    """Shift each image by up to `shift` pixels (zero fill) and mirror half of them. `images`: (B, C, H, W), any dtype."""
    count, _, height, width = images.shape
    padded = F.pad(images, [shift] * 4)
    top, left = torch.randint(0, 2 * shift + 1, (2, count), generator=generator)
    rows = top[:, None] + torch.arange(height)
    columns = left[:, None] + torch.arange(width)
    mirrored = torch.rand(count, generator=generator) < 0.5
    columns[mirrored] = columns[mirrored].flip(1)
    return padded[torch.arange(count)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _optimizers(model: torch.nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """SGD with momentum; or Muon (Jordan et al., 2024) on the weight matrices of the transformer's blocks, at ten times the
    rate of the AdamW that trains the rest. With AdamW alone the first two epochs got half as far."""
    if recipe.optimizer == "sgd":
        return [
            torch.optim.SGD(model.parameters(), recipe.peak_lr, momentum=0.9, nesterov=True, weight_decay=recipe.weight_decay)
        ]
    matrices = {n: p for n, p in model.named_parameters() if n.startswith("blocks.") and p.ndim == 2}
    rest = [p for n, p in model.named_parameters() if n not in matrices]
    return [
        torch.optim.Muon(matrices.values(), 10 * recipe.peak_lr, weight_decay=recipe.weight_decay),
        torch.optim.AdamW(rest, recipe.peak_lr, weight_decay=recipe.weight_decay),
    ]


def train(
    name: str,
    directory: AnyPath,
    *,
    seed: int = 0,
    epochs: int | None = None,
    limit: int | None = None,
    root: AnyPath | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Train the bundled architecture `name` on the full Fashion-MNIST training set and save it under `directory`.

    Writes `NAME.safetensors` and `NAME.json` (accuracy on the 10,000 test images, recipe, seconds) and returns the latter.
    `limit` trains on the first images only, to try things out; `root` is where torchvision's layout lies. `report` gets a line
    an epoch. Raises `InputError` for a name without a recipe, or where the full data set is not on this machine.
    """
    if name not in RECIPES:
        raise InputError(f"There is no training recipe for {name!r}. Recipes exist for {', '.join(RECIPES)}.")
    if min(epochs or 1, limit or 1) < 1:
        raise InputError(f"Training needs at least one epoch and one image, not {epochs} and {limit}.")
    recipe = RECIPES[name]
    epochs = epochs or recipe.epochs
    test_images, test_labels = data.read_fashion_mnist("test", root)
    images, labels = data.read_fashion_mnist("train", root)
    images, labels = images[:limit], labels[:limit]
    spec = models.BUNDLED[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # the initial weights; nothing else draws from the global generator
        model = spec.build().to(memory_format=torch.channels_last).train()
    generator = torch.Generator().manual_seed(seed)
    optimizers = _optimizers(model, recipe)
    steps = epochs * -(-len(images) // recipe.batch_size)
    schedules = [
        torch.optim.lr_scheduler.OneCycleLR(o, o.param_groups[0]["lr"], total_steps=steps, pct_start=recipe.warmup)
        for o in optimizers
    ]

    started = time.perf_counter()
    for epoch in range(epochs):
        total_loss = 0.0
        for picks in torch.randperm(len(images), generator=generator).split(recipe.batch_size):
            batch = spec.preprocess(augment(images[picks], generator)).contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16, enabled=recipe.autocast):
                logits = model(batch)
            loss = F.cross_entropy(logits.float(), labels[picks])
            model.zero_grad()
            loss.backward()
            for optimizer, schedule in zip(optimizers, schedules, strict=True):
                optimizer.step()
                schedule.step()
            total_loss += loss.item() * len(picks)
        report(f"epoch {epoch + 1}/{epochs}  loss {total_loss / len(images):.4f}  {time.perf_counter() - started:.0f} s")
    seconds = time.perf_counter() - started

    model.eval()
    with torch.no_grad():
        hits = sum(
            int((model(spec.preprocess(batch)).argmax(1) == truth).sum())
            for batch, truth in zip(test_images.split(500), test_labels.split(500), strict=True)
        )
    card = {
        "model": name,
        "dataset": f"Fashion-MNIST, {len(images):,} training images",
        "test_accuracy": hits / len(test_labels),
        "parameters": sum(p.numel() for p in model.parameters()),
        "recipe": asdict(recipe) | {"epochs": epochs, "seed": seed, "augmentation": "shift by up to 2 pixels, mirror"},
        "seconds": round(seconds),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "date": date.today().isoformat(),
        "command": f"python -m snows train --model {name} --seed {seed}"
        + (f" --epochs {epochs}" if epochs != recipe.epochs else "")
        + (f" --limit {limit}" if limit else ""),
    }
    directory = as_path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, directory / f"{name}.safetensors")
    (directory / f"{name}.json").write_text(json.dumps(card, indent=2) + "\n")
    return card
