"""Does `iresflow.load` answer every damaged or foreign file with one clear line?

Makes files of many kinds from a sound one: cut off at any byte, with flipped bits, of other
programs, with values of wrong types, with other versions. Each is to give a CheckpointError of one
line. A file that is damaged where nothing is read, as in the dates of the archive, may load: then
it must be the very model. One that describes another model, with a digest of its own, may load
with a warning that its certificate is not of these weights. Each kind is tried in a process of its
own, since a crash counts.

    python benchmarks/malformed.py --files 500
"""

import argparse
import copy
import multiprocessing
import os
import pickle
import random
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import iresflow
from iresflow import CertificateWarning, CheckpointError, VectorFlow
from iresflow.models.certificates.fingerprint import fingerprint
from iresflow.models.files import digest_of, read_file

SOUND, WARNED = "loads as the model it is", "loads with a warning"
REFUSED = "is refused in one line"
ALLOWED = (SOUND, WARNED, REFUSED)

JUNK: list[Any] = [None, -1, 0, 2.5, "text", [], {}, [[]], {"a": 1}, torch.zeros(3), b"x"]
"""What is put in place of values in a file."""


class Code:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("unpickled",)


def save_whole(content: dict[str, Any], path: Path, **changes: object) -> None:
    """Writes content with a right digest, so that what is wrong in it is all that is wrong."""
    values = {k: v for k, v in content.items() if k not in ("format", "version", "digest")}
    head = {"format": "iresflow", "version": 2, "digest": digest_of(values)}
    torch.save({**head, **values, **changes}, path)


def cut_off(path: Path, content: dict[str, Any], chance: random.Random) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: chance.randrange(len(whole))])


