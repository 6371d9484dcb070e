"""A server in front of a bank of deltas: load, swap and remove deltas while requests run.

MODEL=net.py:make WEIGHTS=net.safetensors uvicorn --app-dir examples/serving --factory server:app

PUT    /deltas/NAME   body: a Δnn file     200, 409 for another base, 422 for a damaged file
DELETE /deltas/NAME                        200, 404
GET    /deltas                             names
POST   /predict       {"inputs": [...], "deltas": ["NAME", null, ...]}  ->  {"logits": [...], "classes": [...]}
"""

from __future__ import annotations

import os
from typing import Any

import torch
from fastapi import Body, FastAPI, HTTPException
from torch import nn

from tweaknn.delta.bank import DeltaBank
from tweaknn.delta.file import from_bytes
from tweaknn.errors import DeltaError, InputError, TweaknnError

LARGEST = 64 << 20
"""Largest upload, in bytes."""


def serve(model: nn.Module) -> FastAPI:
    """The application for a base network."""
    bank = DeltaBank(model.eval())
    server = FastAPI(title="nn + Δnn")
    server.state.bank = bank

    # plain functions, not coroutines: FastAPI runs them in a pool of threads, and the bank is safe in threads
    @server.put("/deltas/{name}")
    def put(name: str, content: bytes = Body(media_type="application/octet-stream")) -> dict[str, Any]:
        if len(content) > LARGEST:
            raise HTTPException(413, "The file is too large.")
        try:
            delta = from_bytes(content)
        except DeltaError as error:
            raise HTTPException(422, str(error)) from None
        try:
            bank.add(name, delta)
        except TweaknnError as error:
            raise HTTPException(409, str(error)) from None
        return {"name": name, "parameters": delta.parameters}

    @server.delete("/deltas/{name}")
    def delete(name: str) -> dict[str, Any]:
        try:
            bank.remove(name)
        except InputError as error:
            raise HTTPException(404, str(error)) from None
        return {"name": name}

    @server.get("/deltas")
    def names() -> list[str]:
        return bank.names

    @server.post("/predict")
    def predict(inputs: list[Any] = Body(), deltas: list[str | None] = Body()) -> dict[str, Any]:
        try:
            x = torch.tensor(inputs, dtype=torch.float32)
            with torch.inference_mode():
                logits = bank(x, deltas)
        except InputError as error:
            raise HTTPException(404, str(error)) from None
        except (ValueError, RuntimeError, TypeError) as error:
            raise HTTPException(422, str(error).splitlines()[0]) from None
        return {"logits": logits.tolist(), "classes": logits.argmax(1).tolist()}

    return server


def app() -> FastAPI:
    """For uvicorn: the network is named by MODEL and WEIGHTS."""
    from tweaknn.inputs import load_model

    return serve(load_model(os.environ["MODEL"], weights=os.environ.get("WEIGHTS")).module)
