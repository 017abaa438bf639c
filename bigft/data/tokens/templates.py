"""Chat templates by name, for tokenizers that bring none or to train another format.

The `generation` tags mark what the assistant says; transformers reports those characters, so the
loss mask comes from the rendering itself. Whatever the format describes as fixed words (headers,
Vicuna's and Alpaca's opening sentence) is written as it is there; how tools are shown in ChatML
follows the Hermes models, in Llama 3 the description of Llama 3.1's JSON calls, in Mistral the
third version of its instruct format. The others know no tools, and refuse them.

Sources: the model cards and prompt-format pages of the models that the formats are named after.
"""

IM_START = "<|im_start|>"
IM_END = "<|im_end|>"

_TOOLS_ASKED = """
{%- if tools or messages | selectattr('role', 'equalto', 'tool') | list
    or messages | selectattr('tool_calls', 'defined') | list %}
    {{- raise_exception('the chat template NAME has no place for tools; set '
        '--model.chat_template to chatml, llama3 or mistral') }}
{%- endif %}"""


def _without_tools(name: str, template: str) -> str:
    return (_TOOLS_ASKED.replace("NAME", name) + template).strip()


# The functions stand in the system turn, behind its own words. No `loop` outside of calls: it makes
# a short conversation's rendering slower by a fifth.
CHATML_TEMPLATE = """
{%- set turns = messages %}
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {%- set turns = messages[1:] %}
        {{- messages[0].content + '\\n\\n' if messages[0].content }}
    {%- endif %}
    {{- 'You can call functions. Each line between the tags describes one in JSON:\\n<tools>\\n' }}
    {%- for tool in tools %}
        {{- tool | tojson + '\\n' }}
    {%- endfor %}
    {{- '</tools>\\nTo call a function, write its name and arguments in JSON:\\n'
        '<tool_call>\\n{"name": "...", "arguments": {...}}\\n</tool_call><|im_end|>\\n' }}
{%- endif %}
{%- for message in turns %}
    {%- if message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- generation %}
            {{- message.content or '' }}
            {%- if message.tool_calls %}
                {%- for call in message.tool_calls %}
                    {{- '\\n' if message.content or not loop.first }}
                    {{- '<tool_call>\\n{"name": ' + call.function.name | tojson }}
                    {{- ', "arguments": ' }}
                    {%- if call.function.arguments is string %}
                        {{- call.function.arguments }}
                    {%- else %}
                        {{- call.function.arguments | tojson }}
                    {%- endif %}
                    {{- '}\\n</tool_call>' }}
                {%- endfor %}
            {%- endif %}
            {{- '<|im_end|>' }}
        {%- endgeneration %}
        {{- '\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + (message.content or '') + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
""".strip()