def flipped_bits(path: Path, content: dict[str, Any], chance: random.Random) -> None:
    whole = bytearray(path.read_bytes())
    for _ in range(chance.choice([1, 1, 1, 2, 8])):
        whole[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
    path.write_bytes(whole)


def overwritten(path: Path, content: dict[str, Any], chance: random.Random) -> None:
    whole = bytearray(path.read_bytes())
    first, count = chance.randrange(len(whole)), chance.choice([16, 512, 4096])
    whole[first : first + count] = chance.randbytes(len(whole[first : first + count]))
    path.write_bytes(whole)


def flipped_weight(path: Path, content: dict[str, Any], chance: random.Random) -> None:
    """Of the archive's numbers, with its checksums made right: only the digest can tell."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: bytearray(archive.read(name)) for name in archive.namelist()}
    data = [entry for name, entry in entries.items() if "/data/" in name and entry]
    entry = chance.choice(data)
    entry[chance.randrange(len(entry))] ^= 1 << chance.randrange(8)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, values in entries.items():
            archive.writestr(name, bytes(values))


def foreign(path: Path, content: dict[str, Any], chance: random.Random) -> None:
    """A file of another program, or none."""
    kind = chance.randrange(12)
    if kind == 0:
        path.write_bytes(b"")
    elif kind == 1:
        path.write_text("not a model\n" * chance.randrange(1, 99))
    elif kind == 2:
        path.write_bytes(chance.randbytes(chance.randrange(1, 9999)))
    elif kind == 3:
        path.unlink()
        path.mkdir()
    elif kind == 4:
        path.unlink()
        os.mkfifo(path)
    elif kind == 5:
        path.write_bytes(pickle.dumps(Code()))
    elif kind == 6:
        torch.save(Code(), path)
    elif kind == 7:
        torch.save(content, path, _use_new_zipfile_serialization=False)
    elif kind == 8:
        torch.save(chance.choice([torch.zeros(3), [1, 2], {"state_dict": {}}, {1: 2}, None]), path)
    elif kind == 9:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a/data.pkl", chance.randbytes(chance.randrange(99)))
    elif kind == 10:
        path.write_bytes(pickle.dumps({"format": "iresflow", "version": 2}))
    else:
        path.unlink()


def other_version(path: Path, content: dict[str, Any], chance: random.Random) -> None:
    version = chance.choice([0, 3, 99, -1, "2", 2.0, True, None, [2], torch.tensor([1, 2])])
    save_whole(content, path, version=version)


def wrong_types(path: Path, content: dict[str, Any], chance: random.Random) -> None:
    """One value anywhere in the model or its certificate is another one, or missing."""
    places = list(_places(content["model"], ("model",)))
    place = chance.choice([place for place in places if place[1:2] != ("state",)] or places)
    if chance.random() < 0.5:
        place = chance.choice(places)
    parent: Any = content
    for key in place[:-1]:
        parent = parent[key]
    if chance.random() < 0.25 and isinstance(parent, dict):
        del parent[place[-1]]
    else:
        parent[place[-1]] = chance.choice(JUNK)
    save_whole(content, path)


def weights_of_nan(path: Path, content: dict[str, Any], chance: random.Random) -> None:
    state = content["model"]["state"]
    name = chance.choice([n for n, t in state.items() if t.is_floating_point() and t.numel()])
    state[name].view(-1)[chance.randrange(state[name].numel())] = torch.nan
    save_whole(content, path)


def without_digest(path: Path, content: dict[str, Any], chance: random.Random) -> None:
    if chance.random() < 0.5:
        content.pop("certificate")
    values = {key: value for key, value in content.items() if key != "version"}
    torch.save({"format": "iresflow", "version": 2, **values}, path)


KINDS: dict[str, Callable[[Path, dict[str, Any], random.Random], None]] = {
    "cut off": cut_off,
    "flipped bits": flipped_bits,
    "overwritten": overwritten,
    "flipped weight": flipped_weight,
    "foreign": foreign,
    "other version": other_version,
    "wrong types": wrong_types,
    "weights of NaN": weights_of_nan,
    "without digest": without_digest,
}

HARMLESS = ("flipped bits", "overwritten", "wrong types")
"""Kinds that may hit what is not read, or put a value in place of an equal one."""


def _places(value: object, at: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    entries = value.items() if isinstance(value, dict) else enumerate(value)  # type: ignore[call-overload]
    for key, entry in entries:
        yield (*at, key)
        if isinstance(entry, dict | list) and entry:
            yield from _places(entry, (*at, key))


def judge(path: Path, kind: str, sound: str) -> str:
    """What came of a file; a text that is not among `ALLOWED` is a violation."""
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model = iresflow.load(path)
    except CheckpointError as error:
        text = str(error)
        return REFUSED if text and "\n" not in text and len(text) < 600 else f"unclear: {text!r}"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    if kind == "wrong types" and any(w.category is CertificateWarning for w in caught):
        return WARNED
    if fingerprint(model) == sound:
        return SOUND if kind in HARMLESS else "loads, and says nothing"
    return "loads as another model, and says nothing"


def attempt(directory: Path, kind: str, seed: int) -> str:
    """Makes one file and loads it."""
    path, chance = directory / f"{seed}.pt", random.Random(f"{kind} {seed}")
    path.write_bytes((directory.parent / "sound.pt").read_bytes())
    content = copy.deepcopy(read_file(path))
    sound = (directory.parent / "fingerprint").read_text()
    KINDS[kind](path, content, chance)
    before = set(directory.iterdir())
    os.chdir(directory)
    result = judge(path, kind, sound)
    if set(directory.iterdir()) != before:
        return "code in the file was run"
    return result


def _attempts(
    directory: Path,
    kind: str,
    seeds: list[int],
    results: Any,  # noqa: ANN401
) -> None:
    torch.set_num_threads(1)
    for seed in seeds:
        results.put((seed, attempt(directory, kind, seed)))
    os._exit(0)


def _received(worker: Any, results: Any) -> Iterator[tuple[int, str]]:  # noqa: ANN401
    """What a worker sends, until it ends or says nothing for a minute."""
    last = time.monotonic()
    while worker.is_alive() and time.monotonic() - last < 60:
        if results.empty():
            time.sleep(0.01)
            continue
        yield results.get()
        last = time.monotonic()
    while not results.empty():
        yield results.get()


def run(files: int, seed: int = 0) -> tuple[Counter[tuple[str, str]], list[str]]:
    """Tries so many files; returns how often each kind ended how, and the violations."""
    found: Counter[tuple[str, str]] = Counter()
    violations: list[str] = []
    shares = {kind: len(range(i, files, len(KINDS))) for i, kind in enumerate(KINDS)}
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        torch.manual_seed(0)
        flow = VectorFlow(2, 2, 8, context_dim=1)
        flow.initialize(torch.randn(64, 2), torch.randn(64, 1))
        flow.save(directory / "sound.pt")
        sound = fingerprint(iresflow.load(directory / "sound.pt"))
        (directory / "fingerprint").write_text(sound)
        for kind, count in shares.items():
            results = context.SimpleQueue()
            seeds = [seed * 1_000_000 + i for i in range(count)]
            (directory / kind).mkdir()
            arguments = (directory / kind, kind, seeds, results)
            worker = context.Process(target=_attempts, args=arguments)
            worker.start()
            ended = list(_received(worker, results))
            for number, outcome in ended:
                found[kind, outcome if outcome in ALLOWED else "VIOLATION"] += 1
                if outcome not in ALLOWED:
                    violations.append(f"{kind}, file {number}: {outcome}")
            if len(ended) < count:
                worker.kill()
                violations.append(f"{kind}: the process crashed or hung (code {worker.exitcode})")
                found[kind, "VIOLATION"] += 1
    return found, violations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    found, violations = run(options.files, options.seed)
    for (kind, outcome), count in sorted(found.items()):
        print(f"{kind:<15} {outcome:<25} {count:>5}")
    print(*violations, sep="\n")
    print(f"{sum(found.values())} files, {len(violations)} violations")
    raise SystemExit(1 if violations else 0)


if __name__ == "__main__":
    main()
