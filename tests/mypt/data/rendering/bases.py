"""Small bases with chat templates in the styles of today's families, written for these tests."""

import json
from functools import cache

import tokenizers
import transformers

from tests.mypt.data.vocabularies.test_huggingface import digits, sentencepiece, split, trained

CHATML = """\
{%- if messages[0].role != 'system' %}
{{- '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}"""
LLAMA = """\
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = '' %}
{%- endif %}
{{- '<|start|>system<|end|>\\n\\nCutting Knowledge Date: December 2023\\nToday Date: ' }}
{{- strftime_now('%d %b %Y') + '\\n\\n' + system_message + '<|eot|>' }}
{%- for message in messages %}
    {%- if message.role == 'tool' %}
        {{- '<|start|>ipython<|end|>\\n\\n' }}{{- message.content | tojson }}{{- '<|eot|>' }}
    {%- elif message.tool_calls %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start|>assistant<|end|>\\n\\n' }}
        {{- '{"name": "' + call.name + '", "parameters": ' }}{{- call.arguments | tojson }}
        {{- '}' }}{{- '<|eot|>' }}
    {%- else %}
        {{- '<|start|>' + message.role + '<|end|>\\n\\n' + message.content | trim + '<|eot|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant<|end|>\\n\\n' }}{% endif %}"""
MISTRAL = """\
{{- bos_token }}
{%- set ns = namespace(system='') %}
{%- for message in messages %}
    {%- if message.role == 'system' %}
        {%- set ns.system = message.content + '\\n\\n' %}
    {%- elif message.role == 'user' %}
        {{- '[INST] ' + (ns.system if loop.index0 < 2 else '') + message.content }}{{- ' [/INST]' }}
    {%- elif message.role == 'assistant' %}
        {{- ' ' + message.content | trim + eos_token }}
    {%- else %}
        {{- raise_exception('only user and assistant speak here') }}
    {%- endif %}
{%- endfor %}"""
GEMMA = """\
{{- bos_token }}
{%- if messages[0].role == 'system' %}
    {%- set first = messages[0].content + '\\n\\n' %}{%- set rest = messages[1:] %}
{%- else %}
    {%- set first = '' %}{%- set rest = messages %}
{%- endif %}
{%- for message in rest %}
    {%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate user, assistant') }}
    {%- endif %}
    {%- set role = 'model' if message.role == 'assistant' else message.role %}
    {{- '<start_of_turn>' + role + '\\n' + (first if loop.first else '') }}
    {{- message.content | trim }}{{- '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{% endif %}"""
QWEN = """\
{%- if tools %}{{- '<|im_start|>system\\n# Tools\\n' }}{%- for tool in tools %}{{- tool | tojson }}
{%- endfor %}{{- '<|im_end|>\\n' }}{% endif %}
{%- set ns = namespace(asked=-1) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{%- set ns.asked = loop.index0 %}{% endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {%- set content = message.content %}
        {%- set thought = message.reasoning_content or '' %}
        {%- if '</think>' in content %}
            {%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.index0 > ns.asked and (loop.last or thought) %}
            {{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- content }}
        {%- endif %}
        {%- for call in message.tool_calls or [] %}
            {%- if not loop.first or content %}{{- '\\n' }}{% endif %}
            {{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
            {{- call.function.arguments | tojson }}{{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}"""
BREAKS = """\
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n<think>\\n' }}{% endif %}"""
OPENS = """\
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.role == 'assistant' and loop.last %}{{- '<think>\\n\\n</think>\\n' }}{% endif %}
{{- message.content + '<|im_end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n<think>\\n\\n</think>\\n' }}
{%- endif %}"""
GENERATION = """\
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.role == 'assistant' %}
{%- generation %}{{- message.content + '<|im_end|>' }}{%- endgeneration %}
{%- else %}{{- message.content + '<|im_end|>' }}{% endif %}{{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}"""
HARMONY = """\
{%- for message in messages %}
{%- if message.role != 'assistant' %}
{{- '<|start|>' + message.role + '<|end|>' + message.content + '<|im_end|>' }}
{%- else %}
{{- '<|start|>assistant<|end|>' + message.content }}
{{- '<|eot|>' if loop.last else '<|im_end|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant<|end|>' }}{% endif %}"""
GLM = """\
{{- '[INST]' }}
{%- for message in messages %}
{{- ('<|start|>' if message.role == 'user' else '<|end|>') + '\\n' + message.content }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|end|>\\n' }}{% endif %}"""
GLM_CALLS = """\
{{- '[INST]' }}
{%- for message in messages %}
    {%- if message.role == 'tool' %}{{- '<tool_response>\\n' + message.content }}
    {%- else %}
        {{- ('<|start|>' if message.role == 'user' else '<|end|>') + '\\n' + message.content }}
        {%- for call in message.tool_calls or [] %}
            {{- '<tool_call>' + call.function.name + ' ' }}{{- call.function.arguments | tojson }}
            {{- '</tool_call>' }}
        {%- endfor %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|end|>\\n' }}{% endif %}"""
