"""Options: where they come from, which wins, and the forms that are taken."""

import re
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

import iresflow
from iresflow.cli import main
from iresflow.commands.reading.configuration import configure
from iresflow.training import presets
from iresflow.training.config import Config
from iresflow.training.sections import option_kinds, section_of

CONFIGS = sorted((Path(iresflow.__file__).parents[1] / "configs").glob("*.yaml"))


def config_of(*arguments):
    return configure(arguments).config


def leaves(section, prefix=""):
    for name, value in section.items():
        if isinstance(value, dict) and name != "offset":
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def refused(arguments, capsys):
    """The one line of options that are refused."""
    with pytest.raises(SystemExit) as ended:
        configure(arguments)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_presets_state_only_what_differs_and_its_source(file):
    config = config_of("--config", file.stem)
    assert config == config_of("--config", str(file)) and config.name == file.stem
    defaults, lines = dict(leaves(asdict(Config()))), file.read_text().splitlines()
    stated = dict(leaves(yaml.safe_load(file.read_text())))
    same = {n for n, value in leaves(asdict(config)) if n in stated and value == defaults[n]}
    assert same <= {"data.name"}  # the data set is always named
    options = [line for line in lines if re.match(r"  \w", line)]
    uncommented = [line for line in options if "#" not in line]
    assert {line.split(":")[0].strip() for line in uncommented} <= {"name"}


def test_a_name_that_stands_twice_in_a_file_is_refused(tmp_path, capsys):
    file = tmp_path / "twice.yaml"
    file.write_text("training:\n  steps: 5\n  batch_size: 8\n  steps: 6\n")
    line = refused(["--config", str(file)], capsys)
    assert f"{file} is damaged" in line and "'steps' stands there twice" in line
    assert "line 4" in line
    file.write_text("training: {steps: 5}\nmodel: {blocks: [0, 1]}\n")
    assert config_of("--config", str(file)).training.steps == 5


def test_presets_are_found_in_the_package_and_in_the_checkout():
    assert presets.names() == sorted(file.stem for file in CONFIGS)
    for name in ("mnist-small", "fashion-mnist", "cifar10-subset"):
        assert name in presets.names()


@pytest.mark.parametrize(
    ("data", "preset"),
    [
        ("mnist", "mnist-small"),
        ("fashion-mnist", "fashion-mnist"),
        ("cifar10", "cifar10-small"),
        ("cifar100", "cifar10-small"),
        ("folder", "folder"),
        ("table", "table"),
        ("checkerboard", "toy2d"),
        ("digits", "digits"),
    ],
)
def test_a_data_set_takes_its_preset(data, preset):
    asked = configure(["--data.name", data, "--seed", "7"])
    expected = config_of("--config", preset, "--data.name", data, "--seed", "7")
    assert asked.config.name is None
    expected.name = None
    assert asked.config == expected
    assert asked.origin.startswith(f"preset {preset}")
    asked = configure(["--config", "digits", "--data.name", data])
    assert asked.config.model == config_of("--config", "digits").model


def test_without_arguments_digits_take_their_preset(tmp_path):
    digits = config_of("--config", "digits")
    digits.name = None
    assert config_of() == config_of("--data.name", "digits") == digits
    assert config_of("--model.hidden", "7").model.kernels == digits.model.kernels
    file = tmp_path / "mine.yaml"
    file.write_text("data:\n  name: digits\n")
    assert config_of("--config", str(file)).model == Config().model  # one's own file is whole


def test_unknown_presets_list_those_there_are(capsys, tmp_path):
    message = refused(["--config", "mnits"], capsys)
    assert "mnits is no file, and no preset" in message
    assert all(name in message for name in presets.names())
    assert "presets are" in refused(["--config", str(tmp_path)], capsys)


def test_the_command_line_overrides_files_wherever_they_stand(tmp_path):
    (tmp_path / "a.yaml").write_text("model:\n  hidden: 3\n  coeff: 0.5\ntraining:\n")
    (tmp_path / "b.yaml").write_text("model:\n  coeff: 0.6\n")
    files = [f"--config={tmp_path / 'a.yaml'}", "--config", str(tmp_path / "b.yaml")]
    for arguments in (
        ["--model.hidden", "7", *files],
        [files[0], "--model.hidden=7", *files[1:]],
        [*files, "--model.hidden", "7"],
        [*files, "--model", "{hidden: 7}"],
    ):
        config = config_of(*arguments)
        assert (config.model.hidden, config.model.coeff, config.name) == (7, 0.6, "b")
    assert config_of(*files[::-1][:1:-1], files[0]).model.hidden == 3


