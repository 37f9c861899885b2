"""What a station does under load, on loopback, with nothing else running.

    python benchmarks/station_load.py --clients 1000 --seconds 30
    python benchmarks/station_load.py --soak 60

Four figures beside each other: a bare ``many`` loop, one client, sixteen clients (micro-batches), and a crowd, most of
which is refused at once. One JSON object: images a second, milliseconds, answers by status, memory in MB. With
``--soak``, sixteen clients for so many minutes, each of them a line: what grows is seen there.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from station_kills import Served, make_model

import blemish

PAUSE = 0.2  # seconds that a refused client waits; a well-behaved one waits as long as Retry-After says


async def client(
    port: int, photographs: list[bytes], until: float, seconds: list[float], statuses: Counter[int]
) -> None:
    """One photograph after the other over one connection, which is opened anew where the station closed it."""
    reader = writer = None
    number = 0
    while time.perf_counter() < until:
        body = photographs[number % len(photographs)]
        number += 1
        began = time.perf_counter()
        try:
            if writer is None:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
            head = f"POST /v1/models/parts/inspect HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            start = await reader.readuntil(b"\r\n\r\n")
            lines = start.decode().lower().split("\r\n")
            length = next(int(line.split(":")[1]) for line in lines if line.startswith("content-length"))
            await reader.readexactly(length)
            status = int(lines[0].split()[1])
        except (OSError, asyncio.IncompleteReadError):
            status, writer = 0, None
        statuses[status] += 1
        if status == 200:
            seconds.append(time.perf_counter() - began)
        else:
            await asyncio.sleep(PAUSE)
    if writer is not None:
        writer.close()


def crowd(served: Served, photographs: list[bytes], clients: int, seconds: float) -> dict[str, Any]:
    """What ``clients`` of them get in so many seconds."""
    taken, statuses = list[float](), Counter[int]()

    async def run() -> None:
        until = time.perf_counter() + seconds
        await asyncio.gather(*(client(served.port, photographs, until, taken, statuses) for _ in range(clients)))

    asyncio.run(run())
    p50, p99 = (1000 * np.quantile(taken or [np.nan], [0.5, 0.99])).tolist()
    return {"per_second": len(taken) / seconds, "p50_ms": p50, "p99_ms": p99, "statuses": dict(statuses)}


def memory(served: Served) -> float:
    """MB in use by the station."""
    lines = Path(f"/proc/{served.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def soak(served: Served, photographs: list[bytes], minutes: int) -> dict[str, Any]:
    """Sixteen clients, minute by minute; at the end, whether the store has what was answered."""
    lines, answered = [], 0
    for minute in range(minutes):
        found = crowd(served, photographs, 16, 60)
        answered += found["statuses"].get(200, 0)
        files = len([*Path(f"/proc/{served.process.pid}/fd").iterdir()])
        lines.append({"minute": minute + 1, **found, "memory_mb": memory(served), "open_files": files})
        sys.stderr.write(json.dumps(lines[-1]) + "\n")
    counted, audit = served.ask("GET", "/v1/counts")["total"], served.ask("GET", "/v1/audit/verify")["whole"]
    return {"soak": lines, "answered": answered, "stored": counted, "audit_whole": audit}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--model", type=Path, help="a model file; by default a tiny one, whose judging costs little")
    parser.add_argument("--images", type=Path, help="a folder of PNG files for it")
    parser.add_argument("--soak", type=int, default=0, metavar="MINUTES")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = given.model or make_model(folder)
        photographs = [path.read_bytes() for path in sorted((given.images or folder / "new").glob("*.png"))]
        inspector, bare = blemish.load(model), dict[str, Any]()
        for batch in (1, 8):
            many = [photographs[i % len(photographs)] for i in range(64)]
            list(inspector.many(many[:16], batch))
            began = time.perf_counter()
            list(inspector.many(many, batch))
            bare[f"batch_{batch}_per_second"] = len(many) / (time.perf_counter() - began)
        singles = []
        for content in many:
            began = time.perf_counter()
            inspector(content)
            singles.append(1000 * (time.perf_counter() - began))
        bare["one_image_p50_ms"] = float(np.median(singles))
        served = Served(folder, model)
        result: dict[str, Any] = {
            "seconds_to_ready": served.seconds_to_ready,
            "memory_mb": memory(served),
            "bare": bare,
        }
        if given.soak:
            result |= soak(served, photographs, given.soak)
        else:
            crowd(served, photographs, 2, 2)  # warms it up
            for clients in (1, 16, given.clients):
                result[f"{clients}_clients"] = crowd(served, photographs, clients, given.seconds)
        result["memory_mb_after"] = memory(served)
        served.end()
    sys.stdout.write(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