CHANNELS = """\
{%- for message in messages %}
{%- if message.role != 'assistant' %}
{{- '<|start|>' + message.role + '<|end|>' + message.content + '<|im_end|>' }}
{%- else %}
{%- if message.thinking and loop.last %}
{{- '<|start|>assistant<|end|>' + message.thinking + '<|im_end|>' }}
{%- endif %}
{{- '<|start|>assistant<|end|>' + message.content }}
{{- '<|eot|>' if loop.last else '<|im_end|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant<|end|>' }}{% endif %}"""
R1 = """\
{%- set ns = namespace(system='') %}
{%- for message in messages if message.role == 'system' %}
    {%- set ns.system = ns.system + message.content %}
{%- endfor %}
{{- bos_token + ns.system }}
{%- for message in messages %}
    {%- if message.role == 'user' %}{{- '<|start|>' + message.content }}
    {%- elif message.role == 'assistant' %}
        {{- '<|end|>' + message.content.split('</think>')[-1] + '<|eot|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|end|><think>\\n' }}{% endif %}"""
NEMOTRON = """\
{%- set ns = namespace(asked=-1) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{%- set ns.asked = loop.index0 %}{% endif %}
{%- endfor %}
{{- '<|im_start|>system\\n' }}
{%- if messages[0].role == 'system' %}{{- messages[0].content }}{% endif %}{{- '<|im_end|>\\n' }}
{%- for message in messages %}
    {%- if message.role == 'user' %}{{- '<|im_start|>user\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {%- set content = message.content.split('</think>')[-1] | trim %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.index0 > ns.asked and message.reasoning_content %}
            {{- '<think>\\n' + message.reasoning_content | trim + '\\n</think>\\n' + content }}
        {%- else %}{{- '<think></think>' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n<think>\\n' }}{% endif %}"""
CONTROLS = (
    "<bos>", "</s>", "<|im_start|>", "<|im_end|>", "<|start|>", "<|end|>", "<|eot|>",
    "<start_of_turn>", "<end_of_turn>", "<think>", "</think>", "<tool_call>", "</tool_call>",
    "<tool_response>", "</tool_response>", "[INST]", "[/INST]",
)  # fmt: skip
STYLES = {
    "chatml": CHATML, "llama": LLAMA, "mistral": MISTRAL, "gemma": GEMMA, "qwen": QWEN,
    "generation": GENERATION,
}  # fmt: skip
STOPS = {
    "chatml": "<|im_end|>", "llama": "<|eot|>", "mistral": "</s>", "gemma": "<end_of_turn>",
    "qwen": "<|im_end|>", "generation": "<|im_end|>",
}  # fmt: skip


@cache
def _trained(special_digits, scheme):
    if scheme:
        return sentencepiece(scheme, CONTROLS).to_str()
    return trained(digits() if special_digits else split(), specials=CONTROLS).to_str()


def write_base(folder, template, *, special_digits=False, scheme="", **config):
    """Write a base's tokenizer and template; return what transformers makes of them."""
    folder.mkdir(parents=True, exist_ok=True)
    made = tokenizers.Tokenizer.from_str(_trained(special_digits, scheme))
    made.save(str(folder / "tokenizer.json"))
    values = {"bos_token": "<bos>", "eos_token": "</s>"} | config
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
    (folder / "chat_template.jinja").write_text(template)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(made.to_str()), **values
    )
    fast.chat_template = template
    return fast
