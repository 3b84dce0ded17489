"""What is installed, and by whose word: `requirements.lock`, and what is known against what it pins."""

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LOCK = Path(__file__).parents[2] / "requirements.lock"


@dataclass(frozen=True)
class Locked:
    """A package at one version, where its marker says so. `hashes`: sha256 of every file that may be installed."""

    requirement: Requirement
    hashes: tuple[str, ...]


def locked() -> dict[str, list[Locked]]:
    """What the lock pins, by name; of a few packages another version for each of several Pythons."""
    text = re.sub(r"^\s*#.*\n", "", LOCK.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    packages: dict[str, list[Locked]] = {}
    for line in text.splitlines():
        wanted, *hashes = line.split(" --hash=sha256:")
        requirement = Requirement(wanted)
        named = packages.setdefault(canonicalize_name(requirement.name), [])
        named.append(Locked(requirement, tuple(map(str.strip, hashes))))
    return packages


def audited() -> tuple[int, int]:
    """Of how many packages of the lock `pip-audit` was told something, and how many faults it knows of; none and none where the
    advisories cannot be asked for. Raises `RuntimeError` where it is not installed."""
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(LOCK), "--require-hashes", "--disable-pip"]
    done = subprocess.run(
        [*command, "--format", "json", "--progress-spinner", "off"], capture_output=True, text=True, check=False
    )
    if "No module named" in done.stderr:
        raise RuntimeError("pip-audit is not installed. Install it: pip install -r requirements-dev.txt")
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except ValueError:
        return 0, 0
    known = [package["vulns"] for package in packages if "vulns" in package]
    return len(known), sum(map(len, known))
