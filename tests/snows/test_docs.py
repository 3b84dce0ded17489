"""The reference: what is promised of every public name stands in its docstring, and its example does what it shows."""

import doctest
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import snows

ROOT = Path(__file__).parents[2]
# Whose examples export a network, or need the bundled images.
SLOW = {"NetworkGraph", "PruneResult", "attention_maps", "load_data", "prune", "shrink"}
PUBLIC = [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in snows.__all__]


@pytest.mark.parametrize("name", PUBLIC)
def test_the_example_does_what_it_shows(name: str) -> None:
    text = inspect.getdoc(getattr(snows, name)) or ""
    example = doctest.DocTestParser().get_doctest(text, {"snows": snows, "torch": torch}, name, None, None)
    assert example.examples, f"{name} has no example"
    torch.manual_seed(0)
    said: list[str] = []
    assert doctest.DocTestRunner(optionflags=doctest.FAIL_FAST).run(example, out=said.append).failed == 0, "".join(said)


@pytest.mark.parametrize("name", snows.__all__)
def test_it_says_what_it_raises(name: str) -> None:
    public = getattr(snows, name)
    text = inspect.getdoc(public) or ""
    if name not in ("InputError", "PruneResult", "Dense"):  # which cannot be got wrong
        assert "aises `" in text
    if inspect.isfunction(public):
        for argument in inspect.signature(public).parameters:
            assert re.search(rf"`{argument}\b", text), argument


@pytest.mark.parametrize(
    "name", ["NM", "NetworkGraph", "PruneResult", "attention_maps", "load_data", "load_model", "prune", "shrink"]
)
def test_what_takes_or_gives_tensors_says_their_shape(name: str) -> None:
    text = inspect.getdoc(getattr(snows, name)) or ""
    assert any(shape in text for shape in ("(N, C, ", "(B, ", "(C, H, W)", "(out, in)", "parameter's shape"))


@pytest.mark.slow
def test_the_reference_is_built_with_every_public_name(tmp_path: Path) -> None:
    pytest.importorskip("pdoc", reason="needs pdoc, which builds the reference: pip install -r requirements-dev.txt")
    (code,) = re.findall(r'python -c "(.*pdoc.*)"', (ROOT / "Makefile").read_text())
    done = subprocess.run(
        [sys.executable, "-c", code.replace("'docs'", repr(str(tmp_path)))],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Warn" not in done.stderr
    page = (tmp_path / "snows.html").read_text()
    assert [name for name in snows.__all__ if f'id="{name}"' not in page] == []
    assert "How many Newton steps a layer gets at the most." in page  # the sentence of a field
