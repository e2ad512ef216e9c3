"""What is read from a file is what was written to it, or an error of one line."""

import copy
import errno
import os
import pickle
import time
import zipfile
from collections import OrderedDict
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import small_vector_flow, write_version_1
from interpreters import run_program

import iresflow
from iresflow import CertificateWarning, CheckpointError
from iresflow.models import files
from iresflow.models.files import digest_of, read_file, write_file

ROOT = Path(iresflow.__file__).parents[1]


@pytest.fixture
def path(tmp_path):
    small_vector_flow().save(tmp_path / "flow.pt")
    return tmp_path / "flow.pt"


def refused(path):
    """The one line that a file is refused with."""
    with pytest.raises(CheckpointError) as caught:
        iresflow.load(path)
    message = str(caught.value)
    assert "\n" not in message and path.name in message and len(message) < 600
    return message


# Digests.

CONTENT = {
    "numbers": [1, 2.5, True, None, "text", b"bytes"],
    "nested": {"a": (1, 2), 3: torch.arange(6).view(2, 3)},
    "weights": OrderedDict(w=torch.tensor([[0.5, -0.0], [float("inf"), 1e-40]])),
    "empty": [torch.zeros(0, 3), {}, []],
    "scalar": torch.tensor(3.0, dtype=torch.bfloat16),
    "complex": torch.tensor([1 + 2j]).conj(),
}


def changed(change):
    content = copy.deepcopy(CONTENT)
    change(content)
    return content


CHANGES = {
    "a sign of zero": lambda c: c["weights"]["w"][0, 1].zero_(),
    "the last bit of a weight": lambda c: c["weights"]["w"].view(torch.int64)[0, 0].add_(1),
    "an integer's type": lambda c: c["numbers"].__setitem__(2, 1),
    "a number's type": lambda c: c["numbers"].__setitem__(0, 1.0),
    "a sequence's type": lambda c: c["nested"].__setitem__("a", [1, 2]),
    "a tensor's shape": lambda c: c["nested"].__setitem__(3, torch.arange(6).view(3, 2)),
    "a tensor's type": lambda c: c["nested"].__setitem__(3, c["nested"][3].int()),
    "a key": lambda c: c["nested"].__setitem__("3", c["nested"].pop(3)),
    "an entry that is gone": lambda c: c.pop("empty"),
    "an order": lambda c: c.__setitem__("numbers", c.pop("numbers")),
    "where lists end": lambda c: c.__setitem__("empty", [torch.zeros(0, 3), {}, [], []]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_digest_changes_with_all_that_a_file_holds(change):
    assert digest_of(changed(lambda c: None)) == digest_of(CONTENT)
    assert digest_of(changed(CHANGES[change])) != digest_of(CONTENT)


def test_files_give_back_what_was_written(tmp_path):
    write_file(CONTENT, tmp_path / "a.pt")
    content = read_file(tmp_path / "a.pt")
    assert content.pop("version") == files.VERSION
    assert digest_of(content) == digest_of(CONTENT)
    write_file(read_file(tmp_path / "a.pt"), tmp_path / "b.pt")
    assert digest_of(read_file(tmp_path / "a.pt")) == digest_of(read_file(tmp_path / "b.pt"))


# Writing.


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (np.float64(0.9), "numpy.float64"),
        (np.int64(3), "numpy.int64"),
        (np.str_("x"), "numpy.str_"),
        (np.zeros(2), "numpy.ndarray"),
        ({1, 2}, "builtins.set"),
        (Path("x"), "PosixPath"),
        (torch.eye(2).to_sparse(), "not dense"),
    ],
)
def test_values_that_no_file_gives_back_are_refused_before_the_old_file_goes(value, kind, path):
    before = path.read_bytes()
    content = read_file(path)
    content["model"]["spec"]["hidden"] = [1, value]
    with pytest.raises(
        CheckpointError, match=r"model\.spec\.hidden\[1\] is a.*; the previous"
    ) as e:
        write_file(content, path)
    assert kind in str(e.value)
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == ["flow.pt"]


