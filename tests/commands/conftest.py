"""A run that the tests of several verbs ask."""

import numpy as np
import pytest
import torch
from helpers import TINY
from PIL import Image

from iresflow.cli import main


@pytest.fixture(scope="session")
def table_run(tmp_path_factory):
    """A run on a table with names, an offset and a context column, and the table's rows."""
    folder = tmp_path_factory.mktemp("runs")
    torch.set_default_dtype(torch.float32)
    x = np.random.default_rng(1).normal(size=(60, 3)) * [1, 2, 5] + [0, 30, 1000]
    np.savetxt(folder / "x.csv", x, delimiter=",", header="a,b,when", comments="")
    (folder / "config.yaml").write_text(
        f"data: {{name: table, root: {folder / 'x.csv'}, context: [b], offset: {{when: 1000}}}}\n"
        "model: {blocks: [1]}\n"
    )
    arguments = ["train", "--config", str(folder / "config.yaml"), *TINY, "--runs", str(folder)]
    assert main([*arguments, "--name", "t"]) == 0
    return folder / "0000-t", x


@pytest.fixture(scope="session")
def folder_run(tmp_path_factory):
    """A run on a folder of 40 grey images of 4 x 4 pixels, and that folder."""
    folder = tmp_path_factory.mktemp("images")
    torch.set_default_dtype(torch.float32)
    (folder / "data").mkdir()
    values = np.random.default_rng(0).integers(0, 256, (40, 4, 4), dtype=np.uint8)
    for index, image in enumerate(values):
        Image.fromarray(image).save(folder / "data" / f"{index}.png")
    arguments = f"--data.name folder --data.root {folder / 'data'} --data.size 4".split()
    arguments += ["--data.channels", "1", "--model.blocks", "[0,1]", *TINY]
    assert main(["train", *arguments, "--runs", str(folder), "--name", "f"]) == 0
    return folder / "0000-f", folder / "data"
