"""The same in asyncio: the events are shown while it loads, and several questions are asked at once.

python launch_async.py glm-4.6        (pip install glm-autolaunch openai)
"""

import asyncio
import sys

import openai

import autolaunch


async def show(server: autolaunch.AsyncLaunch) -> None:
    async for event in server.events():
        print(f"{event.seconds:7.1f} s  {event.message}", file=sys.stderr)


async def main(model: str) -> None:
    plan = await asyncio.to_thread(autolaunch.plan, model)
    async with autolaunch.launch(plan) as server:
        showing = asyncio.create_task(show(server))
        await server.wait_ready(timeout=3600)
        client = openai.AsyncOpenAI(base_url=server.base_url, api_key=server.api_key)
        answers = await asyncio.gather(
            *(
                client.chat.completions.create(
                    model=server.served_name, messages=[{"role": "user", "content": text}], max_tokens=16
                )
                for text in ("hello", "good morning", "good night")
            )
        )
        for answer in answers:
            print(answer.choices[0].message.content)
        await client.close()
    await showing  # it ends with the launch


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "glm-tiny"))
