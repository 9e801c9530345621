"""Fuzzing of the readers: mutated artifacts must end in a clear error or in numbers, within bounds of time and memory.

    python -m benchmarks.fuzz model --seconds 60                    # mutations of the hostile corpus, from a seed
    python -m benchmarks.fuzz model --seconds 600 --engine atheris  # guided by coverage (pip install atheris)

An input that ends otherwise is written to --crashes and makes the exit code 1.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import random
import resource
import signal
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

SECONDS_AN_INPUT = 10
MEMORY = 4 << 30
"""Address space beyond what the libraries take."""
NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 40, (1 << 63) - 1, (1 << 64) - 1)
SUFFIX = {"model": "model.pth", "safetensors": "model.safetensors", "mlmodel": "MLmodel"} | {
    kind: f"a.{kind}" for kind in ("parquet", "npz", "png")
}


class Hang(BaseException):
    """An input took longer than it may; no reader catches this."""


def readers(folder: Path) -> dict[str, Callable[[Path], object]]:
    """Reader -> what reads a file, with its clear errors caught."""
    from sanitize.data import load_images
    from sanitize.data.decoding import read_picture
    from sanitize.errors import SanitizeError
    from sanitize.suspects.extract.archives import ArchiveError
    from sanitize.suspects.extract.command import extract
    from sanitize.suspects.extract.contents import ContentsError
    from sanitize.suspects.extract.records import MachineError
    from sanitize.suspects.mlmodel import read_mlmodel
    from sanitize.suspects.quarantine import admit
    from sanitize.suspects.readers import _load_safetensors

    # What the child process turns into a message by itself: see sanitize.suspects.extract.command.main.
    caught = (
        *(ArchiveError, ContentsError, MachineError, zipfile.BadZipFile, zlib.error, EOFError),
        *(NotImplementedError, ValueError, MemoryError, RecursionError),
    )

    def model(path: Path) -> None:
        with contextlib.suppress(SanitizeError):
            admit(path)
            with contextlib.suppress(*caught):
                extract(path, [""], 1 << 30, folder, {})

    def refusing(read: Callable[[Path], object]) -> Callable[[Path], None]:
        def call(path: Path) -> None:
            with contextlib.suppress(SanitizeError):
                read(path)

        return call

    images = refusing(lambda path: load_images(str(path), image_size=8))
    return {
        "model": model,
        "safetensors": refusing(_load_safetensors),
        "mlmodel": refusing(read_mlmodel),
        "parquet": images,
        "npz": images,
        "png": refusing(read_picture),
    }


def seeds(reader: str) -> list[bytes]:
    """The hostile corpus of the tests, as far as this reader takes it; and one good file."""
    from tests.data.test_sources import PIXELS, _parquet, _png
    from tests.hostile import archives, datasets, pickles
    from tests.hostile.corpus import ARTIFACTS

    assert archives and datasets and pickles  # imported, so that they enter theirs
    found = [_png(PIXELS[0])] if reader == "png" else []
    for name, artifact in ARTIFACTS.items():
        with tempfile.TemporaryDirectory() as folder:
            built = artifact.build(Path(folder))
            files = [built] if built.is_file() else [file for file in built.rglob("*") if file.is_file()]
            suffixes = {"model": {".pth", ".pt2"}, "mlmodel": {""}}.get(reader, {f".{reader}"})
            if name != "parquet-dictionary-bomb":
                found += [f.read_bytes() for f in files if f.suffix in suffixes and f.stat().st_size < 1 << 16]
    if reader == "parquet":
        with tempfile.TemporaryDirectory() as folder:
            found.append(_parquet(Path(folder) / "a.parquet").read_bytes())
    return found


def mutated(pool: list[bytes], generator: random.Random) -> bytes:
    """A file of the pool with one to eight changes."""
    content = bytearray(generator.choice(pool))
    for _ in range(generator.randint(1, 8)):
        place = generator.randrange(len(content) + 1)
        kind = generator.randrange(6)
        if kind == 0 and place < len(content):
            content[place] ^= 1 << generator.randrange(8)
        elif kind == 1:
            width = generator.choice((1, 2, 4, 8))
            number = generator.choice(NUMBERS) % (1 << 8 * width)
            content[place : place + width] = number.to_bytes(width, generator.choice(("little", "big")))
        elif kind == 2:
            del content[place : place + generator.randint(1, 32)]
        elif kind == 3:
            content[place:place] = generator.randbytes(generator.randint(1, 16))
        elif kind == 4:
            other = generator.choice(pool)
            start = generator.randrange(len(other) + 1)
            content[place:place] = other[start : start + generator.randint(1, 64)]
        else:
            content[place:place] = content[place : place + generator.randint(1, 64)] * generator.randint(1, 4)
    return bytes(content)


def repaired(content: bytes) -> bytes:
    """A zip archive written anew with the right sizes and checksums, so that changes inside reach the next reader."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as source, io.BytesIO() as stream:
            with zipfile.ZipFile(stream, "w") as target:
                for info in source.infolist():
                    with source.open(info) as member:
                        member._expected_crc = None  # type: ignore[attr-defined]  # changed on purpose
                        target.writestr(info.filename, member.read(1 << 20))
            return stream.getvalue()
    except Exception:  # whatever is wrong with it: it is tried as it is
        return content


