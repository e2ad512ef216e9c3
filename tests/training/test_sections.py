"""Every option against every odd value: one clear line, or a value that stays what it is."""

import datetime
import math
from dataclasses import fields

import numpy as np
import pytest
import yaml

from iresflow import ImageFlow, InvertibleClassifier, VectorFlow, fit
from iresflow.data import TableOptions
from iresflow.training.config import Config, DataConfig, ModelConfig, TrainingConfig
from iresflow.training.sections import is_section, option_kinds, section_of, taken_by

ODD = [
    None, True, -1, 0, 1, 3, 2.5, -0.5, math.nan, math.inf, -math.inf, 10**12, 10**30, 1e300,
    -(10**30), "", "text", "ünï ☃", "a\nb", "\0", "1e4", "4,4", "nan", "9" * 5000, [], [None],
    [1, "a"], [[1]], [-1], [0.5, math.nan], {}, {"a": 1}, {"a": math.nan}, {1: [2]}, b"bytes",
    datetime.date(2020, 1, 1), object(), np.float32(2), np.int64(3), np.array([1, 2]),
]  # fmt: skip
OPTIONS = option_kinds(Config)


def nested(name, value):
    section, _, option = name.rpartition(".")
    return {section: {option: value}} if section else {name: value}


@pytest.mark.parametrize("name", OPTIONS)
def test_odd_values_are_refused_in_one_line_or_stay_what_they_are(name):
    refused = 0
    for value in ODD:
        try:
            config = section_of(Config, nested(name, value))
        except ValueError as error:
            refused += 1
            text = str(error)
            assert "\n" not in text and len(text) < 500
            assert text.startswith(name.partition(".")[0])
            continue
        text = yaml.safe_dump(config.to_dict(), allow_unicode=True)
        assert section_of(Config, yaml.safe_load(text)) == config
    assert refused


def test_each_refusal_names_the_option_and_what_it_takes():
    for name, kind in OPTIONS.items():
        if is_section(kind):
            continue
        with pytest.raises(ValueError) as refused:
            section_of(Config, nested(name, object()))
        assert str(refused.value).startswith(f"{name} must be ")
        assert "got <object" in str(refused.value)


def test_a_recursive_value_is_refused():
    value = []
    value.append(value)
    for name in ("model.blocks", "data.context", "seed"):
        with pytest.raises(ValueError, match=f"^{name} must be"):
            section_of(Config, nested(name, value))


def test_sections_take_the_same_forms_from_python():
    config = TrainingConfig(steps=np.int64(30), learning_rate=np.float32(0.5), drops=[0.5])
    assert (type(config.steps), type(config.learning_rate), config.drops) == (int, float, (0.5,))
    assert DataConfig(context="a").context == ("a",)
    fitted = fit(VectorFlow(2, 1, 4), np.random.default_rng(0).normal(size=(50, 2)), steps="2e0")
    assert fitted.steps == 2
    with pytest.raises(ValueError, match="^batch_size must be a whole number, got 'many'"):
        fit(VectorFlow(2, 1, 4), np.zeros((50, 2)), batch_size="many")


def test_models_that_no_machine_can_build_are_refused():
    with pytest.raises(ValueError, match=r"^log_det.probes must be a whole number, got 10{30}$"):
        section_of(Config, nested("log_det.probes", 10**30))
    for name, value in (("model.blocks", [10**9]), ("log_det.terms", 10**9)):
        with pytest.raises(ValueError, match=f"^{name.partition('.')[0]}.*at most"):
            section_of(Config, nested(name, value))
    assert section_of(Config, nested("model.blocks", [0, 10_000])).model.blocks == (0, 10_000)


def test_each_option_of_the_model_is_an_argument_of_some_model():
    models = (ImageFlow, InvertibleClassifier, VectorFlow)
    taken = {name for kind in models for name in taken_by(kind, ModelConfig())}
    assert taken == {field.name for field in fields(ModelConfig)} - {"conditional"}
    assert taken_by(TableOptions, DataConfig(context=("a",)))["context"] == ("a",)
