"""Tests of the command's help, and of its answers to names that are mistyped."""

import dataclasses
import inspect
import re
import shlex
from itertools import starmap
from typing import Literal, get_args, get_origin

import jax
import pytest

import jaxrnn
from jaxrnn.cli.check import CheckOptions
from jaxrnn.cli.distributed import Machines
from jaxrnn.cli.main import COMMANDS, run
from jaxrnn.cli.parser import parse
from jaxrnn.cli.setting import Setting
from jaxrnn.cli.signature import read_command
from jaxrnn.cli.task import TaskOptions
from jaxrnn.gradients import RULES
from jaxrnn.lm.options import Changes, Options

commands = {command.name: command for command in starmap(read_command, COMMANDS.items())}
each_command = pytest.mark.parametrize("command", commands.values(), ids=commands)


@pytest.mark.parametrize("width", [80, 60])
@pytest.mark.parametrize("words", [[], *([name, "--help"] for name in COMMANDS)], ids=" ".join)
def test_the_help_fits_the_terminal_and_ends_with_examples(words, width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    assert run(words) == 0
    output = capsys.readouterr().out
    lines = output.splitlines()
    assert max(map(len, lines)) <= width
    assert lines[0].startswith("usage: jaxrnn ")
    assert len(re.findall(r"^  jaxrnn ", output.split("\nExamples:\n")[1], re.MULTILINE)) in (2, 3)


def test_the_help_of_all_commands_is_a_screen_with_a_line_for_each(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    run(["--help"])
    output = capsys.readouterr().out
    assert len(output.splitlines()) <= 24
    for command in commands.values():
        assert re.search(rf"^  {command.name} +{re.escape(command.description[0])}$", output, re.M)
    for example in output.split("\nExamples:\n")[1].splitlines()[:3]:
        _, name, *words = shlex.split(example)
        assert parse(commands[name], words)


def test_the_versions_are_printed(capsys):
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith(f"jaxrnn {jaxrnn.__version__}, JAX {jax.__version__}")


@each_command
def test_the_examples_of_a_command_are_command_lines_of_it(command):
    for example in command.examples:
        program, name, *words = shlex.split(example)
        assert (program, name) == ("jaxrnn", command.name)
        assert parse(command, words)


@each_command
def test_the_help_describes_each_argument_with_its_values_and_its_default_once(command):
    for argument in command.arguments:
        text, default = argument.text, argument.default
        assert re.fullmatch(r"\S.*\.", text), f"{argument.name} is not described: {text!r}"
        told = re.findall(r"\(default: (.+?)\)", text)
        if argument.is_required or default is False:
            assert not told, argument.name
        elif default in (None, ()):
            assert len(told) <= 1, argument.name
        else:
            shown = " ".join(map(str, default)) if argument.many else str(default)
            assert told == ["yes" if default is True else shown], argument.name
        assert not re.search(r"\bdefault\b(?!:)", text.replace('"default"', "").replace(
            "(default: default)", "")), text  # fmt: skip
        if get_origin(argument.kind) is Literal:
            assert set(get_args(argument.kind)) <= set(re.findall(r"[\w-]+", text)), text


@pytest.mark.parametrize(
    "options", [Options, Changes, Machines, CheckOptions, Setting, TaskOptions]
)
def test_every_field_of_a_class_of_options_is_in_a_group_of_its_docstring(options):
    groups = re.split(r"^\S.*:\n(?= )", inspect.getdoc(options) or "", flags=re.MULTILINE)[1:]
    assert groups
    entries = [name for group in groups for name in re.findall(r"^    (\w+): ", group, re.M)]
    assert sorted(entries) == sorted(field.name for field in dataclasses.fields(options))


def typos(name: str) -> list[str]:
    """Return the name with each of its letters left out in turn."""
    return [name[:i] + name[i + 1 :] for i, letter in enumerate(name) if letter.isalpha()]


def test_a_mistyped_command_is_answered_by_its_right_name():
    for name in COMMANDS:
        for typo in set(typos(name)) - set(COMMANDS):
            with pytest.raises(ValueError, match=rf"no command {typo} \(did you mean {name}\?\)"):
                run([typo])


@each_command
def test_a_mistyped_option_is_answered_by_its_right_name(command):
    for option in command.options:
        typo = "--" + typos(option[2:])[len(option) // 3]
        if typo not in command.options:
            with pytest.raises(ValueError, match=rf"no option {typo} .*mean.* {option}\b"):
                run([command.name, typo, "3"])


def test_a_mistyped_rule_is_answered_by_its_right_name():
    for name in RULES:
        for typo in set(typos(name)) - set(RULES):
            with pytest.raises(ValueError, match=rf"got '{typo}' \(did you mean {name}\?\)"):
                run(["check", "--algorithm", typo])


READ = {
    "resume run --steps 9 --no-quiet": {"changes": Changes(steps=9), "quiet": False},
    "train --learning-rates 1 -1e-3 --use-bias": {
        "options": Options(learning_rates=(1.0, -0.001), use_bias=True)
    },
    "train --seed=3 --no-use-bias --devices 2 --lines": {
        "options": Options(seed=3, use_bias=False, lines=True),
        "machines": Machines(devices=2),
    },
    "sample run --prompt= --top-p .5 --stop -": {"prompt": "", "top_p": 0.5, "stop": "-"},
}


@pytest.mark.parametrize("line", READ)
def test_a_command_line_is_read_into_the_arguments_of_the_function(line):
    name, *words = line.split()
    assert parse(commands[name], words).keywords == READ[line]


def test_words_may_stand_between_options_and_after_two_dashes():
    (paths,) = parse(commands["plot"], ["a", "--out", "x", "b", "--", "-c"]).args
    assert list(map(str, paths)) == ["a", "b", "-c"]
    run_and_file = parse(commands["eval"], ["run", "--newest", "--encoding=latin-1", "-"]).args
    assert list(map(str, run_and_file)) == ["run", "-"]
    assert parse(commands["train"], []).args == (None,)
