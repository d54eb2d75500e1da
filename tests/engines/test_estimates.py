"""What a model takes is known before it is loaded: the estimate beside what the engine holds, for each architecture.

The models are loaded from the files alone that would be fetched of them.
"""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from bitinglip.events.model import ModelFile
from bitinglip.models.memory import LINEAR_BYTES, Need, estimate, weight_files
from bitinglip.models.repofiles import wanted
from bitinglip.models.store import find_models
from bitinglip.settings import Worker
from bitinglip.workers.engine import Loaded, ModelSpec
from bitinglip.workers.enginehost import EngineHost
from tests.engines.support import run
from tests.support.models import MAKERS, model_folder

MOST_OFF = 0.1
QUANTISED = sorted(set(MAKERS) - {"vits", "bark"})
"""torchao cannot load the others."""


def spec_of(name: str, folder: Path) -> ModelSpec:
    (model,) = find_models([f"{name}={folder}"], folder, folder)
    parts = {part: str(path) for part, path in model.parts.items()}
    return ModelSpec(kind=model.kind, reference=name, path=str(folder), parts=parts)


def fetched(folder: Path, target: Path) -> Path:
    """Copy what would be fetched of a folder if it were a repository: nothing else is needed."""
    paths = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    for file in wanted([ModelFile(path=path, size_bytes=(folder / path).stat().st_size) for path in paths]):
        (target / file.path).parent.mkdir(parents=True, exist_ok=True)
        (target / file.path).symlink_to(folder / file.path)
    return target


@pytest.fixture
def spec(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> ModelSpec:
    name = str(request.param)
    return spec_of(name, fetched(model_folder(tmp_path_factory, name), tmp_path / name))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def half_host(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EngineHost]:
    """An engine process that loads in bfloat16."""
    scratch = tmp_path_factory.mktemp("scratch")
    host = EngineHost(Worker(threads=1, max_loaded=1, dtype="bfloat16"), "cpu", scratch=scratch)
    await host.start()
    yield host
    await host.stop()


async def check(host: EngineHost, spec: ModelSpec, need: Need) -> None:
    loaded = await host.load(spec)
    assert isinstance(loaded, Loaded), loaded
    assert need.weights == pytest.approx(loaded.memory_bytes, rel=MOST_OFF)
    assert loaded.need_bytes == need.total, "what the engine reckons with"


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("spec", sorted(MAKERS), indirect=True)
async def test_in_float32(shared_host: EngineHost, spec: ModelSpec) -> None:
    await check(shared_host, spec, estimate(Path(spec.path or ""), 4))


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("spec", sorted(MAKERS), indirect=True)
async def test_in_bfloat16(half_host: EngineHost, spec: ModelSpec) -> None:
    await check(half_host, spec, estimate(Path(spec.path or ""), 2))


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("spec", QUANTISED, indirect=True)
async def test_with_linear_layers_of_eight_bits(shared_host: EngineHost, spec: ModelSpec) -> None:
    smaller = spec.model_copy(update={"quantize": "int8", "reference": f"{spec.reference}-int8"})
    need = estimate(Path(spec.path or ""), 4, linear_bytes=LINEAR_BYTES["int8"])
    await check(shared_host, smaller, need)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", ["gpt2", "sd21"])
async def test_where_the_weights_are_a_variant_alone(
    shared_host: EngineHost, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, name: str
) -> None:
    folder = shutil.copytree(model_folder(tmp_path_factory, name), tmp_path / name)
    for file in weight_files(folder):
        file.rename(file.with_name(file.name.replace(".safetensors", ".fp16.safetensors")))
    spec = spec_of(name, folder).model_copy(update={"reference": f"{name}-variant"})
    await check(shared_host, spec, estimate(folder, 4))


@pytest.mark.asyncio(loop_scope="module")
async def test_of_published_weights(shared_host: EngineHost, minilm: ModelSpec, tmp_path: Path) -> None:
    spec = spec_of("minilm", fetched(Path(minilm.path or ""), tmp_path / "minilm"))
    await check(shared_host, spec, estimate(tmp_path / "minilm", 4))
    (said,) = await run(shared_host, spec, {"input": "a text"})
    assert said.result["dimensions"] == 384
