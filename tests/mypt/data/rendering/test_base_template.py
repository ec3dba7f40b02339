"""A dataset in a base's own form, from the folder to validation, and back from its state."""

import json
import random

import pytest

pytest.importorskip("transformers", reason="pip install 'mypt[dev]'")

from mypt.config import MaskPolicy, Preparation, PrepareConfig, Source
from mypt.data.dataset import open_dataset, prepare
from mypt.data.preparation import parallel
from mypt.data.rendering.base_template import base_template
from mypt.data.tokenizer import load_tokenizer
from mypt.errors import DataError
from mypt.inspection.validation import validate
from tests.mypt.data.rendering.bases import BREAKS, CHATML, QWEN, STYLES, write_base

WORDS = ["Hello", "a\nb", "  two  spaces", "\n\nlead", "trail \n", "</think>", "<|im_end|>"]


def write_rows(path, n=60):
    draw = random.Random(1)
    rows = []
    for number in range(n):
        turns = []
        for _ in range(draw.randint(1, 3)):
            for role in ("user", "assistant"):
                said = f"{number} {draw.choice(WORDS)} {draw.choice(WORDS)}"
                turns.append({"role": role, "content": said[draw.randint(0, 1) * 3 :]})
        rows.append({"messages": turns})
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def made(tmp_path, template, name="base", **how):
    write_base(tmp_path / "base", template)
    raw = write_rows(tmp_path / "rows.jsonl")
    config = PrepareConfig(
        sources=(Source(path=str(raw)),), tokenization=f"hf:{tmp_path / 'base'}", template=name
    )
    prepare(config, MaskPolicy(), tmp_path / "data", **how)
    return open_dataset(tmp_path / "data")


@pytest.mark.parametrize("style", STYLES)
def test_a_dataset_in_the_bases_own_form_is_sound(style, tmp_path):
    dataset = made(tmp_path, STYLES[style])
    (source,) = dataset.manifest.sources
    kept = sum(shard.n_rows for shard in dataset.manifest.shards)
    assert kept + sum(count.rows for count in source.dropped) == source.rows_read
    report = validate(tmp_path / "data")
    assert not [finding for finding in report.findings if finding.level == "error"]
    assert dataset.manifest.template == dataset.tokenizer.template.digest


def test_a_base_whose_own_template_is_passed_over_is_told(tmp_path):
    (source,) = made(tmp_path, QWEN, "chatml").manifest.sources
    (note,) = [note for note in source.notes if "though the base has its own" in note.reason]
    assert note.rows == source.rows_read
    assert "template chatml" in note.reason


def test_workers_make_the_same_dataset_and_count_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "_WORTH_PROCESSES", 0)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one = made(tmp_path / "a", QWEN, preparation=Preparation(engine="serial")).manifest
    two = made(tmp_path / "b", QWEN, preparation=Preparation(engine="process", workers=2)).manifest
    assert one.digest == two.digest
    assert one.sources[0].dropped


def test_a_template_whose_every_row_breaks_the_law_is_an_error_that_shows_how(tmp_path):
    with pytest.raises(DataError, match=r"every row was dropped .*<think>"):
        made(tmp_path, BREAKS)


def test_a_template_lies_beside_the_tokenizer_or_in_its_config(tmp_path):
    write_base(tmp_path, QWEN)
    beside = base_template(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": QWEN}]
    for found in (QWEN, named):
        (tmp_path / "tokenizer_config.json").write_text(
            json.dumps(config | {"chat_template": found})
        )
        assert base_template(tmp_path) == beside


def test_another_template_text_is_another_tokenizer(tmp_path):
    write_base(tmp_path, QWEN)
    one = load_tokenizer(f"hf:{tmp_path}", "base")
    (tmp_path / "chat_template.jinja").write_text(QWEN + " ")
    two = load_tokenizer(f"hf:{tmp_path}", "base")
    assert one.template.digest != two.template.digest
    assert one.digest != two.digest


def test_a_template_without_a_token_that_ends_an_answer_is_refused(tmp_path):
    write_base(
        tmp_path, "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    )
    with pytest.raises(DataError, match="expected a token that ends it"):
        base_template(tmp_path)


def test_the_table_of_templates_says_what_is_proved_and_what_is_refused(tmp_path, monkeypatch):
    from tests.benchmarks import templates

    monkeypatch.setattr(templates, "ROWS", 5)
    monkeypatch.setattr(templates.chat_template_utils, "datetime", None)  # is put back
    for name, source in (("good", CHATML), ("bad", BREAKS), ("none", "{{ 'x' }}")):
        (tmp_path / f"{name}.jinja").write_text(source)
    names = ("good", "bad", "none")
    lines = list(templates.table([tmp_path / f"{name}.jinja" for name in names]))
    assert lines[2].startswith("| good | 5 | 5 | kept |  | ")
    assert lines[3].startswith("| bad | 0 | 0 | broken in 5 plain rows | 0 of ")
    assert lines[4].startswith("| none | - | - | refused |")
    assert "no prefix of what training reads" in lines[6]
