"""Configs: JSON both ways, every constraint checked once, every refusal a sentence."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from snows.config import (
    ALLOCATORS,
    COUNTS,
    CURVATURES,
    JOINTS,
    MASKS,
    MASKS_OF_ONE_LAYER,
    NM,
    TARGETS,
    UPDATES,
    Budget,
    Dense,
    PruneConfig,
    RunConfig,
    SolverConfig,
    Unstructured,
    explain,
    parse_network_pattern,
    parse_pattern,
)

shares = st.floats(0, 1, exclude_min=True, exclude_max=True)
nm = st.integers(2, 1024).flatmap(lambda m: st.integers(1, m - 1).map(lambda n: NM(n=n, m=m)))
unstructured = shares.map(lambda s: Unstructured(sparsity=s)) | st.tuples(shares, shares).map(
    lambda pair: Unstructured(sparsity=min(pair), scope="global", layer_cap=max(pair))
)
patterns = nm | unstructured | st.just(Dense())
budgets = st.builds(
    Budget,
    share=shares,
    by=st.sampled_from(COUNTS),
    allocate=st.sampled_from(ALLOCATORS),
    patterns=st.lists(nm, max_size=3).map(lambda some: (*some, Dense()) if some else ()),
)
solvers = st.builds(
    SolverConfig,
    curvature=st.sampled_from(CURVATURES),
    newton_steps=st.integers(1, 100),
    max_iters=st.integers(1, 10_000),
    rtol=shares,
    damping=st.floats(0, 1e6),
    preconditioner=st.sampled_from(["row_blocks", "none"]),
    curvature_share=st.floats(0, 1, exclude_min=True),
    min_decrease=st.floats(0, 1, exclude_max=True),
    start=st.sampled_from(["least_squares", "masked"]),
)
settings = {
    "overrides": st.dictionaries(st.text(max_size=12), patterns, max_size=3),
    "update": st.sampled_from(UPDATES),
    "k_steps": st.integers(0, 10_000),
    "joint": st.sampled_from(JOINTS),
    "targets": st.sampled_from(TARGETS),
    "batch_size": st.integers(1, 4096),
    "seed": st.integers(0, 2**63 - 1),
    "device": st.sampled_from(["auto", "cpu", "cuda", "cuda:3"]),
    "precision": st.sampled_from(["float32", "float64"]),
    "prune_classifier": st.booleans(),
    "repair": st.booleans(),
    "batch_norm_reestimate": st.booleans(),
    "solver": solvers,
}
of_all_layers = [mask for mask in MASKS if mask not in MASKS_OF_ONE_LAYER]
# Any mask that suits a global pattern, which may also be a layer's own; a budget has none from a file.
prunes = st.one_of(
    st.builds(PruneConfig, pattern=pattern, mask=st.sampled_from(masks), **settings)
    for pattern, masks in ((patterns, [*of_all_layers, "some/mask.safetensors"]), (budgets, of_all_layers))
)
runs = st.builds(
    RunConfig,
    model=st.text(max_size=20),
    checkpoint=st.none() | st.text(max_size=20),
    data=st.text(max_size=20),
    num_calibration=st.integers(1, 10**9),
    num_evaluation=st.integers(1, 10**9),
    prune=prunes,
    name=st.text(max_size=20),
)


@pytest.mark.slow
@given(runs)
def test_json_round_trip(config: RunConfig) -> None:
    text = config.model_dump_json()
    assert RunConfig.model_validate_json(text) == config
    assert RunConfig.model_validate(json.loads(text)) == config


@given(patterns)
def test_pattern_text_round_trip_as_far_as_it_is_shown(pattern: NM | Unstructured | Dense) -> None:
    text = str(pattern)
    if isinstance(pattern, Unstructured):
        if "e" in text:  # 1e-05% is for a program, not for a person
            return
        try:
            parsed = parse_pattern(text)
        except ValueError:
            assert text.startswith(("0%", "100%")) or pattern.sparsity > 0.95  # rounded to the edge, or above the default cap
            return
        assert isinstance(parsed, Unstructured)
        assert parsed.scope == pattern.scope
        assert parsed.sparsity == pytest.approx(pattern.sparsity, rel=1e-5)
    else:
        assert parse_pattern(text) == pattern


@given(budgets)
def test_budget_text_round_trip_as_far_as_it_is_shown(budget: Budget) -> None:
    text = str(budget)
    if "e-" in text or text.startswith(("budget 0%", "budget 100%")):  # for a program, or rounded to the edge
        return
    parsed = parse_network_pattern(text)
    assert isinstance(parsed, Budget)
    assert parsed.share == pytest.approx(budget.share, rel=1e-5)
    assert parsed == budget.model_copy(update={"share": parsed.share})


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("budget 6.25%", Budget(share=0.0625)),
        (
            " Budget 5 % of bytes, OWL, from 1:8 2:4 dense ",
            Budget.model_validate({"share": 0.05, "by": "bytes", "allocate": "owl", "patterns": "1:8, 2:4, dense"}),
        ),
        ("budget 10% of operations, from any", Budget(share=0.1, by="operations", patterns=())),
    ],
)
def test_budgets_a_person_writes(text: str, budget: Budget) -> None:
    assert PruneConfig(pattern=text).pattern == budget  # type: ignore[arg-type]
    assert parse_network_pattern(str(budget)) == budget
    assert parse_network_pattern("2:4") == NM(n=2, m=4)


@given(patterns)
def test_density_is_the_share_kept(pattern: NM | Unstructured | Dense) -> None:
    assert 0 <= pattern.density <= 1
    if isinstance(pattern, NM):
        assert pattern.density * pattern.m == pytest.approx(pattern.n)


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("2:4", NM(n=2, m=4)),
        (" 8 : 16 ", NM(n=8, m=16)),
        ("70%", Unstructured(sparsity=0.7)),
        ("99.5%", Unstructured(sparsity=0.995)),
        ("70% global", Unstructured(sparsity=0.7, scope="global")),
        ("DENSE", Dense()),
    ],
)
def test_patterns_a_person_writes(text: str, pattern: NM | Unstructured | Dense) -> None:
    assert parse_pattern(text) == pattern
    assert PruneConfig(pattern=text, overrides={"fc.weight": text}) == PruneConfig(
        pattern=pattern, overrides={"fc.weight": pattern}
    )


@given(st.text(max_size=12))
def test_any_text_is_a_pattern_or_a_sentence(text: str) -> None:
    try:
        pattern = parse_pattern(text)
    except ValidationError as error:
        pytest.fail(f"{text!r} gives a table of checks instead of a sentence: {error}")
    except ValueError:
        with pytest.raises(ValueError, match=r"^(Unknown pattern|Pattern) "):
            parse_pattern(text)
    else:
        assert 0 <= pattern.density <= 1


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("4:4", "4:4 would keep every weight"),
        ("5:4", "5:4 would keep every weight"),
        ("0:4", "n must be at least 1, but is 0"),
        ("1:2000", "m must be at most 1024, but is 2000"),
        ("0%", "sparsity must be above 0"),
        ("100%", "sparsity must be below 1"),
        ("97% global", "cap (95%) is below the sparsity asked for (97%)"),
        ("2/4", "Write N:M to keep N of every M weights"),
        ("", "Unknown pattern"),
    ],
)
def test_patterns_that_cannot_be(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=r"[Pp]attern") as caught:
        parse_pattern(text)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"k_steps": -1}, "k_steps must be at least 0, but is -1."),
        ({"k_steps": 1.5}, "k_steps must be a whole number, but is 1.5."),
        ({"k_steps": "many"}, "k_steps must be a whole number, but is 'many'."),
        ({"mask": "best"}, "Unknown mask method 'best'. Choose one of magnitude, wanda, sparsegpt, ria, alps"),
        (
            {"mask": "alps", "pattern": "70% global"},
            "Mask alps is searched for layer by layer, so 70% global cannot rank all layers' weights by it. Use 70%, which",
        ),
        ({"mask": "dsnot", "overrides": {"fc.weight": "50% global"}}, "so 50% global cannot rank"),
        ({"update": "best"}, "update must be one of 'none', 'least-squares', 'sparsegpt' or 'snows', but is 'best'."),
        ({"device": "tpu"}, "Unknown device 'tpu'. Choose auto, cpu, cuda or cuda:N."),
        ({"pattern": "2:2"}, "2:2 would keep every weight"),
        ({"pattern": "budget"}, "'budget' cannot be used: A budget is a percentage to keep, above 0% and below 100%"),
        ({"pattern": "budget 100%"}, "above 0% and below 100%, such as 6.25%, but is '100%'"),
        ({"pattern": "budget 5% of hats"}, "by must be one of 'weights', 'operations' or 'bytes', but is 'hats'."),
        ({"pattern": "budget 5%, wishes"}, "allocate must be one of 'loss', 'uniform', 'owl', 'alphapruning' or"),
        ({"pattern": "budget 5%, from dense"}, "needs a pattern to choose that removes weights, such as 1:8."),
        ({"pattern": "budget 5%, from 1:8 3"}, "Unknown pattern '3'."),
        ({"pattern": {"kind": "budget", "share": 2}}, "pattern.share must be below 1.0, but is 2."),
        (
            {
                "pattern": {
                    "kind": "budget",
                    "share": 0.1,
                    "patterns": [{"kind": "unstructured", "sparsity": 0.5, "scope": "global"}],
                }
            },
            "a global one is none of a layer",
        ),
        ({"pattern": "budget 5%", "mask": "a/b.safetensors"}, "The masks of b.safetensors say which weights stay"),
        ({"overrides": {"fc.weight": "budget 5%"}}, "Unknown pattern 'budget 5%'"),
        ({"pattern": {"kind": "nm", "n": 0, "m": 4}}, "pattern.n must be at least 1, but is 0."),
        ({"overrides": {"fc.weight": "3"}}, "Unknown pattern '3'"),
        ({"solver": {"rtol": 2}}, "solver.rtol must be below 1.0, but is 2."),
        ({"solver": {"damping": float("inf")}}, "solver.damping must be a finite number, but is inf."),
        ({"steps": 3}, "steps is not a setting, but is 3."),
        ({"batch_size": 0, "seed": -1}, "batch_size must be at least 1, but is 0. seed must be at least 0, but is -1."),
    ],
)
def test_refusals_are_sentences(values: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValidationError) as caught:
        PruneConfig.model_validate(values)
    assert sentence in explain(caught.value)


@pytest.mark.parametrize("text", ["{", "", "[]", "nul", '{"prune": {"k_steps": }}'])
def test_malformed_json_is_explained(text: str) -> None:
    with pytest.raises(ValidationError) as caught:
        RunConfig.model_validate_json(text)
    assert explain(caught.value)


def test_configs_are_frozen() -> None:
    with pytest.raises(ValidationError):
        PruneConfig().k_steps = 4  # type: ignore[misc]


def test_every_solver_setting_has_its_sentence() -> None:
    for name, field in SolverConfig.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name


def test_a_run_may_have_a_mask_of_its_own() -> None:
    config = PruneConfig(mask="some/mask.safetensors")
    assert PruneConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(("text", "what"), [("width 50%", "width"), ("Channels 30%", "channels"), ("heads  12.5%", "heads")])
def test_a_structured_pattern_says_what_share_of_which_units_goes(text: str, what: str) -> None:
    pattern = PruneConfig(pattern=text).pattern
    assert pattern.kind == "structured"
    assert pattern.what == what
    assert PruneConfig(pattern=str(pattern)).pattern == pattern
    assert PruneConfig.model_validate_json(PruneConfig(pattern=text).model_dump_json()).pattern == pattern
    with pytest.raises(ValueError, match="layers share"):
        Budget(share=0.5, patterns=(pattern,))


@pytest.mark.parametrize(
    ("pattern", "overrides", "refinement"),
    [
        ("width 50%", {}, "none"),
        ("width 50%", {"fc": "dense"}, "none"),
        ("width 50%", {"fc": "2:4"}, "window"),
        ("2:4", {"fc": "width 50%"}, "window"),
        ("dense", {}, "window"),
    ],
)
def test_whole_units_are_not_refined_and_other_layers_beside_them_are(
    pattern: str, overrides: dict[str, str], refinement: str
) -> None:
    assert PruneConfig.model_validate({"pattern": pattern, "overrides": overrides}).refinement == refinement
