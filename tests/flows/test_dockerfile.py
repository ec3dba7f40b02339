"""The Dockerfile, read as Docker reads it: one instruction a line; nothing here builds it."""

import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "deployments" / "Dockerfile"
KNOWN = {
    "ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL",
    "ONBUILD", "RUN", "SHELL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR",
}  # fmt: skip


def instructions():
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.M)
    joined = re.sub(r"\\\n\s*", "", text)
    return [tuple(line.split(None, 1)) for line in joined.splitlines() if line.strip()]


def those(word):
    return [rest for name, rest in instructions() if name == word]


def test_every_line_is_an_instruction():
    assert {name for name, _ in instructions()} <= KNOWN
    assert instructions()[0][0] == "FROM"


def test_all_that_is_copied_is_there_and_travels_to_the_builder():
    kept = [
        line.removeprefix("!")
        for line in (DOCKERFILE.parent / "Dockerfile.dockerignore").read_text().splitlines()
        if line.startswith("!")
    ]
    copied = [source for rest in those("COPY") for source in rest.split()[:-1]]
    for source in copied:
        assert (ROOT / source).exists(), source
        assert any(fnmatch(source, one) for one in kept), f"{source} is ignored"
    assert sorted(copied) == sorted(kept)  # and nothing else travels


def test_the_package_can_be_built_from_what_is_copied():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = {project["project"]["readme"], *project["project"]["license-files"], "pyproject.toml"}
    packages = project["tool"]["setuptools"]["packages"]["find"]["include"]
    needed |= {name.rstrip("*") for name in packages}
    copied = {source for rest in those("COPY") for source in rest.split()[:-1]}
    assert needed <= copied
    version = re.match(r"python:(\d+)\.(\d+)-", those("FROM")[0])
    low, high = re.findall(r"3\.(\d+)", project["project"]["requires-python"])
    assert int(low) <= int(version[2]) < int(high)


def test_everything_is_installed_at_the_version_that_was_tested():
    installs = [rest for rest in those("RUN") if "pip install" in rest]
    assert len(installs) == 2
    assert all("--constraint constraints.txt" in rest for rest in installs)
    assert re.search(r"^torch==", (ROOT / "constraints.txt").read_text(), re.M)


def test_whoever_builds_it_chooses_the_build_of_torch():
    (given,) = those("ARG")
    name, _, default = given.partition("=")
    assert default.startswith("https://")
    (torch,) = [rest for rest in those("RUN") if rest.endswith(" torch")]
    assert f'--index-url "${{{name}}}"' in torch


def test_it_runs_as_nobody_in_particular_and_holds_no_secret():
    words = [name for name, _ in instructions()]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", those("USER")[-1])
    assert "RUN" not in words[words.index("USER") :]
    secrets = r"(?i)token|passw|secret|credential|api_?key"
    for name, rest in instructions():
        assert not re.search(secrets, rest), f"{name} {rest}"
