"""Nothing undocumented, nothing stale, and what the deploy files name exists."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from bitinglip.settings import CONFIG_FILE_VARIABLE, environment_name, setting_names

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
VARIABLE = re.compile(r"BITINGLIP_[A-Z_]+[A-Z]")
LINK = re.compile(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)")
COMMAND = re.compile(r"^(?:\.venv/bin/)?bitinglip ((?:task |events |config )?[a-z]+)", re.MULTILINE)
TARGET = re.compile(r"^make ([a-z-]+)$", re.MULTILINE)


def test_the_generated_pages_are_not_stale() -> None:
    subprocess.run([sys.executable, "-m", "scripts.reference", "--check"], cwd=ROOT, check=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text("utf-8")):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("name", ["compose.yaml", "Dockerfile", "nats.conf", "Makefile", *map(str, PAGES)])
def test_every_variable_that_is_named_is_a_setting(name: str) -> None:
    known = {environment_name(setting) for setting in setting_names()} | {CONFIG_FILE_VARIABLE}
    named = set(VARIABLE.findall((ROOT / name).read_text("utf-8"))) - {"BITINGLIP_NATS__URL"}
    assert named <= known


def test_commands_in_the_docs_exist() -> None:
    for page in PAGES:
        for command in set(COMMAND.findall(page.read_text("utf-8"))):
            answer = subprocess.run(
                [sys.executable, "-m", "bitinglip.cli.main", *command.split(), "--help"],
                capture_output=True,
                check=False,
            )
            assert answer.returncode == 0, f"{page.name}: bitinglip {command}"


def test_make_targets_in_the_docs_exist() -> None:
    declared = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    named = {target for page in PAGES for target in TARGET.findall(page.read_text("utf-8"))}
    assert {"demo", "test"} <= named <= declared


def test_compose_is_whole() -> None:
    compose: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))
    services = compose["services"]
    assert set(services) == {"nats", "gateway", "worker-0"}
    stages = re.findall(r"^FROM \S+ AS (\S+)", (ROOT / "Dockerfile").read_text("utf-8"), re.MULTILINE)
    for name in ("gateway", "worker-0"):
        assert services[name]["build"]["target"] in stages
        assert services[name]["environment"]["BITINGLIP_NATS_URL"] == "nats://nats:4222"
        assert services[name]["depends_on"]["nats"]["condition"] == "service_healthy"
    used = {volume.partition(":")[0] for service in services.values() for volume in service.get("volumes", [])}
    assert {name for name in used if not name.startswith(".")} == set(compose["volumes"])
