"""Who may do what: nobody needs a token on loopback without a proxy; else tokens with a role, and sessions from them.

Tokens and sessions are 256 random bits and are stored as SHA-256: nothing in the store opens anything. They are found
by that hash, so that no comparison of secrets takes a time that tells of them.
"""

import asyncio
import hashlib
import hmac
import re
import secrets
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

from fastapi import HTTPException, Request, Response
from sqlalchemy import delete, insert, select, update
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from blemish.server.problems import problem
from blemish.server.settings import LOOPBACK, Settings
from blemish.server.store import Store
from blemish.server.tables import sessions, tokens

Role = Literal["viewer", "operator", "admin"]
RANK = {"viewer": 0, "operator": 1, "admin": 2}
SMALL = 64 * 2**10  # bytes of a body that holds no image and no model
FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip")
COOKIE, CSRF_HEADER, CSRF_FIELD = "blemish_session", "x-csrf-token", "csrf"
SESSION_SECONDS = 12 * 3600  # a shift, and some more
ATTEMPTS, WITHIN = 10, 60.0  # wrong tokens of one address in so many seconds
MANY = 10_000  # addresses that are remembered


@dataclass(frozen=True)
class Person:
    """Who asks: ``csrf`` is what a page sends with a change, None where no cookie speaks for it."""

    name: str
    role: Role
    csrf: str | None = None

    def may(self, role: Role) -> bool:
        return RANK[self.role] >= RANK[role]


