"""Without the folder of the native passes the package works, slower."""

import shutil
from pathlib import Path

from interpreters import BARE, run_program

import iresflow

PROGRAM = """
import torch, iresflow
print(iresflow.__file__)
iresflow.compile_kernels()
torch.manual_seed(0)
flow = iresflow.ImageFlow((1, 4, 4), blocks=(1, 1), hidden=4, levels=4)
images = torch.randint(0, 4, (16, 1, 4, 4))
flow.initialize(flow.dequantize(images, torch.Generator().manual_seed(0)))
x = flow.dequantize(images[:3], torch.Generator().manual_seed(0))
(-flow.log_prob(x, generator=torch.Generator().manual_seed(0)).mean()).backward()
flow.eval().enforce()
z = flow.transform(x)
back = flow.inverse(z.detach())
numbers = (*flow.log_prob(x), *z[0, :3], (back - x).abs().max())
print([round(float(v.detach()), 3) for v in numbers])
print([round(float(p.grad.norm()), 3) for p in flow.parameters() if p.grad is not None])
"""


def run(root: Path) -> str:
    """What the program prints with the package that lies below a directory."""
    done = run_program(PROGRAM, directory=root, imported=BARE)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    where, numbers = done.stdout.split("\n", 1)
    assert Path(where) == root / "iresflow" / "__init__.py"
    return numbers


def test_the_folder_of_the_native_passes_can_be_deleted(tmp_path):
    package = Path(iresflow.__file__).parent
    ignored = shutil.ignore_patterns("native", "__pycache__")
    shutil.copytree(package, tmp_path / "iresflow", ignore=ignored)
    assert not (tmp_path / "iresflow" / "lipschitz" / "passes" / "native").exists()
    assert run(tmp_path) == run(package.parent)
