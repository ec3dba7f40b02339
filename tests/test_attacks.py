"""What an attack on the command line found: each is one line now, and none loses anything."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows.cli import main
from mypt import files
from mypt.config import Preset
from mypt.home import models_dir

TINY = Preset(
    n_layer=1, n_head=2, n_embd=16, block_size=32, vocab_size=320, batch_size=2, max_iters=2,
    eval_interval=2, eval_iters=1, warmup_iters=0, use_loss_mask=True, device="cpu",
    dtype="float32", threads=1,
)  # fmt: skip
HUGE = "9" * 30


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("MYPT_HOME", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def raw(tmp_path):
    turns = [
        json.dumps({"role": role, "content": f"{text} {n}"}) + "\n" + "\n" * (role != "user")
        for n in range(30)
        for role, text in (("user", "What is"), ("assistant", "It is"))
    ]
    (tmp_path / "chats.jsonl").write_text("".join(turns))
    return tmp_path / "chats.jsonl"


@pytest.fixture
def data(raw, capsys):
    assert main(f"prepare --input_files {raw} --out_dir d --tokenization byte".split()) == 0
    capsys.readouterr()
    return Path("d")


def write_preset(**changes):
    values = json.loads(TINY.model_dump_json()) | changes
    Path("tiny.json").write_text(json.dumps(values))
    return "tiny.json"


def train(name="m", **changes):
    words = ["train", "--config_file", write_preset(**changes), "--model_name", name]
    return main([*words, "--dataset_dir", "d"])


def refused(capsys, code):
    said = capsys.readouterr().err
    assert code in (1, 2)
    assert len(said.splitlines()) == 1, said
    assert said.startswith("mypt: ")
    return said


@pytest.mark.parametrize("command", ["show d", "diff d d", "diff d e"])
@pytest.mark.parametrize("name", ["shard_000.bin", "shard_000_spans.npy", "shard_000_mask.bin"])
def test_nothing_is_shown_of_damaged_data(data, capsys, command, name):
    assert main(["mask", "d", "--out_dir", "e", "--policy", "user"]) == 0
    capsys.readouterr()
    path = data / "train" / name
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.unlink()  # it shares its bytes with the re-masked dataset
    path.write_bytes(damaged)
    assert name in refused(capsys, main(command.split()))


@pytest.mark.parametrize("command", ["show d --html chats.jsonl", "lineage m --html chats.jsonl"])
def test_a_page_never_replaces_a_file(data, raw, capsys, command):
    assert data.is_dir()
    assert train() == 0
    before = raw.read_bytes()
    capsys.readouterr()
    assert "chats.jsonl exists" in refused(capsys, main(command.split()))
    assert raw.read_bytes() == before


def test_a_chat_file_is_no_tree(raw, capsys):
    command = f"prepare --input_files {raw} --out_dir t --tokenization byte --format tree"
    assert "replies" in refused(capsys, main(command.split()))
    assert not Path("t").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_training_that_is_asked_to_stop_saves_first(data, number, code):
    words = ["train", "--config_file", write_preset(max_iters=100_000), "--model_name", "long"]
    program = [sys.executable, "-m", "flows.cli", *words, "--dataset_dir", str(data)]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    with subprocess.Popen(
        program, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as child:
        for line in child.stdout:
            if line.startswith("step 4:"):
                break
        time.sleep(0.2)
        child.send_signal(number)
        rest = child.stdout.read()
        assert child.wait(60) == code, rest
    assert "stopped at step" in rest
    assert (models_dir() / "long" / "latest").is_file()


@pytest.mark.parametrize(
    "changes",
    [
        {"learning_rate": float("inf")}, {"block_size": 10**12}, {"vocab_size": 10**15},
        {"batch_size": 10**24}, {"n_layer": 10**9}, {"n_embd": 10**12}, {"seed": 10**40},
    ],
)  # fmt: skip
def test_senseless_sizes_are_refused_and_take_no_name(data, capsys, changes):
    assert data.is_dir()
    said = refused(capsys, train(**changes))
    assert next(iter(changes)) in said
    assert train() == 0


def test_a_start_that_failed_leaves_its_name_free(data, capsys):
    assert data.is_dir()
    path = data / "train" / "shard_000.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    refused(capsys, train())
    path.write_bytes(whole)
    assert train(learning_rate=1e-4) == 0


@pytest.mark.parametrize(
    "command",
    [
        f"prepare --input_files chats.jsonl --out_dir x --tokenization byte --shard_tokens {HUGE}",
        "prepare --config deep.json --out_dir x",
        "prepare --config heavy.json --out_dir x",
        "prepare --input_files chats.jsonl --out_dir /proc/x --tokenization byte",
        f"validate d --block_size {HUGE}",
        "validate d --block_size 0",
        "validate d --block_size -5",
        "show d --rows 0",
        "generate m --prompt hi --temperature inf",
        "generate m --prompt hi --temperature 1e-320",
        f"generate m --prompt hi --temperature 1 --seed {HUGE}",
        "generate m --prompt hi --max_tokens -1",
        "lineage m --row chats.jsonl:" + "9" * 5000,
        "lineage broken",
        "up --prefect_port -1",
        "up --mlflow_port 99999999",
    ],
    ids=lambda command: command[:60],
)
def test_what_used_to_be_a_traceback_or_silence_is_one_line(data, capsys, command):
    assert data.is_dir()
    Path("deep.json").write_text("[" * 100_000)
    Path("heavy.json").write_text('{"sources": [{"path": "chats.jsonl", "weight": 1e999}]}')
    assert train() == 0
    broken = models_dir() / "broken"
    broken.mkdir(parents=True)
    (broken / "latest").write_bytes(b"\xff\xff")
    capsys.readouterr()
    refused(capsys, main(command.split()))


def test_errors_hold_no_escape_sequences(capsys):
    assert "\x1b" not in refused(capsys, main(["lineage", "\x1b[31m"]))
    assert "\x1b" not in refused(capsys, main(["\x1b[31mx\ny"]))


def test_a_prepare_that_is_asked_to_stop_leaves_nothing(tmp_path):
    (tmp_path / "big.txt").write_text("\n".join(f"line {n} of many" for n in range(2_000_000)))
    words = ["prepare", "--input_files", "big.txt", "--out_dir", "out", "--tokenization", "byte"]
    program = [sys.executable, "-m", "flows.cli", *words]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(program, env=environment, stderr=subprocess.PIPE, text=True) as child:
        while not Path(".tmp-out").exists():
            time.sleep(0.01)
        child.send_signal(signal.SIGTERM)
        said = child.stderr.read()
        assert child.wait(60) == 143, said
    assert said.splitlines()[-1].startswith("mypt: stopped by SIGTERM")
    assert [path.name for path in tmp_path.glob("*out*")] == [".out.lock"]


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("prepare --input_files chats.jsonl --out_dir x --shard_tokens 1.5", "1.5"),
        ("show d --rows 1.5", "1.5"),
        ("validate d --block_size 8.0", "8.0"),
        ("train --config_file texts.json --model_name m --dataset_dir d", "n_layer: expected"),
        ("train --config_file truths.json --model_name m --dataset_dir d", "n_layer: expected"),
        ("run misspelt.json", "unknown key 'pretrian'; did you mean 'pretrain'?"),
        ("run leaving.json", "name: String should match pattern"),
        ("run nope.json", "configs/demo.json"),
        (f"mask d --out_dir e --policy {'x' * 9000}", "is no word of a policy"),
        ("prepare --input_files chats.jsonl --out_dir x --mask_role usr", "--mask_role: 'usr'"),
        ("prepare --config heavy.json --out_dir x", "weight: expected"),
        ("train --config_file tiny.json --model_name ../m --dataset_dir d", "no plain name"),
        ("prepare --input_files chats.jsonl --out_dir x --tokenization bpe:-1", "bpe:N"),
        ("show d --html d", "exists"),
        ("show d --html none/page.html", "none"),
        ("train --config_file tiny.json --model_name m --dataset_dir chats.jsonl", "chats.jsonl"),
        (f"prepare --input_files {'y' * 5000} --out_dir x", "y…: File name too long"),
        ("diff d nope", "nope"),
    ],
    ids=lambda value: value[:50],
)
def test_what_is_wrong_is_named(data, capsys, command, says):
    assert data.is_dir()
    write_preset()
    for name, n_layer in (("texts", "1"), ("truths", True)):
        values = json.loads(TINY.model_dump_json()) | {"n_layer": n_layer}
        Path(f"{name}.json").write_text(json.dumps(values))
    Path("misspelt.json").write_text('{"pretrian": {}}')
    source = {"path": "chats.jsonl", "weight": 1e308}
    Path("heavy.json").write_text(json.dumps({"sources": [source]}))
    part = {"sources": [{"path": "chats.jsonl"}]}
    stages = {"base": part, "chat": part, "pretrain": {}, "sft": {}}
    Path("leaving.json").write_text(json.dumps({"name": "../x"} | stages))
    assert says in refused(capsys, main(command.split()))
    assert not Path("x").exists()


@pytest.mark.parametrize("pairs", ["user=user,user=assistant", "=user", "human", "human="])
def test_a_role_name_is_paired_once(raw, capsys, pairs):
    command = f"prepare --input_files {raw} --out_dir x --format mapping --role_names {pairs}"
    assert "--role_names" in refused(capsys, main(command.split()))


@pytest.mark.parametrize(
    "words",
    [["validate", ""], ["diff", "", ""], ["show", "d", "--html", ""], ["validate", "d", "--x="]],
)
def test_an_empty_word_is_no_folder(capsys, words):
    assert "an empty word" in refused(capsys, main(words))


def test_a_report_and_its_proof_are_one_json(data, capsys):
    assert main(["validate", str(data), "--json", "--prove"]) == 0
    assert json.loads(capsys.readouterr().out)["proof"]["checks"]


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("lineage --uses nope", "no such dataset or file"),
        (
            "prepare --input_files one.txt --out_dir x --tokenization byte",
            "one row is all there is",
        ),
        ("prepare --input_files a.json --out_dir x --template alpaca", "template mypt"),
        ("prepare --input_files chats.jsonl", "--out_dir is missing; see 'mypt prepare --help'"),
        ("prepare chats.jsonl --out_dir x", "'chats.jsonl' belongs to no flag"),
        ("prepare --out_dir x", "none was given"),
        ("show d --row 0 --search hi", "--row and --search"),
        ("show d --html h.html --why", "leave --row, --search, --why"),
        ("run tiny.json", "'mypt train --config_file tiny.json'"),
        ("train --config_file demo.json --model_name n --dataset_dir d", "mypt run demo.json"),
        ("prepare --input_files chats.jsonl --out_dir x --tokenization gtp2", "'gpt2'? expected"),
        ("diff d data/nope", "no dataset, no model"),
        (
            "train --config_file longer.json --model_name m --dataset_dir d",
            "give --extend to go on",
        ),
    ],
    ids=lambda value: value[:50],
)
def test_what_a_newcomer_mistakes_is_explained(data, capsys, command, says):
    assert data.is_dir()
    assert train() == 0
    longer = json.loads(TINY.model_dump_json()) | {"max_iters": 3}
    Path("longer.json").write_text(json.dumps(longer))
    Path("demo.json").write_text('{"name": "x", "base": {}}')
    Path("one.txt").write_text("a line of words\n")
    rows = [{"instruction": f"Say {n}", "output": f"{n}"} for n in range(9)]
    Path("a.json").write_text(json.dumps(rows))
    capsys.readouterr()
    said = refused(capsys, main(command.split()))
    assert says in said
    assert not Path("x").exists()


def test_shards_that_are_adopted_broken_are_not_taken_in_silence(data, capsys):
    made = Path("made")
    for split in ("train", "val"):
        (made / split).mkdir(parents=True)
        tokens = (data / split / "shard_000.bin").read_bytes()
        (made / split / "shard_000.bin").write_bytes(tokens)
        (made / split / "shard_000_mask.bin").write_bytes(b"\1" * (len(tokens) // 4))
    state = (data / "tokenizer_state.json").read_bytes()
    (made / "tokenizer_state.json").write_bytes(state)
    assert main(["adopt", "made"]) == 1
    assert "everything is supervised" in capsys.readouterr().out


def test_a_second_reproduction_has_a_folder_of_its_own(data):
    assert data.is_dir()
    assert train() == 0
    assert main(["reproduce", "m"]) == 0
    assert main(["reproduce", "m"]) == 0


def forge_lineage(**changes):
    """Change what the lineage of model m says, with a digest that fits."""
    (folder,) = (models_dir() / "m").glob("step_*")
    values = files.read_sealed(folder / "lineage.json")
    values = {key: value for key, value in values.items() if key != "digest"} | changes
    files.write_sealed(folder / "lineage.json", values)


@pytest.mark.parametrize("name", ["../../../out", "/tmp/out", "a\x1b[31m", ""])
@pytest.mark.parametrize("command", ["reproduce m", "lineage m", "generate m --prompt hi"])
def test_a_name_in_a_lineage_leaves_no_folder(data, tmp_path, capsys, name, command):
    assert data.is_dir()
    assert train() == 0
    forge_lineage(model_name=name)
    capsys.readouterr()
    assert "model_name is not what mypt writes" in refused(capsys, main(command.split()))
    assert not [place for place in tmp_path.parents if (place / "out").exists()]
    assert not [path for path in tmp_path.rglob("*out*") if path.is_dir()]


@pytest.mark.parametrize("tokenization", ["gpt2", "bpe:300"])
def test_a_million_white_spaces_are_one_line(tmp_path, capsys, tokenization):
    content = json.dumps("x" + " " * 10**6 + "y")
    lines = [f'{{"role": "user", "content": {content}}}', '{"role": "assistant", "content": "a"}']
    (tmp_path / "w.jsonl").write_text(("\n".join(lines) + "\n\n") * 3)
    command = f"prepare --input_files w.jsonl --out_dir x --tokenization {tokenization}"
    assert "a run of 1,000,000 white spaces" in refused(capsys, main(command.split()))
    assert not Path("x").exists()


def test_more_shards_than_files_may_be_open_by_default(raw, tmp_path):
    lines = raw.read_text() * 12
    raw.write_text(lines)
    program = [sys.executable, "-m", "flows.cli"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    words = f"prepare --input_files {raw} --out_dir d --tokenization byte --shard_tokens 40"
    for command in (words, "validate d"):
        done = subprocess.run(
            [*program, *command.split()], env=environment, cwd=tmp_path,
            preexec_fn=lambda: resource.setrlimit(
                resource.RLIMIT_NOFILE, (256, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
            ),
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "d" / "train").glob("*_mask.bin"))) > 100


def test_a_table_that_unpacks_to_much_more_than_it_is_is_refused(tmp_path, capsys, monkeypatch):
    import pyarrow as pa
    from pyarrow import parquet

    from mypt.data.exchange import labels

    monkeypatch.setattr(labels, "_FREE", 1 << 20)
    rows = pa.array([[7] * 100_000] * 30, pa.list_(pa.int32()))
    table = pa.table({"input_ids": rows, "labels": rows})
    (tmp_path / "t").mkdir()
    parquet.write_table(table, tmp_path / "t" / "train.parquet", compression="zstd")
    assert "unpack to more than" in refused(capsys, main(["adopt", "t", "--out_dir", "x"]))
    assert not Path("x").exists()


EVIL = "\x1b[2J\u202e[link=http://evil]x[/link]"


@pytest.mark.parametrize(
    "command",
    ["lineage m", "lineage m --verify", "list", "diff m n", "plan tiny.json", "reproduce m",
     "lineage m --rows", "evaluate m", "generate m --prompt hi --max_tokens 2",
     "lineage m --html page.html", "evaluate m --out_dir report"],
)  # fmt: skip
def test_what_a_lineage_says_steers_no_terminal_and_no_page(data, capsys, command):
    assert data.is_dir()
    assert train() == 0
    assert train("n", seed=1) == 0
    (folder,) = (models_dir() / "m").glob("step_*")
    values = json.loads((folder / "lineage.json").read_bytes())
    poisoned = json.dumps([values["dataset"], values["code"], values["compute"]])
    for good in ("chats.jsonl", values["code"]["version"], values["compute"]["machine"]):
        poisoned = poisoned.replace(json.dumps(good)[1:-1], json.dumps(good + EVIL)[1:-1])
    dataset, code, compute = json.loads(poisoned)
    forge_lineage(dataset=dataset, code=code, compute=compute)
    capsys.readouterr()
    main(command.split())
    said = "".join(capsys.readouterr())
    assert said
    said += "".join(path.read_text() for path in Path().rglob("*.html"))
    assert "\x1b" not in said
    assert "\u202e" not in said
