"""The settings: precedence, origins, and names that do not exist."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitinglip.errors import InvalidConfig
from bitinglip.settings import environment_name, iter_fields, load, setting_names, value_of


def test_the_defaults_work() -> None:
    settings, origins = load({}, {})
    assert settings.gateway.host == "127.0.0.1"
    assert set(origins) == set(setting_names())
    assert set(origins.values()) == {"default"}


def test_every_setting_has_a_meaning_and_a_variable_of_its_own() -> None:
    assert all(field.description and field.description.endswith(".") for _, field in iter_fields())
    variables = [environment_name(name) for name in setting_names()]
    assert len(set(variables)) == len(variables)


def test_a_flag_beats_the_environment_which_beats_the_file(tmp_path: Path) -> None:
    file = tmp_path / "b.toml"
    file.write_text('data_dir = "/x"\n[gateway]\nport = 1\nhost = "a"\n[worker]\nlease_s = 7\n')
    environ = {"BITINGLIP_CONFIG": str(file), "BITINGLIP_GATEWAY_PORT": "2", "BITINGLIP_GATEWAY_HOST": "b"}
    settings, origins = load({"gateway.port": 3, "nats.url": None}, environ)
    assert (settings.gateway.port, settings.gateway.host, settings.worker.lease_s) == (3, "b", 7)
    chosen = ("gateway.port", "gateway.host", "worker.lease_s", "nats.url")
    assert [origins[name] for name in chosen] == ["flag", "environment", "file", "default"]
    assert value_of(settings, "data_dir") == Path("/x")


@pytest.mark.parametrize("variable", ["BITINGLIP_NATS_URL", "BITINGLIP_NATS__URL"])
def test_one_underscore_or_two(variable: str) -> None:
    assert load({}, {variable: "nats://x"})[0].nats.url == "nats://x"


def test_a_list_of_models_is_split_at_commas() -> None:
    assert load({}, {"BITINGLIP_WORKER_MODELS": "echo,a/b=/c"})[0].worker.models == ("echo", "a/b=/c")


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({"BITINGLIP_GATEWAY_PROT": "1"}, "BITINGLIP_GATEWAY_PROT"),
        ({"BITINGLIP_GATEWAY_PORT": "many"}, "gateway.port"),
        ({"BITINGLIP_GATEWAY_PORT": "70000"}, "gateway.port"),
        ({"BITINGLIP_GATEWAY_API_KEY": "short"}, "gateway.api_key"),
        ({"BITINGLIP_CONFIG": "/no/such/file.toml"}, "/no/such/file.toml"),
    ],
)
def test_what_is_wrong_is_said_by_name(environ: dict[str, str], told: str) -> None:
    with pytest.raises(InvalidConfig, match=told):
        load({}, environ)


@pytest.mark.parametrize("text", ["[gateway]\nprot = 1\n", "nonsense = 1\n", "not toml"])
def test_a_file_with_errors_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "b.toml"
    file.write_text(text)
    with pytest.raises(InvalidConfig):
        load({}, {"BITINGLIP_CONFIG": str(file)})


def test_the_key_is_not_shown() -> None:
    assert "0123456789abcdef" not in repr(load({}, {"BITINGLIP_GATEWAY_API_KEY": "0123456789abcdef"})[0])


@given(st.dictionaries(st.sampled_from(setting_names()), st.none()))
def test_a_flag_that_was_not_given_changes_nothing(flags: dict[str, None]) -> None:
    assert load(flags, {}) == load({}, {})
