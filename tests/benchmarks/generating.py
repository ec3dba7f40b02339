"""Greedy generation of identical tokens, against nanoGPT's way and transformers."""

import copy
from collections.abc import Callable, Iterator

import torch
from harness import Line, interleave, judge, ratio
from masked_step import SMALL
from trl_step import peer

from mypt.config import Architecture, GPTConfig
from mypt.inference.generation import generate, generate_batch
from mypt.inference.huggingface.layouts import write_layout
from mypt.inference.huggingface.weights import to_hf
from mypt.model.compiling import compile_reading, missing_compiler
from mypt.model.gpt import GPT

PROMPT = 32
PEERS = {
    "nanogpt": "nanoGPT's generate (no cache)",
    "transformers": "transformers' generate, with its cache",
}
SMOLLM2 = Architecture(
    block_size=2048, vocab_size=49152, n_layer=30, n_head=9, n_kv_head=3, n_embd=576,
    mlp_width=1536, mlp_type="swiglu", norm_type="rmsnorm", norm_eps=1e-5, pos_encoding="rope",
    rope_base=100_000.0,
)  # fmt: skip
"""SmolLM2-135M's sizes; weights are random, since speed does not hang on them."""
DEMO = GPTConfig(block_size=128, vocab_size=272, n_layer=3, n_head=4, n_embd=128, bias=True)


def lines(*, quick: bool) -> Iterator[Line]:
    """Yield the lines of this area."""
    torch.manual_seed(0)
    model = GPT(SMALL).eval()
    writers = {"": model}
    if not quick and not missing_compiler(torch.device("cpu")):
        writers[", compiled"] = copy.deepcopy(model)
        compile_reading(writers[", compiled"])
    theirs = _with_weights_of(model)
    n = 64 if quick else 224
    for rows, reach in ((8, 10.0),) if quick else ((1, 3.5), (8, 10.0)):
        prompts = torch.randint(SMALL.vocab_size, (rows, PROMPT))
        variants: dict[str, Callable[[], list[list[int]]]] = {
            "nanogpt": lambda p=prompts: _reading_all_again(model, p, n),
            "transformers": lambda p=prompts: theirs.generate(
                p, attention_mask=torch.ones_like(p), max_new_tokens=n, min_new_tokens=n,
                do_sample=False, pad_token_id=0, eos_token_id=None,
            )[:, PROMPT:].tolist(),
        }  # fmt: skip
        for how, writer in writers.items():
            variants[how] = lambda p=prompts, w=writer: generate_batch(w, list(p), max_tokens=n)
        answers = {name: work() for name, work in variants.items()}
        seconds = interleave(variants, 2 if quick else 3)
        for how in writers:
            for peer_name, least in (("nanogpt", reach), ("transformers", 1.4)):
                found = ratio(seconds, how, peer_name)
                same = answers[peer_name] == answers[how]
                yield Line(
                    work=f"generation of {n} tokens, batch {rows}, float32{how}",
                    against=PEERS[peer_name],
                    reach=f">= {least}",
                    measured=str(found),
                    met=judge(found.median, least) if same else "no",
                    note=f"{'identical' if same else 'OTHER'} tokens;"
                    f" {rows * n / min(seconds[how]):.0f} a processor second",
                )
    yield from _as_smollm2(quick=quick)
    if len(writers) > 1:
        yield from (_beside_compiled(DEMO, rows, quick=quick) for rows in (1, 8))


def _as_smollm2(*, quick: bool) -> Iterator[Line]:
    """Compare a request's first token, and a whole answer, with transformers' own Llama."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = GPT(GPTConfig(**SMOLLM2.model_dump())).eval()
    theirs = LlamaForCausalLM(LlamaConfig(**write_layout("llama", SMOLLM2))).eval()
    weights = to_hf("llama", SMOLLM2, dict(model.named_parameters()), torch.float32)
    theirs.load_state_dict(weights, strict=False)
    theirs.tie_weights()
    theirs.generation_config.eos_token_id = None
    prompt = torch.randint(SMOLLM2.vocab_size, (1, PROMPT))
    for n in (1, 8 if quick else 32):
        variants: dict[str, Callable[[], list[int]]] = {
            "transformers": lambda n=n: theirs.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=n,
                min_new_tokens=n, do_sample=False, pad_token_id=0,
            )[0, PROMPT:].tolist(),
            "": lambda n=n: generate(model, prompt[0], max_tokens=n),
        }  # fmt: skip
        same = variants[""]() == variants["transformers"]()
        seconds = interleave(variants, 2 if quick else 7)
        found = ratio(seconds, "", "transformers")
        yield Line(
            work=f"generation of {n} token{'s' * (n > 1)} after {PROMPT}, SmolLM2-135M's sizes,"
            " batch 1, float32",
            against=PEERS["transformers"],
            reach=">= 1.0",
            measured=str(found),
            met=judge(found.median, 1.0) if same else "no",
            note=f"{'identical' if same else 'OTHER'} tokens; {min(seconds['']):.3g} processor"
            " seconds",
        )


def _beside_compiled(config: GPTConfig, rows: int, *, quick: bool) -> Line:
    torch.manual_seed(0)
    plain = GPT(config).eval()
    compiled = copy.deepcopy(plain)
    compile_reading(compiled)
    prompts = list(torch.randint(config.vocab_size, (rows, PROMPT)))
    n = config.block_size - PROMPT
    variants = {
        "compiled": lambda: generate_batch(compiled, prompts, max_tokens=n),
        "plain": lambda: generate_batch(plain, prompts, max_tokens=n),
    }
    same = variants["compiled"]() == variants["plain"]()
    found = ratio(interleave(variants, 2 if quick else 3), "compiled", "plain")
    return Line(
        work=f"generation, compiled, {config.n_layer} layers of {config.n_embd}, V"
        f" {config.vocab_size:,}, batch {rows}, float32",
        against="the same without",
        reach=">= 1.0",
        measured=str(found),
        met=judge(found.median, 1.0) if same else "no",
        note="identical tokens" if same else "OTHER TOKENS",
    )


@torch.no_grad()
def _reading_all_again(model: GPT, prompts: torch.Tensor, n: int) -> list[list[int]]:
    """The recipe of nanoGPT's generate: all tokens through the model, logits of the last one."""
    ids = prompts
    for _ in range(n):
        states = model.hidden(ids[:, -SMALL.block_size :])
        newest = model.lm_head(states[:, -1]).argmax(-1, keepdim=True)
        ids = torch.cat([ids, newest], dim=1)
    return ids[:, prompts.shape[1] :].tolist()


def _with_weights_of(model: GPT) -> torch.nn.Module:
    """Return transformers' GPT-2 with the same weights; it keeps matrices the other way round."""
    theirs = peer(SMALL).eval()
    ours = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if name not in ours:
                parameter.zero_()
                continue
            turned = parameter.dim() == 2 and ".h." in name
            parameter.copy_(ours[name].T if turned else ours[name])
    theirs.generation_config.eos_token_id = None
    return theirs
