"""A client of ComfyUI, run beside its packages: sends the prompt of standard input, and prints what it is told as JSON.

python comfyui_client.py URL [EVENT]      stops the run at the first EVENT
"""

from __future__ import annotations

import asyncio
import json
import struct
import sys
import uuid

import aiohttp

TEXT = 3  # the type of binary messages with a text for a node; all others here are previews
LAST = ("execution_success", "execution_error", "execution_interrupted")


async def run(url: str, stop_at: str) -> dict[str, object]:
    """Runs the prompt of standard input."""
    events: list[tuple[str, object]] = []
    texts: list[tuple[str, str]] = []
    previews = 0
    client = uuid.uuid4().hex
    async with aiohttp.ClientSession(url) as session, session.ws_connect(f"/ws?clientId={client}") as socket:
        body = {"prompt": json.load(sys.stdin), "client_id": client}
        async with session.post("/prompt", json=body) as answer:
            sent = await answer.json()
        if "prompt_id" not in sent or sent.get("node_errors"):
            return {"refused": sent}
        async for message in socket:
            if message.type == aiohttp.WSMsgType.BINARY:
                kind, length = struct.unpack(">II", message.data[:8])
                if kind == TEXT:
                    texts.append((message.data[8 : 8 + length].decode(), message.data[8 + length :].decode()))
                else:
                    previews += 1
                continue
            told = json.loads(message.data)
            events.append((told["type"], told["data"].get("node")))
            if told["type"] == stop_at:
                stop_at = ""
                await session.post("/interrupt")
            if told["type"] in LAST and told["data"]["prompt_id"] == sent["prompt_id"]:
                break
        while True:  # the history is written after the last event
            async with session.get(f"/history/{sent['prompt_id']}") as answer:
                history = await answer.json()
            if history:
                break
            await asyncio.sleep(0.05)
    return {"events": events, "texts": texts, "previews": previews, "history": history[sent["prompt_id"]]}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(run(sys.argv[1], sys.argv[2]))))
