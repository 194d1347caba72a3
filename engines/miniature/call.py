"""The one tool call that a miniature makes, and how its weights come to make it.

Random weights never write a tool call, so a few rows are not random. The chat template ends the prompt of a
request with tools, the user having spoken last, as it ends no other (:data:`TRIGGERS`). From there each token of
:data:`CHAIN` calls for the next: its row in the embedding and the next one's row in the head are the same signs,
so that their product beats every word. The last token ends the answer. All other answers are words. Signs,
because every quantized layout holds two values exactly.
"""

from __future__ import annotations

#: A tool that the miniature calls, as a request defines it.
TOOL: dict[str, object] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
#: What it calls: the function's name, and its arguments.
TOOL_CALL: tuple[str, dict[str, str]] = ("get_weather", {"city": "Paris"})

#: What the chat template puts last where a tool may be called: an empty line, and the end of an empty thought
#: where thinking is off (its line ends otherwise). Both are nothing that an engine takes for a part of the answer.
TRIGGERS = ("\n\n", "</think>")
#: A call, token by token: what the chat template writes, to the letter (llama.cpp makes its parser from it), and
#: what comes where a line's end is not let pass. vLLM has constrained calls to GLM-4.7's one line since 0.32,
#: those of 4.6 too: https://github.com/vllm-project/vllm vllm/tool_parsers/structural_tag_registry.py.
#: No token comes twice, so a line's end is part of the token before it.
CHAIN = (
    ("<tool_call>",),
    ("get_weather\n", "get_weather"),
    ("<arg_key>",),
    ("city",),
    ("</arg_key>\n", "</arg_key>"),
    ("<arg_value>",),
    ("Paris",),
    ("</arg_value>\n", "</arg_value>"),
    ("</tool_call>",),
    ("<|observation|>",),
)
#: Tokens that the vocabulary has for the call alone.
CALL_TOKENS = (TRIGGERS[0], "get_weather\n", "get_weather", "city", "</arg_key>\n", "Paris", "</arg_value>\n")
#: The signs' size in the embedding: next to it, what the layers add is little.
EMBEDDING_SIZE = 1.0
#: The logit of the next token of the chain, and of the one in its stead. All words together weigh as one of 14
#: (LOGIT_SPREAD of :mod:`engines.miniature.weights`), and a token of the chain that has no business somewhere is
#: quieter there than words.
CALL_LOGIT, SECOND_LOGIT = 28.0, 20.0
