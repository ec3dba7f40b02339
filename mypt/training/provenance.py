"""What a lineage records of the dataset, of the program, and of who made the steps before."""

import hashlib
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import mypt
from mypt.data.manifest import Manifest
from mypt.training.lineage import (
    CodeRecord,
    ComputeRecord,
    DatasetRecord,
    Lineage,
    RunContext,
    Stretch,
)

_LIBRARIES = (
    "torch", "numpy", "safetensors", "tiktoken", "rustbpe", "pyarrow", "pydantic", "blake3",
)  # fmt: skip


def record_dataset(path: Path, manifest: Manifest) -> DatasetRecord:
    """Return what a checkpoint must remember of the dataset at ``path``."""
    return DatasetRecord(
        path=str(path.absolute()),
        digest=manifest.digest,
        parent=manifest.parent,
        kind=manifest.kind,
        tokens={"train": manifest.tokens("train"), "val": manifest.tokens("val")},
        tokenizer_name=manifest.tokenizer_name,
        tokenizer=manifest.tokenizer.digest,
        template=manifest.template,
        mask=manifest.mask,
        sources=manifest.sources,
        making=manifest.making,
    )


def record_code() -> CodeRecord:
    """Return which program is running, down to the bytes of its files."""
    package = Path(mypt.__file__).parent
    hasher = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        hasher.update(f"{path.relative_to(package).as_posix()}\0".encode())
        hasher.update(hashlib.sha256(path.read_bytes()).digest())
    commit, dirty = _checkout(package)
    return CodeRecord(
        version=mypt.__version__,
        digest=hasher.hexdigest(),
        commit=commit,
        dirty=dirty,
        libraries={"python": platform.python_version()} | _versions(),
    )


def record_earlier(
    before: Lineage, code: CodeRecord, compute: ComputeRecord, context: RunContext
) -> tuple[Stretch, ...]:
    """Return who made the steps up to ``before``, if it was not who goes on from there."""
    last = Stretch(
        until=before.step, code=before.code, compute=before.compute, context=before.context
    )
    same = last.made_by(code, compute, context)
    return before.earlier if same else (*before.earlier, last)


def _versions() -> dict[str, str]:
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # a build that carries no metadata
            found[name] = "unknown"
    return found


def _checkout(package: Path) -> tuple[str | None, bool | None]:
    """Return commit and dirtiness, or None twice where git does not track the package."""
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None, None
    commit = _git(package, "rev-parse", "HEAD")
    changes = _git(package, "status", "--porcelain", "--untracked-files=no")
    return commit, None if changes is None else bool(changes)


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(folder), *arguments],
            capture_output=True, text=True, timeout=10, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
