"""A pruned network's card: what it is, what was measured, on which data, how to use it, and what it is not.

Plain Markdown with the head that the Hugging Face hub reads. Every fact is given; nothing here is measured.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from snows.export.packed import LOADER

# Weights that are zero stay so while a network is trained on. A test runs these lines from the card.
KEEP_ZEROS = """\
from torch.nn.utils import prune
for layer, name in [(m, n) for m in model.modules() for n, w in m.named_parameters(recurse=False) if w.ndim > 1 and (w == 0).any()]:
    prune.custom_from_mask(layer, name, getattr(layer, name) != 0)
"""  # noqa: E501 (a line of somebody else's program)


@dataclass(frozen=True)
class Card:
    """What a card says. `results`: what was measured, and its value, in words. `layers`: each pruned weight, its shape and the
    share that was kept. `opens`: the lines that load it, of Python. `repeat`: what to type to prune it again. `licence`: its
    name on the hub, empty where nobody said. `timm`: whether timm reads the folder, which was tried."""

    network: str
    method: str
    pattern: str
    results: Sequence[tuple[str, str]]
    layers: Sequence[tuple[str, str, str]]
    data: str
    fingerprint: str
    repeat: str
    opens: str
    limits: Sequence[str]
    licence: str
    licence_note: str
    sizes: str
    versions: Mapping[str, str]
    timm: bool


def text(card: Card) -> str:
    """The card as Markdown."""
    head: dict[str, object] = {"pipeline_tag": "image-classification", "tags": ["pruning", "sparsity"]}
    head |= {"library_name": "timm"} if card.timm else {}
    head |= {"license": card.licence} if card.licence else {}
    lines = "\n".join(f"{key}: {json.dumps(value)}" for key, value in head.items())  # which is YAML, too
    return f"""---
{lines}
---

# {plain(card.network)}, pruned to {plain(card.pattern)}

Pruned in one shot, without labels and without training: {plain(card.method)}. {card.sizes}

{_table(("what was measured", "value"), card.results)}

## Use

```python
{card.opens.strip()}
```

`packed.safetensors` holds the same weights, kept values and their places alone. What reads it needs torch and safetensors:

```python
{LOADER.strip()}
```

To train it on, with every zero kept:

```python
{KEEP_ZEROS.strip()}
```

`prune.remove(layer, name)` makes a plain weight of each again.

## Data

{plain(card.data)}

{card.fingerprint}

## To do it again

```sh
{card.repeat.strip()}
```

{_table(("package", "version"), list(card.versions.items()))}

## What it is not

{chr(10).join(f"- {limit}" for limit in card.limits)}

## Licence

{card.licence_note}

## Layers

{_table(("weight", "shape", "kept"), card.layers)}
"""


def plain(words: str) -> str:
    """Words that somebody typed, on one line, never read as Markdown or HTML."""
    return "".join(f"\\{letter}" if letter in r"\`*_{}[]<>#|~$!&" else letter for letter in " ".join(words.split()))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([plain(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
