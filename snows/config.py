"""What a run should do, as frozen, validated values with a JSON form: `Config.model_validate_json`, `config.model_dump_json`.

`PruneConfig` says how to prune any network; `RunConfig` adds which network and images, so that a run folder alone is enough to
repeat the run. Choices are named by strings, never by objects, so that a form, a shell flag and a JSON file say the same thing.

Every constraint is checked here, once. `explain` turns a failed check into a sentence for a person.
"""

import errno
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

MASKS = ("magnitude", "wanda", "sparsegpt", "ria", "alps", "obc", "sparseswaps", "dsnot", "random")
# Searched for in one layer for its own count, so that nothing ranks one layer's weights beside another's.
MASKS_OF_ONE_LAYER = ("alps", "sparseswaps", "dsnot")
# What whole units are chosen by, under a structured pattern. Taylor scores are of units alone.
MASKS_OF_UNITS = ("magnitude", "obc", "taylor", "random")
UPDATES = ("none", "least-squares", "sparsegpt", "snows")
TARGETS = ("dense", "propagated")
REFINEMENTS = ("none", "layer", "window")
JOINTS = ("none", "network", "answers")
COUNTS = ("weights", "operations", "bytes")
ALLOCATORS = ("loss", "uniform", "owl", "alphapruning", "erdos-renyi")
CURVATURES = ("gauss_newton", "hessian", "finite_difference")


class InputError(ValueError):
    """The input is at fault, not the program. The message says what happened, why, and what to do.

    `in_shell`: what to type for it in a shell. It is said there alone; a browser has fields and buttons.

    >>> try:
    ...     snows.load_model("resnet20-fashoin")
    ... except snows.InputError as error:
    ...     print(str(error).partition(" Models are")[0])
    There is no model 'resnet20-fashoin'. Did you mean resnet20-fashion or resnet20-cifar10 or resnet50-cifar100?
    """

    def __init__(self, message: str = "", *, in_shell: str = "") -> None:
        super().__init__(message)
        self.in_shell = in_shell


