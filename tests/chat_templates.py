"""Chat templates in the manner of well-known models, with the control tokens of MobileMoE."""

from __future__ import annotations

# In the manner of Qwen 2.5 and Hermes: tools as JSON in the system's turn, calls as JSON in tags.
TOOLS = """\
{{- '<|begin_of_text|>' -}}
{%- if tools -%}
{{- '<|header_start|>system<|header_end|>\\n\\nTools:' -}}
{%- for tool in tools %}{{ '\\n' + (tool | tojson) }}{% endfor -%}
{{- '<|eot|>' -}}
{%- endif -%}
{%- for message in messages -%}
{%- if message.role == 'tool' -%}
{{- '<|header_start|>user<|header_end|>\\n\\n<result>\\n' -}}
{{- message.content + '\\n</result><|eot|>' -}}
{%- else -%}
{{- '<|header_start|>' + message.role + '<|header_end|>\\n\\n' -}}
{%- if message.content %}{{ message.content }}{% endif -%}
{%- for call in message.tool_calls or [] -%}
{{- '\\n<call>\\n{"name": "' + call.function.name + '", "arguments": ' -}}
{{- call.function.arguments | tojson }}{{ '}\\n</call>' -}}
{%- endfor -%}
{{- '<|eot|>' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|header_start|>assistant<|header_end|>\\n\\n' }}{% endif -%}
"""

# The same, for arguments that are JSON texts already, as OpenAI has them.
TOOLS_AS_TEXT = TOOLS.replace(
    "{{- call.function.arguments | tojson }}", "{{- call.function.arguments }}"
)

# In the manner of ChatML: blanks at the ends of contents go, a line end follows each turn.
TRIMMING = """\
{% for message in messages %}
{{ '<|header_start|>' + message['role'] + '<|header_end|>' }}
{{- message['content'] | trim + '<|eot|>' }}
{% endfor %}
{% if add_generation_prompt %}{{ '<|header_start|>assistant<|header_end|>' }}{% endif %}
"""

# Answers marked, as transformers' `return_assistant_tokens_mask` needs it.
MARKED = """\
{{- '<|begin_of_text|>' -}}
{%- for message in messages -%}
{{- '<|header_start|>' + message['role'] + '<|header_end|>' -}}
{%- if message['role'] == 'assistant' -%}
{% generation %}{{ message['content'] + '<|eot|>' }}{% endgeneration %}
{%- else -%}
{{- message['content'] + '<|eot|>' -}}
{%- endif -%}
{%- endfor -%}
"""

# In the manner of Qwen 3: what came before the last question is written without its thoughts.
FORGETTING = """\
{%- for message in messages -%}
{{- '<|header_start|>' + message['role'] + '<|header_end|>' -}}
{{- message['content'] if loop.last else message['content'].split('</think>')[-1] -}}
{{- '<|eot|>' -}}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|header_start|>assistant<|header_end|>' }}{% endif -%}
"""