_LLAMA3 = """
{{- bos_token }}
{%- if tools %}
    {{- '<|start_header_id|>system<|end_header_id|>\\n\\nEnvironment: ipython\\n\\n' }}
    {%- if messages[0].role == 'system' and messages[0].content %}
        {{- messages[0].content | trim + '\\n\\n' }}
    {%- endif %}
    {{- 'These functions can be called, each described in JSON. To call one, answer only with '
        '{"name": function name, "parameters": {argument name: value}}.\\n\\n' }}
    {%- for tool in tools %}
        {{- tool | tojson + '\\n' }}
    {%- endfor %}
    {{- '<|eot_id|>' }}
{%- endif %}
{%- for message in messages %}
    {%- if not (tools and loop.first and message.role == 'system') %}
        {%- set role = 'ipython' if message.role == 'tool' else message.role %}
        {{- '<|start_header_id|>' + role + '<|end_header_id|>\\n\\n' }}
        {%- if message.role == 'assistant' %}
            {%- if message.tool_calls and message.tool_calls | length > 1 %}
                {{- raise_exception('the chat template llama3 has one call of a tool per turn') }}
            {%- endif %}
            {%- generation %}
                {{- (message.content or '') | trim }}
                {%- for call in message.tool_calls or [] %}
                    {{- '\\n' if message.content }}
                    {{- '{"name": ' + call.function.name | tojson + ', "parameters": ' }}
                    {%- if call.function.arguments is string %}
                        {{- call.function.arguments }}
                    {%- else %}
                        {{- call.function.arguments | tojson }}
                    {%- endif %}
                    {{- '}' }}
                {%- endfor %}
                {{- '<|eot_id|>' }}
            {%- endgeneration %}
        {%- else %}
            {{- (message.content or '') | trim + '<|eot_id|>' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

# Formats without a system turn of their own put its words before the first turn of the user.
_TAKE_SYSTEM = """
{%- set system = messages | selectattr('role', 'equalto', 'system') | map(attribute='content')
    | join('\\n\\n') | trim %}
{%- set state = namespace(system=system) %}"""
_CHECK_SYSTEM = """
{%- if state.system and not add_generation_prompt
    and not messages | selectattr('role', 'equalto', 'user') | list %}
    {{- raise_exception('a system turn needs a turn of the user after it') }}
{%- endif %}"""

_LLAMA2 = """
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {{- bos_token }}
        {{- '[INST] ' }}
        {%- if state.system %}
            {{- '<<SYS>>\\n' + state.system + '\\n<</SYS>>\\n\\n' }}
            {%- set state.system = '' %}
        {%- endif %}
        {{- message.content | trim + ' [/INST]' }}
    {%- elif message.role == 'assistant' %}
        {%- generation %}
            {{- ' ' + message.content | trim + ' ' }}
            {{- eos_token }}
        {%- endgeneration %}
    {%- endif %}
{%- endfor %}
"""

_MISTRAL = """
{{- bos_token }}
{%- set state.tools = tools %}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {%- if state.tools %}
            {{- '[AVAILABLE_TOOLS] ' + state.tools | tojson + '[/AVAILABLE_TOOLS]' }}
            {%- set state.tools = none %}
        {%- endif %}
        {{- '[INST] ' }}
        {%- if state.system %}
            {{- state.system + '\\n\\n' }}
            {%- set state.system = '' %}
        {%- endif %}
        {{- message.content + '[/INST]' }}
    {%- elif message.role == 'tool' %}
        {{- '[TOOL_RESULTS] {"content": ' + (message.content or '') | tojson }}
        {{- ', "call_id": ' + message.tool_call_id | tojson if message.tool_call_id }}
        {{- '}[/TOOL_RESULTS]' }}
    {%- elif message.role == 'assistant' %}
        {%- generation %}
            {{- ' ' + message.content if message.content }}
            {%- if message.tool_calls %}
                {{- '[TOOL_CALLS] [' }}
                {%- for call in message.tool_calls %}
                    {{- '{"name": ' + call.function.name | tojson + ', "arguments": ' }}
                    {%- if call.function.arguments is string %}
                        {{- call.function.arguments }}
                    {%- else %}
                        {{- call.function.arguments | tojson }}
                    {%- endif %}
                    {{- ', "id": ' + call.id | tojson if call.id }}
                    {{- '}' if loop.last else '}, ' }}
                {%- endfor %}
                {{- ']' }}
            {%- endif %}
            {{- eos_token }}
        {%- endgeneration %}
    {%- endif %}
{%- endfor %}
"""

_GEMMA = """
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {{- '<start_of_turn>user\\n' }}
        {%- if state.system %}
            {{- state.system + '\\n\\n' }}
            {%- set state.system = '' %}
        {%- endif %}
        {{- message.content | trim + '<end_of_turn>\\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<start_of_turn>model\\n' }}
        {%- generation %}
            {{- message.content | trim + '<end_of_turn>' }}
        {%- endgeneration %}
        {{- '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<start_of_turn>model\\n' }}
{%- endif %}
"""


def _build_headed(end: str) -> str:
    """Build the form that Phi-3 and Zephyr share: `<|role|>`, a line break, words and an end."""
    return f"""
{{%- for message in messages %}}
    {{{{- '<|' + message.role + '|>\\n' }}}}
    {{%- if message.role == 'assistant' %}}
        {{%- generation %}}
            {{{{- message.content }}}}
            {{{{- {end} }}}}
        {{%- endgeneration %}}
    {{%- else %}}
        {{{{- message.content }}}}
        {{{{- {end} }}}}
    {{%- endif %}}
    {{{{- '\\n' }}}}
{{%- endfor %}}
{{%- if add_generation_prompt %}}
    {{{{- '<|assistant|>\\n' }}}}
{{%- endif %}}
"""


_VICUNA = """
{{- bos_token }}
{%- set opening = 'A chat between a curious user and an artificial intelligence assistant. '
    "The assistant gives helpful, detailed, and polite answers to the user's questions." %}
{{- (system or opening) + ' ' }}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {{- 'USER: ' + message.content + ' ASSISTANT:' }}
    {%- elif message.role == 'assistant' %}
        {%- generation %}
            {{- ' ' + message.content }}
            {{- eos_token }}
        {%- endgeneration %}
    {%- endif %}
{%- endfor %}
"""

_ALPACA = """
{%- set opening = 'Below is an instruction that describes a task. '
    'Write a response that appropriately completes the request.' %}
{{- bos_token }}
{{- (system or opening) + '\\n\\n' }}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {{- '### Instruction:\\n' + message.content + '\\n\\n### Response:\\n' }}
    {%- elif message.role == 'assistant' %}
        {%- generation %}
            {{- message.content }}
            {{- eos_token }}
        {%- endgeneration %}
        {{- '\\n\\n' if not loop.last }}
    {%- endif %}
{%- endfor %}
"""

TEMPLATES = {
    "chatml": CHATML_TEMPLATE,
    "llama3": _LLAMA3.strip(),
    "llama2": _without_tools("llama2", _TAKE_SYSTEM + _CHECK_SYSTEM + _LLAMA2),
    "mistral": (_TAKE_SYSTEM + _CHECK_SYSTEM + _MISTRAL).strip(),
    "gemma": _without_tools("gemma", _TAKE_SYSTEM + _CHECK_SYSTEM + _GEMMA),
    "phi3": _without_tools("phi3", _build_headed("'<|end|>'")),
    "zephyr": _without_tools("zephyr", _build_headed("eos_token")),
    "vicuna": _without_tools("vicuna", _TAKE_SYSTEM + _VICUNA),
    "alpaca": _without_tools("alpaca", _TAKE_SYSTEM + _ALPACA),
}
"""Jinja text by name."""