def first_line(error: Exception) -> str:
    """What an error of another library says, as a part of a sentence: its first line that is not empty."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return line[:300].rstrip(" .")


class Cancelled(Exception):  # noqa: N818 (not an error)
    """Somebody asked the work to stop; what is finished has been handed on."""


AnyPath = str | os.PathLike[str]


def as_path(given: AnyPath) -> Path:
    """A path as a person gives it: text or a path, `~` for the home folder. Raises `InputError` for what is none."""
    try:
        path = Path(given).expanduser()
        os.stat(path)
    except (ValueError, RuntimeError) as error:  # a NUL in it; a home folder of nobody's
        raise InputError(f"{str(given)[:60]!r} cannot be a path: {error}. Check it.") from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise InputError(f"{str(given)[:60]!r} … is too long for a path. Check it.") from None
    return path


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class NM(_Config):
    """Keep `n` of every `m` consecutive weights along the input axis (2:4 keeps two of four).

    For a weight (out, in) or (out, in, *kernel) a group is `m` neighbouring inputs of one output at one kernel position, the
    layout of sparse tensor cores (Mishra et al. 2021, arXiv 2104.08378). Raises `ValidationError` (a `ValueError`) unless
    0 < n < m <= 1024. A layer whose inputs `m` does not divide stays dense, with the reason in `PruneResult.skipped`.

    >>> pattern = snows.NM(n=2, m=4)
    >>> str(pattern), pattern.density
    ('2:4', 0.5)
    """

    kind: Literal["nm"] = "nm"
    n: int = Field(ge=1)
    m: int = Field(ge=2, le=1024)

    @model_validator(mode="after")
    def _keeps_fewer_than_all(self) -> "NM":
        if self.n >= self.m:
            raise ValueError(
                f"Keep N of M needs N smaller than M, but {self.n}:{self.m} would keep every weight. Choose for example 2:4."
            )
        return self

    @property
    def density(self) -> float:
        return self.n / self.m

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"


class Unstructured(_Config):
    """Remove the share `sparsity` of the weights with the lowest scores, wherever they lie.

    `scope="layer"` removes that share from each layer; `"global"` ranks all layers' scores together, removing at most the share
    `layer_cap` of any one layer, so that no layer is emptied. Both lie between 0 and 1. Raises `ValidationError` (a
    `ValueError`) for others, and for a cap below the sparsity.

    >>> str(snows.Unstructured(sparsity=0.75)), snows.Unstructured(sparsity=0.75).density
    ('75%', 0.25)
    >>> str(snows.Unstructured(sparsity=0.7, scope="global"))
    '70% global'
    """

    kind: Literal["unstructured"] = "unstructured"
    sparsity: float = Field(gt=0, lt=1)
    scope: Literal["layer", "global"] = "layer"
    layer_cap: float = Field(0.95, gt=0, lt=1)

    @model_validator(mode="after")
    def _cap_leaves_room(self) -> "Unstructured":
        if self.scope == "global" and self.layer_cap < self.sparsity:
            raise ValueError(
                f"The per-layer cap ({self.layer_cap:.0%}) is below the sparsity asked for ({self.sparsity:.0%}), so it cannot "
                "be reached. Raise the cap or lower the sparsity."
            )
        return self

    @property
    def density(self) -> float:
        return 1 - self.sparsity

    def __str__(self) -> str:
        return f"{100 * self.sparsity:g}%" + (" global" if self.scope == "global" else "")


class Dense(_Config):
    """Leave the layer as it is: of use in `PruneConfig.overrides`, by the parameter's name.

    >>> snows.PruneConfig(pattern="1:8", overrides={"fc.weight": snows.Dense()}).overrides["fc.weight"].density
    1.0
    """

    kind: Literal["dense"] = "dense"

    @property
    def density(self) -> float:
        return 1.0

    def __str__(self) -> str:
        return "dense"


class Structured(_Config):
    """Cut the share `removed` of a layer's units away whole, so that the network gets smaller and faster by its shapes.

    A unit is an output channel of a layer inside a block, or a hidden unit of an MLP (`channels`), or an attention head
    (`heads`), with whatever reads it; `what="width"` means all of these. What all blocks share, the residual stream, stays.
    Raises `ValidationError` (a `ValueError`) unless `removed` lies between 0 and 1. Units are chosen by the masks magnitude,
    obc, taylor and random; Taylor scores are those of Molchanov et al. 2017 (arXiv 1611.06440), without labels.

    >>> str(snows.Structured(what="heads", removed=0.5)), snows.Structured(removed=0.25).density
    ('heads 50%', 0.75)
    """

    kind: Literal["structured"] = "structured"
    what: Literal["width", "channels", "heads"] = "width"
    removed: float = Field(gt=0, lt=1)

    @property
    def density(self) -> float:
        return 1 - self.removed

    def __str__(self) -> str:
        return f"{self.what} {100 * self.removed:g}%"


LayerPattern = NM | Unstructured | Dense | Structured
Pattern = Annotated[LayerPattern, Field(discriminator="kind")]


def parse_pattern(text: str) -> LayerPattern:
    """`"2:4"`, `"70%"`, `"70% global"`, `"width 50%"` or `"dense"` to a pattern. Raises `ValueError` with the accepted forms.

    Letters and spaces in `text` may be as they like. `PruneConfig` does the same, so this is for a pattern by itself.

    >>> snows.parse_pattern("2:4")
    NM(kind='nm', n=2, m=4)
    >>> str(snows.parse_pattern("70% global"))
    '70% global'
    """
    text = text.strip().lower()
    try:
        if match := re.fullmatch(r"(\d+)\s*:\s*(\d+)", text):
            return NM(n=int(match[1]), m=int(match[2]))
        if match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*%(\s+global)?", text):
            return Unstructured(sparsity=float(match[1]) / 100, scope="global" if match[2] else "layer")
        if match := re.fullmatch(r"(width|channels|heads)\s+(\d+(?:\.\d+)?)\s*%", text):
            return Structured.model_validate({"what": match[1], "removed": float(match[2]) / 100})
    except ValidationError as error:
        raise ValueError(f"Pattern {text!r} cannot be used: {explain(error)}") from None
    if text == "dense":
        return Dense()
    raise ValueError(
        f"Unknown pattern {text!r}. Write N:M to keep N of every M weights (2:4), a percentage to remove that share of each "
        "layer (70%) or of the whole network (70% global), or a share of units to cut away whole (width 50%, channels 50%, "
        "heads 50%)."
    )


class Budget(_Config):
    """One share for the network, in place of one pattern for all layers: all prunable layers together keep at most `share` of
    what `by` counts, and `allocate` says which layer gets how much of it.

    Each layer gets one of `patterns` that fits it; without any, a share of its own, its weights wherever they lie. A layer that
    gets `dense` keeps all its weights, and they are fitted like others. Layers with an override keep to that, and count.
    """

    kind: Literal["budget"] = "budget"
    share: float = Field(
        gt=0,
        lt=1,
        description="A share to keep of all prunable layers together, such as 6.25%, spent where it hurts least, in the place "
        "of one pattern for all layers.",
    )
    by: Literal["weights", "operations", "bytes"] = Field(
        "weights",
        description="What a budget counts: weights kept, multiply-adds of one image, or bytes of weights with their positions.",
    )
    allocate: Literal["loss", "uniform", "owl", "alphapruning", "erdos-renyi"] = Field(
        "loss",
        description="How a budget is spread: to the least sum of the losses that each pattern of each layer brings, measured "
        "on the calibration images; evenly; by outliers (OWL); by the weights' spectra (AlphaPruning); or by the shapes of the "
        "layers.",
    )
    patterns: tuple[Pattern, ...] = Field(
        (NM(n=1, m=64), NM(n=1, m=32), NM(n=1, m=16), NM(n=1, m=8), NM(n=1, m=4), NM(n=2, m=4), Dense()),
        description="What a budget chooses from, layer by layer, such as '1:16 1:8 dense'; any: a percentage for each layer.",
    )

    @field_validator("share", mode="before")
    @classmethod
    def _share_from_text(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", value)
        if match and 0 < float(match[1]) < 100:
            return float(match[1]) / 100
        raise ValueError(f"A budget is a percentage to keep, above 0% and below 100%, such as 6.25%, but is {value!r}.")

    @field_validator("patterns", mode="before")
    @classmethod
    def _patterns_from_text(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        texts = value.replace(",", " ").split()
        return () if texts == ["any"] else tuple(map(parse_pattern, texts))

    @property
    def density(self) -> float:
        """What it keeps of what it counts."""
        return self.share

    @model_validator(mode="after")
    def _chooses_between_patterns(self) -> "Budget":
        if any(isinstance(pattern, Unstructured) and pattern.scope == "global" for pattern in self.patterns):
            raise ValueError("A budget chooses a pattern for each layer, and a global one is none of a layer. Leave it out.")
        if units := next((pattern for pattern in self.patterns if isinstance(pattern, Structured)), None):
            raise ValueError(f"{units} cuts units that layers share, and a budget chooses layer by layer. Leave it out.")
        if self.patterns and all(isinstance(pattern, Dense) for pattern in self.patterns):
            raise ValueError("A budget needs a pattern to choose that removes weights, such as 1:8.")
        return self

    def __str__(self) -> str:
        default = type(self).model_fields
        parts = [f"budget {100 * self.share:g}%" + (f" of {self.by}" if self.by != "weights" else "")]
        parts += [self.allocate] if self.allocate != "loss" else []
        if self.patterns != default["patterns"].default:
            parts.append(f"from {' '.join(map(str, self.patterns)) or 'any'}")
        return ", ".join(parts)


NetworkPattern = Annotated[LayerPattern | Budget, Field(discriminator="kind")]


def parse_network_pattern(text: str) -> LayerPattern | Budget:
    """As `parse_pattern`, and `"budget 6.25%"`, `"budget 5% of bytes, owl, from 1:8 2:4 dense"` to a budget: what `str` makes
    of one. Raises `ValueError` with the accepted forms."""
    if not text.strip().lower().startswith("budget"):
        return parse_pattern(text)
    head, *rest = [part.strip() for part in text.strip().lower().removeprefix("budget").split(",")]
    share, _, by = head.partition(" of ")
    given = {"share": share} | ({"by": by.strip()} if by else {})
    for part in rest:
        given["patterns" if part.startswith("from ") else "allocate"] = part.removeprefix("from ")
    try:
        return Budget.model_validate(given)
    except ValidationError as error:
        raise ValueError(f"{text.strip()!r} cannot be used: {explain(error)}") from None


class SolverConfig(_Config):
    """Settings of Newton-CG, which finds the values of a layer's kept weights (`update="snows"`).

    Each field's sentence is the one a form shows. The outer loop is algorithm 7.1 of Nocedal & Wright (2006) with a fixed
    relative tolerance `rtol`; `damping` and `min_decrease` are relative, too, to the curvature's mean diagonal and to the loss.
    The published method (Lucas & Mazumder 2025) has the exact Hessian, no preconditioner, and starts at the masked weights.
    Frozen; raises `ValidationError` (a `ValueError`) for values out of their range and for names that are no setting.

    >>> as_published = snows.SolverConfig(curvature="hessian", preconditioner="none", start="masked")
    >>> snows.PruneConfig(pattern="1:4", solver=as_published).solver.rtol
    0.1
    """

    curvature: Literal["gauss_newton", "hessian", "finite_difference"] = Field(
        "gauss_newton",
        description="How curvature is measured: Gauss-Newton never bends the wrong way, the exact Hessian is the paper's "
        "choice, finite differences are for teaching.",
    )
    # Two steps, to a tenth of the gradient: ResNet-20 at 1:16 and K = 3 then ends at 86.4 % with 188 products, where three
    # steps to a hundredth take 503 to 86.5 %, and one step alone stays about two points below.
    newton_steps: int = Field(2, ge=1, le=100, description="How many Newton steps a layer gets at the most.")
    max_iters: int = Field(50, ge=1, le=10_000, description="How many conjugate-gradient iterations one Newton step may take.")
    rtol: float = Field(
        0.1, gt=0, lt=1, description="Conjugate gradient stops when its residual has fallen to this share of the gradient."
    )
    damping: float = Field(
        1e-4,
        ge=0,
        description="Added to the curvature, as a share of its mean diagonal: larger is safer and slower.",
    )
    preconditioner: Literal["row_blocks", "none"] = Field(
        "row_blocks", description="Row blocks reuse the least-squares factors and cut the iterations several times."
    )
    curvature_share: float = Field(
        0.25,
        gt=0,
        le=1,
        description="The share of the calibration batches that curvature is measured on, drawn anew each step.",
    )
    min_decrease: float = Field(
        1e-3, ge=0, lt=1, description="A layer is finished when a Newton step lowers its loss by less than this share."
    )
    start: Literal["least_squares", "masked"] = Field(
        "least_squares", description="Where Newton begins: at the exact solution for K=0, or at the masked dense weights."
    )


class PruneConfig(_Config):
    """How to prune: which weights stay (`pattern`, `mask`) and what values they take (`update`, `k_steps`, `targets`).

    Each field's sentence is the one a form shows; the defaults are SNOWS as the README's tables have it. What each mask and
    update is, and from which paper, `python -m snows methods` says. `memory` is in GB, `ridge` in images, `k_steps` in
    operations. Frozen; `model_dump_json` and `model_validate_json` write and read it. Raises `ValidationError` (a `ValueError`)
    for values out of their range, names that are no setting, and settings that exclude each other.

    >>> config = snows.PruneConfig(pattern="1:8", overrides={"layer1.0.conv1.weight": "2:4"}, k_steps=5)
    >>> str(config.pattern), config.update, config.refinement
    ('1:8', 'snows', 'window')
    >>> snows.PruneConfig.model_validate_json(config.model_dump_json()) == config
    True
    """

    pattern: NetworkPattern = Field(
        NM(n=2, m=4),
        description="What stays: N:M keeps N of every M weights along the input axis (2:4), 70% removes that share of each "
        "layer, 70% global of the whole network; width 50% cuts away half of the hidden units, inner channels and attention "
        "heads whole, channels 50% all but heads, heads 50% these alone.",
    )
    overrides: dict[str, Pattern] = Field(
        default_factory=dict, description="A layer's own pattern, or dense to leave that layer as it is."
    )
    mask: str = Field(
        "magnitude",
        description=f"How weights are chosen: {', '.join(MASKS)}, or a .safetensors file whose zeros are the mask. "
        "`python -m snows methods` says what each is. Whole units are chosen by "
        f"{', '.join(MASKS_OF_UNITS)}.",
    )
    refine: Literal["none", "layer", "window"] = Field(
        "window",
        description="Whether kept weights are exchanged for pruned ones of their group where that lowers the loss: not at all, "
        "the layer's own (takes no time worth speaking of), or also, after the first Newton step, the window's. For least "
        "squares and SNOWS; a mask from a file stays as it is.",
    )
    update: Literal["none", "least-squares", "sparsegpt", "snows"] = Field(
        "snows", description="What values the kept weights take."
    )
    k_steps: int = Field(3, ge=0, le=10_000, description="How many operations after the layer its weights must also reproduce.")
    sweeps: int = Field(
        1,
        ge=1,
        le=10,
        description="How often the layers are gone through. A second time, each layer meets later layers that are pruned too: "
        "twice the time, and worth it where few weights stay.",
    )
    joint: Literal["none", "network", "answers"] = Field(
        "none",
        description="Whether, after the layers, all kept weights of the network move together: toward the dense network's "
        "values at its blocks' ends and its answers (network), or toward its answers alone. A run takes two to three times "
        "as long with it; it is worth most where few weights stay.",
    )
    joint_epochs: int = Field(20, ge=1, le=10_000, description="How often the joint fit goes through the calibration images.")
    targets: Literal["dense", "propagated"] = Field(
        "dense",
        description="What to reproduce: the untouched network's values, or the dense weight's on the pruned network's input.",
    )
    ridge: float = Field(
        4.0,
        ge=0,
        description="How strongly kept weights are pulled toward their dense values, counted in images: as if the dense layer "
        "had to be met on so many more, of independent inputs. It makes a fit on few images hold on others.",
    )
    batch_size: int = Field(128, ge=1, description="How many calibration images are computed at once, at the most.")
    memory: float = Field(
        1.0,
        gt=0,
        description="What the values of the layers in work may take, in GB, beside the network and what waits of the images: "
        "with less, fewer images are computed at once, and passes are made again instead of kept; targets that take more "
        "than twice as much are made again, too. The same on every machine, so that a run ends alike on each.",
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Fixes the choice of images and every other random draw.")
    device: str = Field("auto", description="auto (CUDA where present), cpu, cuda or cuda:N.")
    precision: Literal["float32", "float64"] = Field(
        "float32",
        description="The number format of the computation. The app and the shell keep NVIDIA cards from rounding "
        "float32 to TF32.",
    )
    prune_classifier: bool = Field(
        False,
        description="Prune the last layer too. It is small and every answer passes through it: pruned to 1:4, it costs "
        "ResNet-20 more than all other layers together.",
    )
    repair: bool = Field(
        False,
        description="Give every output channel of a pruned layer the mean and the spread that it had in the dense network, at "
        "the end: its kept weights are scaled together, and its bias or its batch norm's mean is moved.",
    )
    batch_norm_reestimate: bool = Field(False, description="Measure batch-norm statistics again after pruning.")
    solver: SolverConfig = SolverConfig()

    @property
    def structured(self) -> bool:
        """Whether any layer has whole units cut away."""
        return any(isinstance(pattern, Structured) for pattern in (self.pattern, *self.overrides.values()))

    @property
    def mask_from_file(self) -> bool:
        return self.mask.endswith(".safetensors")

    @property
    def refinement(self) -> Literal["none", "layer", "window"]:
        """`refine` as far as it goes here: only what fits values refines a mask, only SNOWS has a window, a mask from a file
        is what its owner wants, and whole units stay as chosen."""
        pruned = [pattern for pattern in (self.pattern, *self.overrides.values()) if not isinstance(pattern, Dense)]
        if pruned and all(isinstance(pattern, Structured) for pattern in pruned):
            return "none"
        if self.update not in ("least-squares", "snows") or self.mask_from_file or self.refine == "none":
            return "none"
        return self.refine if self.update == "snows" else "layer"

    @model_validator(mode="after")
    def _a_given_mask_has_no_budget(self) -> "PruneConfig":
        if isinstance(self.pattern, Budget) and self.mask_from_file:
            raise ValueError(
                f"The masks of {Path(self.mask).name} say which weights stay, so there is no budget to spread. Choose one of "
                f"{', '.join(MASKS)}, or leave the budget out."
            )
        return self

    @model_validator(mode="after")
    def _units_have_masks_of_their_own(self) -> "PruneConfig":
        if self.structured and self.mask not in MASKS_OF_UNITS:
            raise ValueError(
                f"Mask {self.mask!r} chooses single weights, and the pattern cuts away whole units. Choose one of "
                f"{', '.join(MASKS_OF_UNITS)}."
            )
        if self.mask == "taylor" and not self.structured:
            raise ValueError(
                f"Mask 'taylor' scores whole units, and {self.pattern} has none. Choose one of {', '.join(MASKS)}, or a "
                "pattern such as width 50%."
            )
        return self

    @model_validator(mode="after")
    def _only_snows_gains_by_sweeps(self) -> "PruneConfig":
        if self.sweeps > 1 and self.update != "snows":
            raise ValueError(
                f"A second sweep finds nothing to do for update {self.update!r}, which looks at no later layer. Use update "
                "snows, or one sweep."
            )
        return self

    @model_validator(mode="after")
    def _mask_can_be_ranked_across_layers(self) -> "PruneConfig":
        patterns = [self.pattern, *self.overrides.values()]
        across = next((p for p in patterns if isinstance(p, Unstructured) and p.scope == "global"), None)
        if across is not None and self.mask in MASKS_OF_ONE_LAYER:
            raise ValueError(
                f"Mask {self.mask} is searched for layer by layer, so {across} cannot rank all layers' weights by it. Use "
                f"{100 * across.sparsity:g}%, which removes that share of each layer, or mask magnitude, wanda or obc."
            )
        return self

    @field_validator("pattern", mode="before")
    @classmethod
    def _pattern_from_text(cls, value: object) -> object:
        return parse_network_pattern(value) if isinstance(value, str) else value

    @field_validator("overrides", mode="before")
    @classmethod
    def _overrides_from_text(cls, value: object) -> object:
        if isinstance(value, list | tuple):  # lines of SITE=PATTERN, as a person writes them
            lines = [str(line).rpartition("=") for line in value if str(line).strip()]
            if wrong := next((text for _, equals, text in lines if not equals), None):
                raise ValueError(f"{wrong.strip()!r} is not of the form SITE=PATTERN, such as layer1.0.conv1=2:4 or fc=dense.")
            value = {site.strip(): pattern for site, _, pattern in lines}
        if not isinstance(value, dict):
            return value
        return {name: parse_pattern(p) if isinstance(p, str) else p for name, p in value.items()}

    @field_validator("mask", mode="before")
    @classmethod
    def _mask_from_path(cls, value: object) -> object:
        return os.fspath(value) if isinstance(value, os.PathLike) else value

    @field_validator("mask")
    @classmethod
    def _mask_is_known(cls, value: str) -> str:
        if value in (*MASKS, *MASKS_OF_UNITS) or value.endswith(".safetensors"):
            return value
        raise ValueError(f"Unknown mask method {value!r}. Choose one of {', '.join(MASKS)}, or name a .safetensors file.")

    @field_validator("device")
    @classmethod
    def _device_is_known(cls, value: str) -> str:
        if re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
            return value
        raise ValueError(f"Unknown device {value!r}. Choose auto, cpu, cuda or cuda:N.")


class RunConfig(_Config):
    """One run from names alone: which network, which images, and how to prune.

    What a run folder keeps, and what a shell or a form makes; a script that has a module and images calls `prune`. Counts are
    of images. Frozen; raises `ValidationError` (a `ValueError`) as `PruneConfig` does. Whether names stand for something is
    seen when the run begins.

    >>> config = snows.RunConfig(model="vit-fashion", num_calibration=256, prune=snows.PruneConfig(pattern="1:4"))
    >>> config.data, str(config.prune.pattern)
    ('fashion-mnist', '1:4')
    """

    model: str = Field(
        "resnet20-fashion",
        description="resnet20-fashion, vit-fashion, resnet20-cifar10, resnet50-cifar100, timm:NAME or torchvision:NAME.",
    )
    checkpoint: str | None = Field(
        None,
        description="A file with weights of your own: safetensors, packed or not, or by torch.save; or a folder for the hub.",
    )
    class_names: tuple[str, ...] = Field((), description="What the outputs mean, in order, where the network does not say.")
    data: str = Field(
        "fashion-mnist",
        description="fashion-mnist, cifar-10, cifar-100, imagenette, oxford-pets, flowers-102, or a folder of images.",
    )
    num_calibration: int = Field(512, ge=1, description="How many images, without labels, the reconstruction is fitted on.")
    num_held_back: int = Field(
        32,
        ge=0,
        description="How many further images of the same set each layer's loss is measured on, nothing being fitted on them: "
        "what it is above that on the calibration images does not carry over. 0 for none.",
    )
    num_evaluation: int = Field(10_000, ge=1, description="How many images the result is measured on, at the most.")
    prune: PruneConfig = PruneConfig()
    name: str = Field("", description="What to call the run, for a person.")

    @field_validator("checkpoint", "data", mode="before")
    @classmethod
    def _text_from_path(cls, value: object) -> object:
        return os.fspath(value) if isinstance(value, os.PathLike) else value

    @field_validator("class_names", mode="before")
    @classmethod
    def _class_names_from_lines(cls, value: object) -> object:
        if value is None or isinstance(value, str):  # one a line, as a person writes them
            return tuple(line.strip() for line in (value or "").splitlines() if line.strip())
        return value


_KINDS = ("nm", "unstructured", "dense", "structured", "budget")
_FIELD_SENTENCES = {
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be above {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be below {lt}",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "literal_error": "must be one of {expected}",
    "extra_forbidden": "is not a setting",
    "missing": "is missing",
}


def explain(error: ValidationError, labels: Mapping[str, str] | None = None) -> str:
    """One sentence a problem, naming the field, what it must be and what was given. `labels`: what fields are called where it
    is read, by their path."""
    sentences = []
    for problem in error.errors():
        if problem["type"] == "value_error":
            sentences.append(str(problem["ctx"]["error"]))
            continue
        if problem["type"] == "json_invalid":  # its input is the whole text
            sentences.append(f"It is not JSON: {problem['ctx']['error']}.")
            continue
        field = ".".join(str(part) for part in problem["loc"] if part not in _KINDS)
        sentence = _FIELD_SENTENCES.get(problem["type"])  # other messages may hold braces of their own
        rule = sentence.format(**problem.get("ctx", {})) if sentence else problem["msg"]
        sentences.append(f"{(labels or {}).get(field, field)} {rule}, but is {problem['input']!r}.")
    return " ".join(sentences)