class Access:
    """Tokens and sessions of a store."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self._store, self._settings = store, settings
        self._failures: dict[str, list[float]] = {}
        self._counting = threading.Lock()

    def new_token(self, name: str, role: Role, actor: str = "command line") -> str:
        """A token, which is shown once: only its hash is kept."""
        token = secrets.token_urlsafe(32)
        row = {"hash": _hash(token), "name": name, "role": role, "at": time.time(), "revoked": False}
        with self._store.write() as connection:
            connection.execute(insert(tokens), row)
            self._store.note(connection, "token", actor, {"name": name, "role": role})
        return token

    def revoke(self, name: str, actor: str = "command line") -> int:
        """End all tokens of that name, and their sessions; how many there were."""
        with self._store.write() as connection:
            query = update(tokens).where(tokens.c.name == name, tokens.c.revoked.is_(False)).values(revoked=True)
            ended = connection.execute(query).rowcount
            self._store.note(connection, "token revoked", actor, {"name": name, "tokens": ended})
        return ended

    def has_admin(self) -> bool:
        query = select(tokens.c.name).where(tokens.c.role == "admin", tokens.c.revoked.is_(False))
        return self._store.first(query) is not None

    def log_in(self, request: Request, token: str, response: Response) -> Person:
        """A session, whose secret no script reads and no other site sends; HTTPExceptions as of ``by_token``."""
        person = self.by_token(request, token)
        secret, csrf, ends = secrets.token_urlsafe(32), secrets.token_urlsafe(32), time.time() + SESSION_SECONDS
        row = {"hash": _hash(secret), "token": _hash(token), "csrf": csrf, "expires": ends}
        with self._store.write() as connection:
            connection.execute(insert(sessions), row)
            self._store.note(connection, "log in", person.name, {"role": person.role})
        is_secure = self._settings.tls
        response.set_cookie(COOKIE, secret, SESSION_SECONDS, httponly=True, samesite="strict", secure=is_secure)
        return Person(person.name, person.role, csrf)

    def log_out(self, request: Request, response: Response) -> None:
        with self._store.write() as connection:
            connection.execute(delete(sessions).where(sessions.c.hash == _hash(request.cookies.get(COOKIE, ""))))
        response.delete_cookie(COOKIE)

    def by_token(self, request: Request, token: str) -> Person:
        """Whose token it is; an HTTPException 401 for a wrong one, 429 for an address with too many of them."""
        address = request.client.host if request.client else ""
        found = self._store.first(select(tokens).where(tokens.c.hash == _hash(token), tokens.c.revoked.is_(False)))
        if found is None:  # a right one is never refused: behind a proxy all clients have one address
            if len(recent := self._recent(address)) >= ATTEMPTS:
                wait = {"Retry-After": str(round(WITHIN - (time.monotonic() - recent[0])) + 1)}
                raise HTTPException(429, "too many wrong tokens: wait a minute", wait)
            with self._counting:
                self._failures[address] = [*self._recent(address), time.monotonic()]
                if len(self._failures) > MANY:
                    self._failures.pop(next(iter(self._failures)))
            raise HTTPException(401, "this token is not known, or was revoked", {"WWW-Authenticate": "Bearer"})
        return Person(found.name, found.role)

    def _recent(self, address: str) -> list[float]:
        return [at for at in self._failures.get(address, ()) if time.monotonic() - at < WITHIN]

    def _by_session(self, secret: str) -> Person | None:
        query = select(tokens.c.name, tokens.c.role, sessions.c.csrf).join(tokens, tokens.c.hash == sessions.c.token)
        query = query.where(sessions.c.hash == _hash(secret), sessions.c.expires > time.time())
        found = self._store.first(query.where(tokens.c.revoked.is_(False)))
        return None if found is None else Person(found.name, found.role, found.csrf)

    async def identify(self, request: Request) -> Person | None:
        """Who asks, None for nobody known; an HTTPException 401, 403 or 429 where a proof is wrong."""
        if self._settings.is_open:
            return Person("this machine", "admin")
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme:
            return await run_in_threadpool(self.by_token, request, token if scheme.lower() == "bearer" else "")
        if secret := request.cookies.get(COOKIE):
            person = await run_in_threadpool(self._by_session, secret)
            if person is not None and request.method not in ("GET", "HEAD"):
                await self._check_csrf(request, person)
            return person
        return None

    async def _check_csrf(self, request: Request, person: Person) -> None:
        given = request.headers.get(CSRF_HEADER)
        if given is None and request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
            given = str((await request.form()).get(CSRF_FIELD, ""))
        if not hmac.compare_digest((given or "").encode(), (person.csrf or "").encode()):
            raise HTTPException(403, "this form is not from this page, or is too old: load the page again")


def needs(role: Role) -> Callable[[Request], Awaitable[Person]]:
    """A dependency: the person who asks, if of that role or above; else an HTTPException 401 or 403."""

    async def check(request: Request) -> Person:
        person = await request.app.state.station.access.identify(request)
        if person is None:
            raise HTTPException(401, "a token is needed: log in, or send it", {"WWW-Authenticate": "Bearer"})
        if not person.may(role):
            raise HTTPException(403, f"this needs the role {role}, and {person.name} has the role {person.role}")
        return person  # type: ignore[no-any-return]

    return check


class Guard:
    """Middleware before everything else: bounds on headers, on a body and on its time, and other sites kept out.

    A page of another site can make a browser send things here. What changes something is refused where the browser
    says that it comes from elsewhere; a station on loopback also answers to its own names alone, so that no other name
    can be made to lead to it.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app, self._settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        # A model's file may be large; whoever sends one is an admin, and its body is not read before that is known.
        is_model = scope["method"] == "PUT" and bool(re.fullmatch("/v1/models/[^/]+", scope["path"]))
        limit = self._settings.max_model_bytes if is_model else self._settings.max_bytes
        if not is_model and not re.fullmatch("/v1/models/[^/]+/inspect", scope["path"]):
            limit = min(limit, SMALL)
        seconds = (20 if is_model else 1) * self._settings.seconds
        deadline, is_whole, size = time.monotonic() + seconds, False, 0

        async def receive_bounded() -> Message:
            nonlocal is_whole, size
            if is_whole:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), max(0.01, deadline - time.monotonic()))
            except TimeoutError:
                raise HTTPException(408, f"the body did not arrive in {seconds:g} seconds") from None
            is_whole = not message.get("more_body", False)
            size += len(message.get("body", b""))
            if size > limit:
                raise HTTPException(413, f"the body is larger than the {limit:,} bytes that are taken")
            return message

        async def send_marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.setdefault("Content-Security-Policy", "default-src 'self'; frame-ancestors 'none'")
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "same-origin"
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        if (refusal := self._refusal(scope)) is not None:
            await problem(*refusal)(scope, receive, send_marked)
        else:
            await self._app(scope, receive_bounded, send_marked)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        headers = Headers(scope=scope)
        if len(headers) > self._settings.max_headers:
            return 431, f"{len(headers)} headers were sent; {self._settings.max_headers} are taken"
        host = headers.get("host", "")
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
        hosts = [*map(str.lower, self._settings.hosts)]
        known = (*LOOPBACK, "[::1]", *hosts) if self._settings.is_open or hosts else ()
        if known and name.lower() not in known:
            return 421, f"this station does not answer to the name {name[:100]!r}: serve it with --allow-host NAME"
        if self._settings.is_open and any(name in headers for name in FORWARDED):
            return 403, "this came through a proxy, and the station asks nobody for a token: serve it with --tls"
        if scope["method"] not in ("GET", "HEAD", "OPTIONS"):
            origin = headers.get("origin", "")
            is_foreign = origin and origin.partition("://")[2] != host
            if is_foreign or headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
                return 403, "this comes from a page of another site"
        return None


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()