@pytest.mark.parametrize("damage", ["short", "flipped", "empty"])
def test_a_file_that_can_not_be_read_back_replaces_no_other(damage, path, monkeypatch):
    """A disk that loses bytes without a word."""
    before, save = path.read_bytes(), torch.save

    def lossy(content, file):
        save(content, path.parent / "whole")
        whole = bytearray((path.parent / "whole").read_bytes())
        (path.parent / "whole").unlink()
        whole[len(whole) // 2] ^= damage == "flipped"
        file.write(whole[: {"short": len(whole) - 7, "empty": 0}.get(damage, len(whole))])

    monkeypatch.setattr(torch, "save", lossy)
    with pytest.raises(CheckpointError, match=r"could not write .*; the previous file is intact"):
        small_vector_flow().save(path)
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == ["flow.pt"]


def test_a_disk_that_is_full_leaves_the_previous_file(tmp_path):
    """A true limit of bytes, at several places of the file."""
    code = """
import resource, signal, sys, torch
from iresflow import CheckpointError
from iresflow.models.files import read_file, write_file
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
torch.manual_seed(0)
write_file({"x": torch.ones(10)}, sys.argv[1])
for limit in (0, 100, 3000, 200_000, 399_000, 400_900):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        write_file({"x": torch.randn(100_000)}, sys.argv[1])
        assert False, "there was no limit"
    except CheckpointError as error:
        assert "File too large; the previous file is intact" in str(error), error
        assert "\\n" not in str(error)
    assert read_file(sys.argv[1])["x"].sum() == 10
"""
    done = run_program(code, tmp_path / "a.pt")
    assert done.returncode == 0, done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def test_a_directory_without_permission_is_named(path, monkeypatch):
    before = path.read_bytes()

    def forbidden(**_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path.parent))

    monkeypatch.setattr(files.tempfile, "NamedTemporaryFile", forbidden)
    with pytest.raises(CheckpointError, match="Permission denied; the previous file is intact"):
        small_vector_flow().save(path)
    assert path.read_bytes() == before
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match=r"could not write .*Not a directory$|File exists$"):
        small_vector_flow().save(path / "below-a-file.pt")


# Reading.


