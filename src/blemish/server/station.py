"""The station itself: models that judge, what is kept of it, and who is told."""

import asyncio
import contextlib
import hashlib
import json
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from fastapi import HTTPException
from sqlalchemy import Row, select, update

from blemish.data.images import decode
from blemish.inspection.exported_file import is_exported
from blemish.inspection.judge import Judge
from blemish.inspection.load import load
from blemish.inspection.verdict import Verdict
from blemish.run import file_digest
from blemish.server.access import Access
from blemish.server.events import Events
from blemish.server.judging import JudgeQueue, Model, Photograph
from blemish.server.metrics import Metrics
from blemish.server.pictures import Pictures
from blemish.server.settings import Settings
from blemish.server.store import Store, as_json, spoken_time
from blemish.server.tables import inspections, models

RECENT, RECENT_PIXELS = 24, 100_000_000  # verdicts kept whole in memory, for their pictures, and pixels of all of them
DRAWING = 2  # requests at a time that may judge a photograph again or draw it: each may take a gigabyte
REPLAYED = ("decision", "score", "p_value", "regions", "width", "height")


class Station:
    """Thread-safe. ``close`` answers what was taken and ends everything.

    Raises:
        StoreError: the store cannot be opened, or another station works on it.
        ModelFileError: a model cannot be loaded.
        OutputError: the folder of images cannot be written.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings, self.began = settings, time.time()
        self.store = Store(settings.store)
        self.store.hold()
        try:
            self.pictures = Pictures(settings.images)
        except BaseException:
            self.store.close()
            raise
        self.access = Access(self.store, settings)
        self.judges: dict[str, JudgeQueue] = {}
        self.events, self.metrics = Events(), Metrics(self.judges)
        self.sinks: tuple[str, ...] = ()  # names of what is told of every verdict
        self.feeds: Sequence[Any] = ()  # what brings images besides HTTP
        self.drawing = asyncio.Semaphore(DRAWING)
        self._swapping, self._verifying = threading.Lock(), threading.Lock()
        self._verified: dict[str, Any] | None = None
        self._recent: OrderedDict[int, Verdict] = OrderedDict()
        self._earlier = lru_cache(2)(self._load_kept)  # inspectors of models that judge no more, by digest
        known = select(inspections.c.id).where(inspections.c.image_kept)
        moved, removed = self.pictures.sweep(lambda name: self.store.first(known.where(inspections.c.image == name)))
        if moved or removed:
            with self.store.write() as connection:
                found = {"photographs_kept": moved, "photographs_without_a_verdict_removed": removed}
                self.store.note(connection, "hard end found", "station", found)
        try:
            for name, file in settings.models.items():
                own = select(models).where(models.c.name == name)
                active = self.store.first(own.where(models.c.state == "active"))
                digest = file_digest(file) if active and file.is_file() else ""
                # A model that was swapped in after this file was first given stays, as it would have without a restart.
                if active and self.store.first(own.where(models.c.digest == digest)):
                    file = self.pictures.models / f"{active.digest}{active.suffix}"  # noqa: PLW2901
                self.put_model(name, file, "start", "station")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for judge in self.judges.values():
            judge.close()
        self.pictures.close()
        self.store.close()

    def load(self, file: Path) -> Judge:
        """What judges, from a model file or an exported one."""
        if is_exported(file):
            return load(file, threads=self.settings.threads)
        return load(file, self.settings.device, self.settings.precision, threads=self.settings.threads)

    def judge(self, name: str) -> JudgeQueue:
        """The judge of a model; an HTTPException 404 for an unknown name."""
        if (judge := self.judges.get(name)) is None:
            known = ", ".join(self.judges) or "none"
            raise HTTPException(404, f"there is no model {name[:64]!r} here; there are: {known}")
        return judge

    def put_model(self, name: str, file: Path, why: str, actor: str, same_scores_as: str | None = None) -> None:
        """Load a file under a name; where there is one of it, what waits is judged by the new one from now on.

        ``same_scores_as`` is the digest of a model that differs in its threshold alone.
        """
        inspector, digest = self.load(file), file_digest(file)
        model = Model(inspector, digest, self.pictures.keep_model(file, digest).suffix)
        with self._swapping:
            current = self.judges.get(name)
            is_new = current is None or current.model.digest != digest
            if is_new:
                self._note_model(name, model, "active", why, actor, same_scores_as)
            if current is not None:
                current.model = model
            else:
                sizes = (self.settings.batch, self.settings.queue, self.settings.max_pixels)
                self.judges[name] = JudgeQueue(model, lambda batch: self._keep(name, batch), *sizes)
        if is_new:
            self.events.publish("model", {"model": name, "digest": digest, "why": why})

    def _note_model(
        self, name: str, model: Model, state: str, why: str, actor: str, same_scores_as: str | None = None
    ) -> None:
        """Keep in the store which model has which state; an active one retires the one before it."""
        scores, own = same_scores_as or model.digest, update(models).where(models.c.name == name)
        row: dict[str, Any] = {"digest": model.digest, "name": name, "suffix": model.suffix}
        row |= {"state": state, "at": time.time(), "why": why}
        with self.store.write() as connection:
            row["scores"] = connection.scalar(select(models.c.scores).where(models.c.digest == scores)) or scores
            if state == "active":
                connection.execute(own.where(models.c.state == "active").values(state="retired", at=row["at"]))
            if connection.execute(own.where(models.c.digest == model.digest).values(**row)).rowcount == 0:
                connection.execute(models.insert(), row)
            self.store.note(connection, f"model {state}", actor, row)

    def same_scores(self, name: str) -> list[str]:
        """Digests of all models that give the scores of today's: they differ in their thresholds."""
        today = models.c.digest == self.judge(name).model.digest, models.c.name == name
        own = select(models.c.scores).where(*today).scalar_subquery()
        return [row.digest for row in self.store.rows(select(models.c.digest).where(models.c.scores == own))]

    def drop_model(self, name: str, actor: str) -> None:
        """Unload: what waits is still judged, by threads that then end."""
        with self._swapping:
            judge = self.judge(name)
            self._note_model(name, judge.model, "retired", "unloaded", actor)
            del self.judges[name]
        judge.close()
        self.metrics.forget(name)
        self.events.publish("model", {"model": name, "digest": None, "why": "unloaded"})

    def describe(self, name: str) -> dict[str, Any]:
        """A model as answers have it."""
        judge = self.judge(name)
        info, model = judge.model.inspector.info(), judge.model
        row = self.store.rows(select(models).where(models.c.digest == model.digest, models.c.name == name))[0]
        keys = ("promise", "method", "threshold", "review_threshold", "pixel_threshold")
        named = {key: info.get(key) for key in keys}
        waits = {"waiting": judge.depth, "may_wait": self.settings.queue}
        return {"model": name, "digest": model.digest, "since": spoken_time(row.at), "why": row.why, **named, **waits}

    def _keep(self, name: str, batch: Sequence[Photograph]) -> list[dict[str, Any]]:
        """Photographs to the disk, rows to the store: after this nothing of the batch can be lost."""
        with self.pictures.lock:
            contents = {photograph.row["image"]: photograph.content for photograph in batch}
            with self.pictures.written_or_not(contents):
                answers = self.store.record([photograph.row | {"model": name} for photograph in batch], self.sinks)
            with contextlib.suppress(OSError):  # the next start moves what is left
                for digest in contents:
                    self.pictures.commit(digest)
            self._recent.update((answer["id"], photograph.verdict) for photograph, answer in zip(batch, answers))
            kept = [math.prod(verdict.size) for verdict in self._recent.values()]
            while len(kept) > RECENT or sum(kept) > RECENT_PIXELS:
                kept.pop(0)
                self._recent.popitem(last=False)
        for answer in answers:
            self.metrics.judged(answer)
            self.events.publish("inspection", answer)
        return answers

    def submit(self, name: str, content: bytes, file: str, source: str) -> dict[str, Any]:
        """Judge an image for a watched folder or a camera, and wait for it; whatever went wrong is raised."""
        photograph = Photograph(content, file, source)
        self.judge(name).submit([photograph])
        try:
            return photograph.answer.result(self.settings.seconds)
        except TimeoutError:
            if photograph.answer.cancel():
                raise
            return photograph.answer.result()  # it is being judged: handed in again it would be judged twice

    def judged_before(self, model: str, name: str, content: bytes) -> str | None:
        """The decision on this very file, where a watched folder brought it before; else None."""
        columns, digest = inspections.c, hashlib.sha256(content).hexdigest()
        same = (columns.model == model, columns.image == digest, columns.name == name, columns.source == "folder")
        row = self.store.first(select(columns.decision).where(*same).order_by(columns.id.desc()))
        return None if row is None else row.decision or "undecided"

    def inspection(self, number: int) -> Row[Any]:
        """A row; an HTTPException 404 where there is none."""
        if (row := self.store.first(select(inspections).where(inspections.c.id == number))) is None:
            raise HTTPException(404, f"there is no inspection {number}")
        return row

    def say(self, number: int, said: str | None, kind: str, person: str) -> dict[str, Any]:
        """Keep what a person says of a verdict, None to take it back; an HTTPException 404 where there is none."""
        self.inspection(number)
        self.events.publish("said", answer := as_json(self.store.say(number, said, kind, person)))
        return answer

    def audited(self) -> dict[str, Any] | None:
        """What ``Store.verify`` says, of which only rows since it was last asked are read; None while it is at work."""
        if not self._verifying.acquire(blocking=False):
            return None
        try:
            found = self.store.verify(self._verified)
            self._verified = found if found["whole"] else None
            return found
        finally:
            self._verifying.release()

    def photograph(self, row: Row[Any]) -> bytes:
        """The file as it was sent; an HTTPException 410 where it is kept no longer, or damaged."""
        if not row.image_kept:
            raise HTTPException(410, f"the photograph of inspection {row.id} is not kept any longer")
        if (content := self.pictures.read(row.image)) is None:
            raise HTTPException(410, f"the file of inspection {row.id}'s photograph is missing or damaged")
        return content

    def verdict(self, row: Row[Any], afresh: bool = False) -> Verdict:
        """A verdict with its pictures, judged again from its photograph where memory has it no more.

        It is judged among as many copies, and at the place, as then: products of matrices of other shapes may differ in
        their last bits.
        """
        if not afresh and (recent := self._recent.get(row.id)) is not None:
            return recent
        image, inspector = (
            decode(self.photograph(row), "the photograph", self.settings.max_pixels),
            self.inspector(row.digest),
        )
        found: Verdict = inspector.judged([(image, inspector.loaded(image))] * row.batch)[row.position]
        return found

    def inspector(self, digest: str) -> Judge:
        """By the digest of its file; an HTTPException 410 where no copy of it is left."""
        for judge in [*self.judges.values()]:
            if judge.model.digest == digest:
                return judge.model.inspector
        return self._earlier(digest)

    def _load_kept(self, digest: str) -> Judge:
        if (file := next(self.pictures.models.glob(f"{digest}.*"), None)) is None:
            raise HTTPException(410, f"the model {digest[:12]} that judged it is not kept any longer")
        return self.load(file)

    def replay(self, number: int) -> dict[str, Any]:
        """Judge a photograph again by the model that judged it, and compare to the last bit."""
        row = self.inspection(number)
        # As JSON they are compared: that is what was answered.
        again, stored = json.loads(json.dumps(self.verdict(row, afresh=True).as_dict())), as_json(row)
        replayed, before = ({name: one[name] for name in REPLAYED} for one in (again, stored))
        differ = [name for name in REPLAYED if replayed[name] != before[name]]
        return {"id": number, "same": not differ, "differ": differ, "stored": before, "replayed": replayed}