@contextlib.contextmanager
def bounds() -> Iterator[None]:
    """Address space, and time for each input (set with `signal.alarm`)."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Hang(f"more than {SECONDS_AN_INPUT} s")

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, stop)
    try:
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, before[1]))
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)


def mutate(reader: str, *, seconds: float, seed: int, crashes: Path) -> tuple[int, int]:
    """Try mutations for some time; how many were tried, and how many ended badly."""
    generator = random.Random(seed)
    tried = bad = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        read, pool, path = readers(folder)[reader], seeds(reader), folder / SUFFIX[reader]
        with bounds():
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                content = mutated(pool, generator)
                if reader in ("model", "npz") and generator.random() < 0.7:
                    content = repaired(content)
                path.write_bytes(content)
                signal.alarm(SECONDS_AN_INPUT)
                try:
                    read(path)
                except (Exception, Hang) as error:
                    bad += 1
                    keep = crashes / f"{reader}-{seed}-{tried}"
                    keep.write_bytes(content)
                    print(f"{keep}: {type(error).__name__}: {str(error)[:200]}", file=sys.stderr)
                finally:
                    signal.alarm(0)
                tried += 1
    return tried, bad


def guided(reader: str, *, seconds: int, seed: int, crashes: Path) -> None:
    """Let atheris choose the inputs; it ends the process itself, with code 77 and a file after a crash."""
    import atheris

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with atheris.instrument_imports(include=["sanitize.suspects", "sanitize.data"], enable_loader_override=False):
            read = readers(folder)[reader]
        pool = folder / "pool"
        pool.mkdir()
        for number, content in enumerate(seeds(reader)):
            (pool / str(number)).write_bytes(content)
        path = folder / SUFFIX[reader]

        def one_input(content: bytes) -> None:
            path.write_bytes(content)
            read(path)

        options = [f"-max_total_time={seconds}", f"-seed={seed}", f"-timeout={SECONDS_AN_INPUT}", "-rss_limit_mb=4096"]
        atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={crashes}/{reader}-", str(pool)], one_input)
        atheris.Fuzz()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reader", choices=sorted(SUFFIX))
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--engine", choices=("mutation", "atheris"), default="mutation")
    parser.add_argument("--crashes", type=Path, default=Path("crashes"))
    given = parser.parse_args()
    given.crashes.mkdir(exist_ok=True)
    if given.engine == "atheris":
        guided(given.reader, seconds=given.seconds, seed=given.seed, crashes=given.crashes)
        return
    tried, bad = mutate(given.reader, seconds=given.seconds, seed=given.seed, crashes=given.crashes)
    print(f"{given.reader}: {tried:,} inputs in {given.seconds} s, {bad} ended badly")
    raise SystemExit(1 if bad else 0)


if __name__ == "__main__":
    main()
