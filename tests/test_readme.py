"""What README.md shows is what the package does."""

import re
from pathlib import Path

import torch

import iresflow

README = Path(iresflow.__file__).parents[1] / "README.md"


def test_the_python_example_runs(tmp_path, monkeypatch, capsys):
    torch.set_default_dtype(torch.float32)
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    names = {}
    exec(compile(example.replace("steps=100", "steps=10"), "README.md", "exec"), names)
    assert names["samples"].shape == (64, 2)
    assert "certified: every block" in capsys.readouterr().out
    assert (tmp_path / "flow.pt").is_file()


def test_no_placeholder_is_left_and_every_file_it_names_exists():
    text = README.read_text()
    assert not re.findall(r"@[A-Z_]+@", text)
    root = README.parent
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    links += re.findall(r"(configs/[\w-]+\.yaml|benchmarks/\w+\.py)", text)
    assert links and not [link for link in links if not (root / link).exists()]
