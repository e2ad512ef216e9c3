"""The commands for several machines in docs/guides/scaling.md, between two network namespaces."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from interpreters import run_program

import iresflow
from iresflow.training.checkpoint import load_training

ROOT = Path(iresflow.__file__).parents[1]
LAUNCHERS = ROOT / "tests" / "launchers.py"
ADDRESSES = ("10.97.0.1", "10.97.0.2")
OPTIONS = """--model.blocks [1,1] --model.hidden 4 --model.dequantization_blocks 1
    --data.flip true --training.batch_size 9
    --training.validation_samples 8 --training.log_every 1 --log_det.terms 4 --log_det.tol 0
    --training.steps 6 --data.test 12""".split()


def ip(*arguments):
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def hosts():
    """Two network namespaces, each with a loopback of its own, and a cable between them."""
    names = [f"iresflow-{os.getpid()}-{i}" for i in (0, 1)]
    if shutil.which("ip") is None:
        pytest.skip("there is no ip command (Debian's iproute2)")
    made = []
    try:
        try:
            for name in names:
                ip("netns", "add", name)
                made.append(name)
            cable = [f"ires{i}" for i in (0, 1)]
            ends = ["name", cable[1], "netns", names[1]]
            ip("link", "add", cable[0], "netns", names[0], "type", "veth", "peer", *ends)
            for name, end, address in zip(names, cable, ADDRESSES, strict=True):
                ip("-n", name, "address", "add", f"{address}/24", "dev", end)
                ip("-n", name, "link", "set", "lo", "up")
                ip("-n", name, "link", "set", end, "up")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces are not allowed here: {error.stderr.strip()}")
        yield names
    finally:
        for name in made:
            kill_host(name)
            ip("netns", "del", name)


def kill_host(name):
    for number in ip("netns", "pids", name).split():
        os.kill(int(number), signal.SIGKILL)


def documented(launcher, rank):
    """The command of the documentation for one of two machines with one process each."""
    text = (ROOT / "docs" / "guides" / "scaling.md").read_text()
    section = text[text.index("Four machines") :]
    block = re.search(r"```sh\n(.*?)```", section, re.DOTALL).group(1).replace("\\\n", " ")
    (command,) = [line for line in block.splitlines() if line.startswith(launcher)]
    assert "RANK" in command and "HOST" in command
    command = command.replace("RANK", str(rank)).replace("HOST", ADDRESSES[0])
    for there, here in (
        ("--nnodes=4", "--nnodes=2"),
        ("--nproc_per_node=8", "--nproc_per_node=1"),
        ("--num_machines=4", "--num_machines=2"),
        ("--num_processes=32", "--num_processes=2"),
    ):
        command = command.replace(there, here)
    words = shlex.split(command)
    return [*words[: words.index("train.py")], str(ROOT / "train.py")]


def test_two_machines_train_as_one(hosts, tmp_path):
    """Each with a disk of its own, of which the first machine alone writes to its."""
    launches = [
        {
            "command": [*documented("torchrun", rank), *OPTIONS, "--runs", f"{tmp_path}/{rank}"],
            "environment": {"ACCELERATE_USE_CPU": "1", "GLOO_SOCKET_IFNAME": f"ires{rank}"},
            "host": host,
        }
        for rank, host in enumerate(hosts)
    ]
    (tmp_path / "launches.json").write_text(json.dumps(launches))
    done = run_program(LAUNCHERS, tmp_path / "launches.json")
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = tmp_path.glob("0/*/checkpoints/last.pt")
    assert not (tmp_path / "1").exists()
    done = run_program(ROOT / "train.py", *OPTIONS, "--runs", tmp_path / "alone")
    assert done.returncode == 0, done.stderr
    (expected,) = tmp_path.glob("alone/*/checkpoints/last.pt")
    state, alone = load_training(path)[0]["flow"], load_training(expected)[0]["flow"]
    for name, value in state.items():
        atol = 1e-4 if name.endswith(".left") else 1e-5  # as in test_processes.py
        torch.testing.assert_close(value, alone[name], rtol=1e-5, atol=atol, msg=name)


def test_accelerate_understands_its_command_for_machines():
    program = """
import sys
from accelerate.commands.launch import launch_command_parser
found = launch_command_parser().parse_args(sys.argv[1:])
print(found.num_machines, found.num_processes, found.machine_rank, found.main_process_ip)
"""
    done = run_program(program, *documented("accelerate", 1)[2:])
    assert done.stdout.split() == ["2", "2", "1", ADDRESSES[0]], done.stderr
