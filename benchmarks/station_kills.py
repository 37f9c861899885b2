"""Kill a station hard, again and again, while clients send photographs; then count what was answered and what is kept.

    python benchmarks/station_kills.py --kills 100

Every photograph has a part of its own. After the last kill: each answered verdict is in the store once, as answered;
rows and files agree; the audit trail is whole. One JSON object; exit code 1 where anything of that is not so.
"""

import argparse
import http.client
import json
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import blemish

CLIENTS, SIDE = 8, 64


def make_model(folder: Path) -> Path:
    """A small model of a made-up weave, and ``folder/new``, photographs of it."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    for index in range(30):
        weave = 120 + 35 * np.sin(0.8 * rows + rng.uniform(0, 6)) * np.cos(0.7 * columns + rng.uniform(0, 6))
        pixels = weave[..., None] * [1.0, 0.9, 0.75] + rng.normal(0, 4, (SIDE, SIDE, 3))
        path = folder / ("good" if index < 12 else "new") / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    settings: dict[str, Any] = {"backbone": "resnet18", "weights": "random", "poses": "none", "size": SIDE}
    fitted = blemish.fit(folder / "good", method="patchcore", options={"memory": 300}, **settings)
    return fitted.save(folder / "parts.blemish")


class Served:
    """A station in a process of its own, from a store in ``folder``."""

    def __init__(self, folder: Path, model: Path, *options: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.store, self.images = folder / "station.db", folder / "images"
        command = [sys.executable, "-m", "blemish", "serve", f"parts={model}", "--port", str(self.port)]
        command += ["--store", str(self.store), "--images", str(self.images), *options]
        self.began = time.perf_counter()
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        said = self.process.stderr.readline() if self.process.stderr else ""
        if "is ready" not in said:
            sys.exit(f"the station did not start: {said}")
        self.seconds_to_ready = time.perf_counter() - self.began

    def end(self, how: int = signal.SIGTERM) -> None:
        """Stop it, by that signal."""
        self.process.send_signal(how)
        self.process.communicate(timeout=60)

    def ask(self, method: str, path: str, body: bytes | None = None) -> Any:
        """The answer as JSON, or None where it is not 200."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        try:
            connection.request(method, path, body, {"Content-Type": "application/octet-stream"} if body else {})
            answer = connection.getresponse()
            return json.loads(answer.read()) if answer.status == 200 else None
        finally:
            connection.close()


def send_until(served: Served, photographs: list[bytes], name: str, answered: dict[str, Any]) -> None:
    """Send photographs, each of a part of its own, until the station is gone."""
    for number in range(10**6):
        part = f"{name}-{number}"
        try:
            said = served.ask("POST", f"/v1/models/parts/inspect?part={part}", photographs[number % len(photographs)])
        except (OSError, http.client.HTTPException, ValueError):
            return
        if said is not None:
            answered[part] = said["verdicts"][0]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    order, answered = random.Random(given.seed), dict[str, Any]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = make_model(folder)
        photographs = [path.read_bytes() for path in sorted((folder / "new").iterdir())]
        for kill in range(given.kills):
            served = Served(folder, model)
            clients = [
                threading.Thread(target=send_until, args=(served, photographs, f"{kill}-{client}", answered))
                for client in range(CLIENTS)
            ]
            for client in clients:
                client.start()
            time.sleep(order.uniform(0.05, 2))
            served.end(signal.SIGKILL)
            for client in clients:
                client.join()
        served = Served(folder, model)
        rows, cursor = dict[str, list[Any]](), ""
        while True:
            page = served.ask("GET", f"/v1/inspections?limit=500{cursor}")
            for row in page["inspections"]:
                rows.setdefault(row["part"], []).append(row)
            if page["next"] is None:
                break
            cursor = f"&cursor={page['next']}"
        audit = served.ask("GET", "/v1/audit/verify")
        served.end()
        known = {row["image_sha256"] for found in rows.values() for row in found}
        files = {path.name for path in served.images.glob("[0-9a-f][0-9a-f]/*")}
        result = {
            "kills": given.kills,
            "answered": len(answered),
            "rows": sum(map(len, rows.values())),
            "lost": sum(part not in rows for part in answered),
            "doubled": sum(len(found) > 1 for found in rows.values()),
            "changed": sum(rows[part] != [said] for part, said in answered.items() if part in rows),
            "rows_without_a_file": len(known - files),
            "files_without_a_row": len(files - known) + len([*(served.images / "incoming").iterdir()]),
            "audit_whole": audit["whole"],
        }
    print(json.dumps(result))
    wrong = ("lost", "doubled", "changed", "rows_without_a_file", "files_without_a_row")
    return int(not result["answered"] or not result["audit_whole"] or any(result[name] for name in wrong))


if __name__ == "__main__":
    sys.exit(main())