def test_files_that_are_cut_off_are_refused(path):
    whole = path.read_bytes()
    for size in {*range(70), *range(0, len(whole), len(whole) // 90), len(whole) - 1}:
        path.write_bytes(whole[:size])
        assert f"cut off ({size} bytes)" in refused(path)


def test_a_flipped_bit_is_told_wherever_something_is_read(path):
    whole = path.read_bytes()
    model = iresflow.load(path)
    harmless = 0
    for place in range(11, len(whole), len(whole) // 150):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        try:
            loaded = iresflow.load(path)
        except CheckpointError:
            refused(path)
            continue
        harmless += 1  # in the dates and paddings of the archive
        assert digest_of(loaded.state_dict()) == digest_of(model.state_dict())
    assert harmless < 75


def rewritten(path, change):
    """The archive with one entry changed and all of its own checksums right."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: bytearray(archive.read(name)) for name in archive.namelist()}
    change(entries)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, values in entries.items():
            archive.writestr(name, bytes(values))


def test_the_digest_tells_what_checksums_do_not(path):
    with zipfile.ZipFile(path) as archive:
        names = [i.filename for i in archive.infolist() if "/data/" in i.filename and i.file_size]
    whole = path.read_bytes()
    assert len(names) > 5

    def flip(entries, name):
        entries[name][0] ^= 1

    for name in names:
        path.write_bytes(whole)
        rewritten(path, partial(flip, name=name))
        assert "not what its digest was made of" in refused(path)


class Code:
    def __reduce__(self):
        return os.mkdir, ("unpickled",)


FOREIGN = {
    "nothing": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("some text\n" * 50),
    "a pickle with code": lambda path: path.write_bytes(pickle.dumps(Code())),
    "code in an archive": lambda path: torch.save(Code(), path),
    "a tensor": lambda path: torch.save(torch.zeros(3), path),
    "a list": lambda path: torch.save([1, 2], path),
    "another state": lambda path: torch.save({"state_dict": {}}, path),
    "a directory": lambda path: (path.unlink(), path.mkdir()),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "no file": lambda path: path.unlink(),
    "a broken link": lambda path: (path.unlink(), path.symlink_to("nowhere")),
    "a zip archive": lambda path: zipfile.ZipFile(path, "w").writestr("a", "b"),
    "the older format of torch": lambda path: torch.save(
        {"format": "iresflow", "version": 1}, path, _use_new_zipfile_serialization=False
    ),
    "no digest": lambda path: torch.save({"format": "iresflow", "version": 2}, path),
    "a later version": lambda path: torch.save({"format": "iresflow", "version": 3}, path),
    "a version of another type": lambda path: torch.save(
        {"format": "iresflow", "version": torch.tensor([1, 2])}, path
    ),
    "no model": lambda path: write_file({"x": 1}, path),
    "a model of a wrong type": lambda path: write_file({"model": [1]}, path),
    "an unknown kind": lambda path: write_file({"model": {"kind": [], "spec": {}}}, path),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_files_of_others_are_refused(kind, path, monkeypatch):
    monkeypatch.chdir(path.parent)
    FOREIGN[kind](path)
    refused(path)
    assert not Path("unpickled").exists()


SPEC = {"blocks": [[], "x", -1, None, 2.5], "hidden": ["x", 0, -3, {}], "log_det": [0, {}]}
PLACES = [("spec", name, value) for name, values in SPEC.items() for value in values]
PLACES += [("spec", "other", 1), ("state", "other", torch.zeros(1)), ("state", "base.mean", 3)]
PLACES += [("state", "base.mean", torch.zeros(2).long()), ("state", "base.mean", torch.zeros(9))]


@pytest.mark.parametrize(("part", "name", "value"), PLACES, ids=str)
def test_values_of_other_types_are_refused(part, name, value, path):
    content = read_file(path)
    content["model"][part][name] = value
    write_file(content, path)
    assert "can't be rebuilt: " in refused(path)


@pytest.mark.parametrize("blocks", [10**5, 10**30])
def test_more_blocks_than_are_stored_are_refused_before_they_are_built(blocks, path):
    content = read_file(path)
    content["model"]["spec"]["blocks"] = blocks
    write_file(content, path)
    began = time.monotonic()
    assert "far larger than the weights stored with it" in refused(path)
    assert time.monotonic() - began < 20  # 10**5 blocks take minutes


def test_weights_that_are_not_numbers_are_refused_by_name(path):
    content = read_file(path)
    content["model"]["state"]["base.mean"][0] = torch.nan
    write_file(content, path)
    assert "base.mean holds NaN" in refused(path)


def test_a_message_names_what_is_missing(path):
    content = read_file(path)
    del content["model"]["state"]["base.mean"]
    write_file(content, path)
    assert 'Missing key(s) in state_dict: "base.mean"' in refused(path)


def test_certificates_are_missed_where_they_belong(path):
    content = read_file(path)
    del content["certificate"]
    write_file(content, path)
    with pytest.warns(CertificateWarning, match="holds no certificate of its weights"):
        iresflow.load(path)
    write_version_1(content, path)
    assert iresflow.load(path).certify()  # a warning would be an error here
    content["certificate"] = ["x"]
    write_file(content, path)
    assert "certificate in the checkpoint can't be read" in str(
        pytest.raises(CheckpointError, iresflow.load, path).value
    )


def test_files_of_version_0_1_are_read_and_their_checksums_checked(path):
    model, content = iresflow.load(path), read_file(path)
    write_version_1(content, path)
    loaded = iresflow.load(path)
    assert digest_of(loaded.state_dict()) == digest_of(model.state_dict())
    whole = path.read_bytes()
    weight = content["model"]["state"]["base.mean"].numpy().tobytes()
    place = whole.index(weight)
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
    assert "a checksum in it is wrong" in refused(path)


def test_a_device_that_is_not_there_is_a_wrong_argument(path):
    with pytest.raises(ValueError, match="device 'toaster' can't be used here"):
        iresflow.load(path, "toaster")
    assert not iresflow.load(path, "cpu").training


def test_files_of_many_kinds_are_refused():
    done = run_program(ROOT / "benchmarks" / "malformed.py", "--files", 90, "--seed", 7)
    assert done.returncode == 0 and "90 files, 0 violations" in done.stdout, done.stdout