FORMS = [
    ("model.blocks", ["4,4", "[4, 4]", "4, 4", "[4.0, 4]"], (4, 4)),
    ("model.blocks", ["4", "[4]", "4,"], (4,)),
    ("model.hidden", ["64", "6.4e1", "64.0"], 64),
    ("model.hidden", ["[64]", "64,"], (64,)),
    ("model.hidden", ["64,32"], (64, 32)),
    ("training.steps", ["1e4", "10000", "1.0e4", "10_000"], 10_000),
    ("training.steps", ["null"], None),
    ("training.drops", ["0.5", "[5e-1]"], (0.5,)),
    ("training.validate_every", ["1e2", "100"], 100),
    ("training.validate_every", ["1e-1", "0.1"], 0.1),
    ("training.learning_rate", ["1e-3", "0.001"], 0.001),
    ("data.context", ["a,b", "[a, b]", "a, b"], ("a", "b")),
    ("data.context", ["2020", "[2020]"], ("2020",)),
    ("data.offset", ["{time: 1.7e9}", "{time: 1700000000}"], {"time": 1.7e9}),
    ("data.flip", ["true", "yes", "on"], True),
    ("name", ["2024"], "2024"),
]


@pytest.mark.parametrize(("name", "forms", "expected"), FORMS)
def test_forms_that_mean_one_thing_are_taken(name, forms, expected, tmp_path):
    minutes = ["--training.minutes", "1"]
    section, _, option = name.rpartition(".")
    file = tmp_path / "c.yaml"
    for form in forms:
        file.write_text(f"{section}:\n  {option}: {form}\n" if section else f"{name}: {form}\n")
        for words in ([f"--{name}", form], ["--config", str(file)]):
            value = dict(leaves(asdict(config_of(*words, *minutes))))[name]
            assert value == expected and type(value) is type(expected), form


def test_words_of_the_command_line_stay_text_where_text_is_meant():
    assert config_of("--name", "007", "--device", "null").name == "007"
    assert config_of("--name", "null").name is None


def test_what_was_resolved_is_read_as_itself():
    for file in CONFIGS:
        config = config_of("--config", file.stem)
        text = yaml.safe_dump(config.to_dict())
        assert section_of(Config, yaml.safe_load(text)) == config


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--model.hiden", "64"], "'model.hiden': the nearest is --model.hidden"),
        (["--hidden", "64"], "the nearest is --model.hidden"),
        (["--trainig.steps=3"], "the nearest is --training.steps"),
        (["--model.hidden", "many"], "model.hidden must be a whole number or a list"),
        (["--model.activation", "relu"], "model.activation must be one of clipswish, elu"),
        (["--model.coeff", "1.0"], "model.coeff must lie strictly between 0 and 1"),
        (["--training.steps", "0"], "training.steps must be above 0"),
        (["--training.steps", "2.5"], "training.steps must be a whole number or null, got 2.5"),
        (["--training.learning_rate", "nan"], "training.learning_rate must be a finite number"),
        (["--model.blocks", "4", "4"], "'4' belongs to no option; write lists as 4,4"),
        (["--model.hidden"], "--model.hidden needs a value"),
        (["--model", "3"], "model holds options of its own, got 3"),
        (["--config", "nowhere.yaml"], "nowhere.yaml is no file"),
        (["--data.flip", "maybe"], "data.flip must be true or false, got 'maybe'"),
    ],
)
def test_options_that_are_wrong_are_named(arguments, expected, capsys):
    assert expected in refused(arguments, capsys)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model:\n  hiden: 3\n", "'model.hiden' in"),
        ("modle:\n  hidden: 3\n", "'modle' in"),
        ("model: [unclosed\n", "is damaged, or no YAML"),
        ("- 1\n", "holds no options, but [1]"),
        ("model: 3\n", "model holds options of its own, got 3"),
        ("seed: !!timestamp 2020-13-45\n", "is damaged, or no YAML"),
        ("[" * 5000, "nested too deeply"),
    ],
)
def test_files_that_are_wrong_are_named(text, expected, tmp_path, capsys):
    file = tmp_path / "c.yaml"
    file.write_text(text)
    message = refused(["--config", str(file)], capsys)
    assert expected in message and ("c.yaml" in message or "got 3" in message)


def test_files_that_are_no_text_are_named(tmp_path, capsys):
    (tmp_path / "c.yaml").write_bytes(b"\xff\xfe\x00model")
    assert "c.yaml is damaged, or no YAML" in refused(
        ["--config", str(tmp_path / "c.yaml")], capsys
    )


def test_a_flag_needs_no_value():
    assert config_of("--data.flip", "--seed", "3").data.flip


def test_print_config_prints_what_would_be_used(capsys):
    assert main(["train", "--data.name", "mnist", "--print_config"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert section_of(Config, printed) == config_of("--data.name", "mnist")


def test_every_option_is_in_the_help(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = re.sub(r"\s+", " ", capsys.readouterr().out)
    for name in option_kinds(Config):
        assert f"--{name} " in text
