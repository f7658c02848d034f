"""The reference pages say what the code does."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs/generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "page", ["docs/configuration.md", "docs/cli.md", "docs/modules.md", "src/crossfade/crossfade.schema.json"]
)
def test_a_generated_page_is_current(generate: ModuleType, page: str) -> None:
    made = generate.outputs()[ROOT / page]
    assert (ROOT / page).read_text() == made, "run `make docs`"


def test_every_command_and_every_key_is_described(generate: ModuleType) -> None:
    made = generate.outputs()
    page = made[ROOT / "docs/cli.md"]
    for command in ("init", "doctor", "relay run", "relay status", "verify", "uninstall", "lab up"):
        assert f" crossfade {command}\n" in page
    assert "|  |\n" not in made[ROOT / "docs/configuration.md"], "a key without a meaning"
