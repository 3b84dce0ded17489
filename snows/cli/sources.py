"""coverage, models, images, presets, fetch, train, bundle-*: what there is to prune, and with which images."""

import argparse
import sys
from typing import Any

from snows.cli.flags import config_of
from snows.cli.out import FINISHED, heads, json_line, say, table, timed
from snows.config import InputError, RunConfig
from snows.plans.presets import PRESETS

# --- coverage, models, images, presets, fetch, train, bundle-data ---


def coverage_command(given: argparse.Namespace) -> int:
    config = config_of(given)
    from snows.runs import estimate

    plan = estimate.plan(config)
    rows = [("WEIGHT", "KIND", "SHAPE", *heads(["density"]), "WINDOW")]
    for site in plan.sites:
        shape = "x".join(map(str, site.shape))
        rows.append((site.name, site.kind, shape, say("density", site.density), ", ".join(site.operations)))
    sys.stdout.write(table(rows))
    if plan.skipped:
        sys.stdout.write("\nLeft dense:\n" + table(list(plan.skipped.items())))
    if plan.warning:
        sys.stdout.write(f"\n{plan.warning}\n")
    if given.latency:
        from snows.runs import latency

        sys.stdout.write("\nTo be expected here, timed on units that go by chance:\n" + timed(latency.expected(config)))
    return FINISHED


def models_command(given: argparse.Namespace) -> int:
    from snows.sources import models

    rows: list[tuple[str, ...]] = [("MODEL", "PARAMETERS", "INPUT", "OUTPUTS", "WEIGHTS")]
    for name in models.search(" ".join(given.text), given.limit):
        outline = models.outline(name)
        parameters = sum(p.numel() for p in outline.module.parameters())
        weights = models.published_weights(name, parameters)
        there = "none published" if weights is None else f"{weights.num_bytes / 1e6:,.0f} MB"
        size, outputs = "x".join(map(str, outline.input_size)), f"{len(outline.class_names):,}"
        here = ", here" if weights is not None and weights.here else ""
        rows.append((name, f"{parameters:,}", size, outputs, there + here))
    if len(rows) == 1:
        raise InputError(f"No model has {' and '.join(given.text)} in its name. Try a shorter part of it.")
    sys.stdout.write(table(rows))
    return FINISHED


def images_command(given: argparse.Namespace) -> int:
    config = config_of(given)
    from snows.sources import data, models

    model = models.outline(config.model, config.checkpoint, class_names=config.class_names)
    preview = data.preview(config.data, model, config.num_calibration, config.num_evaluation, config.prune.seed, count=24)
    measured = (
        "accuracy and agreement" if preview.labelled else "agreement with the dense network; there are no labels it knows"
    )
    lines = [
        preview.division,
        f"Measured: {measured}",
        f"Preparation: {model.preprocessing}",
    ]
    if preview.classes:
        lines.append(f"Classes: {', '.join(preview.classes[:10])}{', …' if len(preview.classes) > 10 else ''}")
    sys.stdout.write("\n".join([*lines, *preview.notes]) + "\n")
    if given.output:
        data.write_sheet(preview.images, given.output)
        sys.stdout.write(f"{given.output}\n")
    return FINISHED


def presets_command(given: argparse.Namespace) -> int:
    from snows.plans import presets

    for name, preset in PRESETS.items():
        sys.stdout.write(f"{name}: {preset.title}\n  {preset.needs}\n")
        for item in presets.wanted(preset.config):
            here = ", here already" if item.here else ""
            sys.stdout.write(f"  Download: {item.what}, {item.num_bytes / 1e6:,.0f} MB{here}\n")
    sys.stdout.write("Run one with `python -m snows prune --preset NAME`; any other flag changes it.\n")
    return FINISHED


def fetch_command(given: argparse.Namespace) -> int:
    from tqdm import tqdm

    from snows.sources import models, named_sets

    for name in given.names:
        with tqdm(unit="B", unit_scale=True, desc=name, file=sys.stderr, dynamic_ncols=True) as bar:

            def report(what: str, done: int, total: int | None, bar: Any = bar) -> None:
                bar.total = total
                bar.update(done - bar.n)

            if name in named_sets.SETS:
                named_sets.fetch(name, report)
            else:
                models.fetch(name, report)
        sys.stdout.write(f"{name} is here.\n")
    return FINISHED


def train_command(given: argparse.Namespace) -> int:
    from snows.sources import training

    def report(line: str) -> None:
        sys.stderr.write(line + "\n")

    card = training.train(
        given.model,
        given.output,
        seed=given.seed,
        epochs=given.epochs,
        limit=given.limit,
        root=given.root,
        report=report,
    )
    sys.stdout.write(json_line(card) + "\n")
    return FINISHED


def bundle_data_command(given: argparse.Namespace) -> int:
    from snows.sources import data

    sys.stdout.write(f"{data.write_bundle(given.output or data.BUNDLE, given.root)}\n")
    return FINISHED


def bundle_levels_command(given: argparse.Namespace) -> int:
    from snows.plans import levels

    def report(line: str) -> None:
        sys.stderr.write(line + "\n")

    for model in given.models:
        config = RunConfig(model=model, num_evaluation=given.num_evaluation, num_calibration=given.num_calibration)
        sys.stdout.write(f"{levels.record(config, given.patterns, given.output or levels.FOLDER, report)}\n")
    return FINISHED


def bundle_budgets_command(given: argparse.Namespace) -> int:
    from snows.plans import budgets

    for model in given.models:
        sys.stdout.write(f"{budgets.record(RunConfig(model=model), given.output or budgets.FOLDER)}\n")
    return FINISHED
