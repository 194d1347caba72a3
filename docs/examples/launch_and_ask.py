"""Plan a model, launch it in this program, ask it with the openai client, compare what was foretold, stop it.

python launch_and_ask.py glm-4.6        (pip install glm-autolaunch openai)
"""

import sys

import openai

import autolaunch


def main(model: str) -> None:
    plan = autolaunch.plan(model, objective="balanced")
    if plan.chosen is None:
        raise SystemExit(plan.explain())
    with autolaunch.launch(plan) as server:
        server.wait_ready()
        client = openai.OpenAI(base_url=server.base_url, api_key=server.api_key)
        answer = client.chat.completions.create(
            model=server.served_name, messages=[{"role": "user", "content": "hello"}], max_tokens=32
        )
        print(answer.choices[0].message.content)
        for each in server.measurements:
            print(f"{each.name}: {each.predicted:,.0f} {each.unit} foretold, {each.measured:,.0f} measured")
    print(f"{server.served_name} is {server.phase}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "glm-tiny")
