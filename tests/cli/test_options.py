"""How `name=value` is read, and how options are shown."""

from __future__ import annotations

import json
import math
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from nsam.cli.app import application
from nsam.cli.options import MAX_VALUE_LENGTH, parse_pairs, parse_value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("64", 64),
        ("-3", -3),
        ("1e-3", 1e-3),
        (".5", 0.5),
        ("inf", math.inf),
        ("true", True),
        ("false", False),
        ("gelu", "gelu"),
        ('"64"', "64"),
        ("[1, 4,16]", (1, 4, 16)),
        ("[]", ()),
        ("[1.5, true, x]", (1.5, True, "x")),
    ],
)
def test_values(text: str, value: object) -> None:
    found = parse_value(text)
    assert found == value
    assert type(found) is type(value)


def test_pairs() -> None:
    assert parse_pairs(["dim=64", " lr = 1e-3 ", "name=a=b"], "-p") == {"dim": 64, "lr": 1e-3, "name": "a=b"}
    assert parse_pairs((), "-p") == {}


@pytest.mark.parametrize(
    "pair", ["dim", "=3", "dim=", "2x=3", "a b=1", "x=[[1]]", "x=nan", "x=" + "9" * 5000, "x=" + "a" * MAX_VALUE_LENGTH]
)
def test_what_is_not_a_pair_is_a_usage_error(pair: str) -> None:
    with pytest.raises(click.BadParameter):
        parse_pairs([pair], "-p")


def test_a_name_said_twice_is_a_usage_error() -> None:
    with pytest.raises(click.BadParameter, match="twice"):
        parse_pairs(["dim=1", "dim=2"], "-p")


@pytest.mark.parametrize("name", sorted(application().commands))
def test_help_shows_every_option_whole_on_a_narrow_terminal(name: str) -> None:
    command = application(name).commands[name]
    shown = CliRunner().invoke(application(name), [name, "--help"], env={"COLUMNS": "80"}).output
    for option in command.params:
        if isinstance(option, click.Option):
            for written in (*option.opts, *option.secondary_opts):
                assert written in shown, written


@pytest.mark.parametrize("more", [["titans"], ["--cost"], ["--format", "json"], ["-p", "dim=64"]])
def test_a_diagnostic_code_is_explained_alone(more: list[str]) -> None:
    found = CliRunner().invoke(application("explain"), ["explain", "N0214", *more])
    assert found.exit_code == 2
    assert "explained alone" in found.stderr


def test_the_cost_of_a_system_as_json() -> None:
    file = Path(__file__).parents[2] / "examples/zoo/zoo.nsam"
    asked = ["explain", str(file), "linear_attention", "-p", "dim=8", "--cost", "--tokens", "64", "--format", "json"]
    found = json.loads(CliRunner().invoke(application("explain"), asked).stdout)
    assert found["tokens"] == 64
    for total in ("flops", "parameters", "state_bytes", "activation_bytes"):
        assert found[total] == sum(memory[total] * memory["copies"] for memory in found["memories"]) > 0


def test_a_length_without_cost_is_a_usage_error() -> None:
    found = CliRunner().invoke(application("explain"), ["explain", "hope.nsam", "hope", "--tokens", "64"])
    assert found.exit_code == 2
    assert "--cost" in found.stderr
