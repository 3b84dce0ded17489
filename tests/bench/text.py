"""A network that sees no images: a small language model, by character, on the documentation that comes with Python.

Trained here, in a minute or two on one core, to say the next character of the language reference as `pydoc` has it; pruned on
256 stretches of what it was trained on, and judged on the last tenth of the text, which it has never seen. One line of
`assets/bench/text.jsonl` a measurement; what is on file is not measured again.
"""

import statistics
import sys
import time
from pydoc_data.topics import topics

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snows.config import PruneConfig
from snows.method.pruner import prune
from snows.plans import recorded
from tests.bench.quality import SEEDS
from tests.bench.readme import put
from tests.bench.records import add, read

RESULTS = recorded.FOLDER / "text.jsonl"
LENGTH, WIDTH, BATCH, STEPS = 64, 96, 32, 1_500
NUM_CALIBRATION, NUM_EVALUATION = 256, 400
PATTERNS = ["2:4", "1:4", "1:8"]
_ALONE = {"refine": "none"}
METHODS: dict[str, dict[str, object]] = {
    "mask only": {"update": "none"},
    "SparseGPT": {"mask": "sparsegpt", "update": "sparsegpt", "targets": "propagated", "ridge": 0.0},
    "least squares": {"update": "least-squares", **_ALONE},
    "least squares, refined mask": {"update": "least-squares"},
    "SNOWS K=3": _ALONE,
    "SNOWS K=3, refined mask": {},
    "SNOWS K=3, refined mask, joint fit": {"joint": "network"},
}


class Text(nn.Module):
    """Each character answers for the next one, and sees those before it: (N, T) numbers to (N, T, characters)."""

    def __init__(self, characters: int) -> None:
        super().__init__()
        self.characters, self.places = nn.Embedding(characters, WIDTH), nn.Embedding(LENGTH, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, 0.0, F.gelu, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(WIDTH), enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, characters)
        self.register_buffer("later", torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.characters(x) + self.places(torch.arange(x.shape[1], device=x.device))
        return self.head(self.encoder(x, mask=self.later))


def numbers() -> tuple[Tensor, Tensor, int]:
    """The text as numbers of its characters, what is trained on and what is not, and how many characters there are. What is
    rare has one number."""
    text = "\n\n".join(topics.values())
    known = {c: i + 1 for i, c in enumerate(sorted(c for c in set(text) if text.count(c) >= 20))}
    every = torch.tensor([known.get(c, 0) for c in text])
    return *every.split([cut := len(every) * 9 // 10, len(every) - cut]), len(known) + 1


def stretches(text: Tensor, count: int, length: int, generator: torch.Generator) -> Tensor:
    """(count, length), each from a place of chance."""
    starts = torch.randint(len(text) - length, (count,), generator=generator)
    return torch.stack([text[start : start + length] for start in starts.tolist()])


def trained(text: Tensor, characters: int) -> Text:
    """The network, trained from scratch; the same each time on one kind of machine."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Text(characters)
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=STEPS)
    for _ in range(STEPS):
        batch = stretches(text, BATCH, LENGTH + 1, generator)
        loss = F.cross_entropy(network(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


@torch.no_grad()
def judged(network: nn.Module, text: Tensor) -> tuple[float, float]:
    """The share of next characters that it gets right, and its cross-entropy in nats a character."""
    pieces = text[: len(text) // (LENGTH + 1) * (LENGTH + 1)].view(-1, LENGTH + 1)[:NUM_EVALUATION]
    logits, wanted = network(pieces[:, :-1]), pieces[:, 1:]
    return float((logits.argmax(-1) == wanted).float().mean()), float(F.cross_entropy(logits.flatten(0, 1), wanted.flatten()))


def measure(*, fresh: bool = False) -> None:
    """Measure what is missing."""
    if fresh:
        RESULTS.unlink(missing_ok=True)
    known = {(r["method"], r["pattern"], r["seed"]) for r in read(RESULTS)}
    missing = [(m, p, s) for s in SEEDS for p in PATTERNS for m in METHODS if (m, p, s) not in known]
    if not missing:
        return
    train, test, characters = numbers()
    network = trained(train, characters)
    dense, dense_nats = judged(network, test)
    for method, pattern, seed in missing:
        images = stretches(train, NUM_CALIBRATION, LENGTH, torch.Generator().manual_seed(seed))
        config = PruneConfig.model_validate({"pattern": pattern, "seed": seed, **METHODS[method]})
        started = time.process_time()
        accuracy, nats = judged(prune(network, images, config).model, test)
        record = {"method": method, "pattern": pattern, "seed": seed, "accuracy": accuracy, "nats": nats}
        took = {"accuracy_dense": dense, "nats_dense": dense_nats, "cpu_seconds": round(time.process_time() - started, 2)}
        add(RESULTS, record | took | {"python": sys.version.split()[0]})


def table(records: list[dict]) -> str:
    """The measurements as Markdown: the share right in percent with its spread over seeds, and nats a character."""
    lines = ["| method | " + " | ".join(f"keep {p}" for p in PATTERNS) + " |", "|" + "---|" * (1 + len(PATTERNS))]
    for method in METHODS:
        cells = []
        for pattern in PATTERNS:
            mine = [r for r in records if (r["method"], r["pattern"]) == (method, pattern)]
            right, nats = ([r[key] for r in mine] for key in ("accuracy", "nats"))
            spread = f" ± {100 * statistics.stdev(right):.1f}" if len(right) > 1 else ""
            cells.append(
                f"{100 * statistics.mean(right):.1f}{spread} ({statistics.mean(nats):.2f})" if mine else "not measured"
            )
        lines.append("| " + " | ".join([method, *cells]) + " |")
    return "\n".join(lines)


def write_table() -> None:
    """Put the table into the README."""
    put("text", table(read(RESULTS)))
