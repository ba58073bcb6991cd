"""A proxy between a test and an emulator of a bucket: it counts requests, injects faults, and knows preconditions.

The emulator of Google Cloud Storage lets every writer win. Behind the proxy `ifGenerationMatch` and its relatives hold
as they do at Google, the object of a request locked while it is compared and written.
"""

import contextlib
import dataclasses
import email
import http
import http.client
import http.server
import itertools
import json
import re
import socket
import sys
import threading
import time
import traceback
import urllib.parse
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator

# Not handed on from one connection to the other.
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "expect"}
Answer = tuple[int, dict[str, str], bytes]


@dataclasses.dataclass(frozen=True)
class Request:
    """A request as rules see it."""

    number: int  # counted since the last reset, from 0
    method: str
    path: str  # as it was sent, with the query
    kind: str  # "metadata" (of an object or bucket), "list", "read", "write" or "delete"
    bucket: str
    name: str  # of the object, "" where it is about none
    headers: dict[str, str]  # names in lower case
    body: bytes

    @property
    def query(self) -> dict[str, str]:
        return dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(self.path).query, keep_blank_values=True))


@dataclasses.dataclass(frozen=True)
class Status:
    """The request is answered with an error of this code and goes no further."""

    code: int


@dataclasses.dataclass(frozen=True)
class Delay:
    """The request waits before it is handed on."""

    seconds: float


@dataclasses.dataclass(frozen=True)
class Cut:
    """The connection ends: before the request is carried out, after it but without an answer, or within the answer."""

    where: str  # "request", "answer" or "body"


@dataclasses.dataclass(frozen=True)
class Crash:
    """Calls a function, which may kill a process, and cuts the connection without carrying out the request."""

    function: Callable[[], object]


@dataclasses.dataclass
class Rule:
    """What happens to requests that match, `times` times (None: always)."""

    action: Status | Delay | Cut | Crash
    matches: Callable[[Request], bool]
    times: int | None
    hits: int = 0


class Dropped(Exception):
    """The connection is closed without another byte."""


class Proxy:
    """In front of the emulator at `upstream`, for as long as it is entered; `url` is its own."""

    def __init__(self, upstream: str):
        self._upstream = urllib.parse.urlsplit(upstream).netloc
        self._lock = threading.Lock()
        self._object_locks: dict[tuple[str, str], threading.Lock] = defaultdict(threading.Lock)
        self._connections: set[socket.socket] = set()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.proxy = self
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.reset()

    def __enter__(self) -> "Proxy":
        threading.Thread(target=self._server.serve_forever, args=[0.05], daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
        self._close_connections()

    # For tests.

    def reset(self) -> None:
        """Forgets rules and counts."""
        with self._lock:
            self._rules: list[Rule] = []
            self._gone_until = 0.0
            self._requests: Counter[str] = Counter()
            self._sent: Counter[str] = Counter()
            self._received: Counter[str] = Counter()
            self._numbers = itertools.count()
            self.log: list[Request] = []  # without their bodies

    def counts(self) -> dict[str, Counter[str]]:
        """Requests, and the bytes sent to the bucket and received, by kind and by method (`counts()["requests"]`)."""
        with self._lock:
            return {
                "requests": self._requests.copy(),
                "bytes_sent": self._sent.copy(),
                "bytes_received": self._received.copy(),
            }

    def fault(
        self,
        action: Status | Delay | Cut | Crash,
        matches: Callable[[Request], bool] = lambda request: True,
        times: int | None = 1,
    ) -> Rule:
        """Adds a rule; the first that matches and is not used up acts. `rule.hits` says how often it has."""
        rule = Rule(action, matches, times)
        with self._lock:
            self._rules.append(rule)
        return rule

    def clear_faults(self) -> None:
        """Removes all rules, and the network is back."""
        with self._lock:
            self._rules = []
            self._gone_until = 0.0

    def network_gone(self, seconds: float) -> None:
        """Ends all connections, and each new one at once, for a time."""
        with self._lock:
            self._gone_until = time.monotonic() + seconds
        self._close_connections()

    # For the threads of the server.

    def _close_connections(self) -> None:
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    @contextlib.contextmanager
    def connected(self, connection: socket.socket) -> Iterator[None]:
        with self._lock:
            self._connections.add(connection)
        try:
            yield
        finally:
            with self._lock:
                self._connections.discard(connection)

    def is_gone(self) -> bool:
        return time.monotonic() < self._gone_until

    def answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[Answer, bool]:
        """The answer, and whether it is to be cut in the middle. Raises Dropped."""
        if self.is_gone():
            raise Dropped
        bucket, name, kind = self.describe(method, path, headers, body)
        with self._lock:
            request = Request(next(self._numbers), method, path, kind, bucket, name, headers, body)
            self.log.append(dataclasses.replace(request, body=b""))
            self._requests.update([kind, method])
            self._sent.update({kind: len(body), method: len(body)})
            rule = next((r for r in self._rules if (r.times is None or r.hits < r.times) and r.matches(request)), None)
            if rule is not None:
                rule.hits += 1
        action = rule.action if rule is not None else None
        if isinstance(action, Status):
            return self.error(action.code), False
        if isinstance(action, Crash):
            action.function()
            raise Dropped
        if action == Cut("request"):
            raise Dropped
        if isinstance(action, Delay):
            time.sleep(action.seconds)
        answer = self.carry_out(request)
        if action == Cut("answer"):
            raise Dropped
        with self._lock:
            self._received.update({kind: len(answer[2]), method: len(answer[2])})
        return answer, action == Cut("body")

    def describe(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[str, str, str]:
        """Bucket, object and kind of a request: of S3 here, with the bucket in the path."""
        parts = urllib.parse.urlsplit(path)
        bucket, _, name = urllib.parse.unquote(parts.path).lstrip("/").partition("/")
        query = urllib.parse.parse_qs(parts.query, keep_blank_values=True)
        if method == "DELETE" or (method == "POST" and "delete" in query):
            return bucket, name, "delete"
        if method in ("PUT", "POST"):
            return bucket, name, "write"
        if method == "HEAD":
            return bucket, name, "metadata"
        return bucket, name, "read" if name else "list"

    def error(self, code: int) -> Answer:
        reasons = {
            403: "AccessDenied",
            404: "NoSuchKey",
            408: "RequestTimeout",
            412: "PreconditionFailed",
            503: "SlowDown",
        }
        name = reasons.get(code, http.HTTPStatus(code).phrase.title().replace(" ", ""))
        content = f"<Error><Code>{name}</Code><Message>{http.HTTPStatus(code).phrase}</Message></Error>"
        return code, {"Content-Type": "application/xml"}, content.encode()

    def carry_out(self, request: Request) -> Answer:
        return self.forward(request.method, request.path, request.headers, request.body)

    def forward(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        """The emulator's answer. The Host of the request is kept, since URLs in answers are made of it."""
        connection = http.client.HTTPConnection(self._upstream, timeout=60)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for key, value in headers.items():
                if key not in HOP_BY_HOP:
                    connection.putheader(key, value)
            # A POST of no bytes has a length too.
            if body or method in ("POST", "PUT", "PATCH"):
                connection.putheader("Content-Length", str(len(body)))
            connection.putheader("Connection", "close")
            connection.endheaders(body or None)
            response = connection.getresponse()
            content = response.read()
            kept = {key: value for key, value in response.getheaders() if key.lower() not in HOP_BY_HOP}
            if method == "HEAD" and "Content-Length" in response.headers:
                kept["Content-Length"] = response.headers["Content-Length"]
            return response.status, kept, content
        finally:
            connection.close()


# Names are quoted in URLs, their slashes too.
_JSON_PATH = re.compile(
    r"(?:/(?P<use>upload|download))?(?:/storage/v1)?/b/(?P<bucket>[^/]+)"
    r"(?P<objects>/o(?:/(?P<name>[^/]+)"
    r"(?:/(?P<verb>compose|(?:rewriteTo|copyTo)/b/(?P<to_bucket>[^/]+)/o/(?P<to_name>[^/]+)|moveTo/o/(?P<moved>[^/]+)))?)?)?"
)


class GCSProxy(Proxy):
    """The proxy for Google Cloud Storage: preconditions, and moving an object, which the emulator lacks too."""

    def __init__(self, upstream: str):
        self._sessions: dict[str, tuple[str, str]] = {}  # of resumable uploads: bucket and object
        super().__init__(upstream)

    def describe(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[str, str, str]:
        parts = urllib.parse.urlsplit(path)
        query = dict(urllib.parse.parse_qsl(parts.query))
        match = _JSON_PATH.fullmatch(parts.path)
        if match is None:  # the XML interface, the list of buckets, a batch (of deletions)
            if parts.path.startswith("/batch/"):
                return "", "", "delete"
            if parts.path in ("/b", "/storage/v1/b"):
                return "", "", "metadata"
            bucket, _, name = urllib.parse.unquote(parts.path).lstrip("/").partition("/")
            return bucket, name, {"PUT": "write", "DELETE": "delete"}.get(method, "read")
        bucket, name = match["bucket"], urllib.parse.unquote(match["name"] or "")
        if match["use"] == "upload":
            if query.get("upload_id") in self._sessions:
                bucket, name = self._sessions[query["upload_id"]]
            return bucket, query.get("name") or name or _parts_of(headers, body)[0]["name"], "write"
        if match["verb"]:
            target = match["to_name"] or match["moved"] or match["name"]
            return match["to_bucket"] or bucket, urllib.parse.unquote(target), "write"
        if method == "DELETE":
            return bucket, name, "delete"
        if method == "GET" and match["objects"] and not name:
            return bucket, name, "list"
        is_read = name and method == "GET" and (query.get("alt") == "media" or match["use"] == "download")
        return bucket, name, "read" if is_read else "metadata"

    def error(self, code: int) -> Answer:
        content = {"error": {"code": code, "message": http.HTTPStatus(code).phrase}}
        return code, {"Content-Type": "application/json"}, json.dumps(content).encode()

    def carry_out(self, request: Request) -> Answer:
        query = request.query
        match = _JSON_PATH.fullmatch(urllib.parse.urlsplit(request.path).path)
        moved_from = urllib.parse.unquote(match["name"]) if match and match["moved"] else None
        with contextlib.ExitStack() as stack:
            for name in sorted({request.name, moved_from or request.name} - {""}):
                stack.enter_context(self._object_lock(request.bucket, name))
            refusal = self._check_preconditions(request)
            if refusal is not None:
                return self.error(refusal)
            if moved_from is not None:
                return self._move(request, moved_from)
            if request.method == "DELETE" and query.get("upload_id") in self._sessions:
                del self._sessions[query["upload_id"]]
                return 499, {}, b""
            if query.get("uploadType") == "multipart":
                return self._upload_parts(request)
            if query.get("uploadType") == "media":
                content_type = request.headers.get("content-type", "application/octet-stream")
                return self._upload(request, content_type, request.body)
            if request.kind == "list":
                return self._list(request)
            answer = super().carry_out(request)
            if query.get("uploadType") == "resumable" and "Location" in answer[1]:
                location = urllib.parse.urlsplit(answer[1]["Location"])
                upload_id = urllib.parse.parse_qs(location.query)["upload_id"][0]
                self._sessions[upload_id] = request.bucket, request.name
            if request.kind == "read" and answer[0] < 300:
                answer[1]["x-goog-generation"] = str(self._generation(request.bucket, request.name))
            if request.method == "DELETE" and request.name and answer[0] == 200:
                answer = 204, answer[1], b""
            return answer

    def _object_lock(self, bucket: str, name: str) -> threading.Lock:
        with self._lock:
            return self._object_locks[bucket, name]

    def _metadata(self, bucket: str, name: str) -> dict[str, str] | None:
        path = f"/storage/v1/b/{bucket}/o/{urllib.parse.quote(name, safe='')}"
        status, _, content = self.forward("GET", path, {"host": self._upstream}, b"")
        return json.loads(content) if status == 200 else None

    def _generation(self, bucket: str, name: str) -> int:
        """Of the live object; 0 where there is none."""
        metadata = self._metadata(bucket, name)
        return int(metadata["generation"]) if metadata else 0

    def _check_preconditions(self, request: Request) -> int | None:
        """The status of the refusal, or None where all hold. An upload in pieces is checked at each of them."""
        query = request.query
        wanted = query.get("ifGenerationMatch") or request.headers.get("x-goog-if-generation-match")
        unwanted = query.get("ifGenerationNotMatch") or request.headers.get("x-goog-if-generation-not-match")
        if not request.name or (wanted is None and unwanted is None and "generation" not in query):
            return None
        generation = self._generation(request.bucket, request.name)
        is_read = request.method in ("GET", "HEAD")
        if wanted is not None and generation != int(wanted):
            return 412
        if unwanted is not None and generation == int(unwanted) and (generation or not is_read):
            return 304 if is_read else 412
        if "generation" in query and generation != int(query["generation"]):
            return 404
        return None

    def _move(self, request: Request, source: str) -> Answer:
        path, _, target = request.path.partition("/moveTo/o/")
        status, headers, content = self.forward(
            "POST", f"{path}/rewriteTo/b/{request.bucket}/o/{target}", request.headers, request.body
        )
        if status == 200:
            self.forward("DELETE", path, {"host": self._upstream}, b"")
            content = json.dumps(json.loads(content)["resource"]).encode()
        return status, headers, content

    def _list(self, request: Request) -> Answer:
        """A page of a list, between the offsets: the emulator knows neither, and tensorstore lists by offsets."""
        query = request.query
        status, headers, content = super().carry_out(request)
        if status != 200:
            return status, headers, content
        found = json.loads(content)
        names = [item["name"] for item in found["items"]] + found["prefixes"]
        start, end = query.get("startOffset", ""), query.get("endOffset")
        names = sorted(n for n in names if n >= start and (not end or n < end) and n > query.get("pageToken", ""))
        page = set(names[: min(int(query.get("maxResults", 1000)), 1000)])
        found["items"] = [item for item in found["items"] if item["name"] in page]
        found["prefixes"] = [prefix for prefix in found["prefixes"] if prefix in page]
        if len(names) > len(page):
            found["nextPageToken"] = max(page)
        return status, headers, json.dumps(found).encode()

    def _upload_parts(self, request: Request) -> Answer:
        """Hands on the object of a multipart upload alone: the emulator's parser loses a last byte that is a CR."""
        metadata, content_type, content = _parts_of(request.headers, request.body)
        answer = self._upload(request, content_type, content)
        changes = {key: value for key, value in metadata.items() if key not in ("name", "contentType", "bucket")}
        if answer[0] != 200 or not changes:
            return answer
        path = f"/storage/v1/b/{request.bucket}/o/{urllib.parse.quote(request.name, safe='')}"
        headers = {"host": request.headers["host"], "content-type": "application/json"}
        return self.forward("PATCH", path, headers, json.dumps(changes).encode())

    def _upload(self, request: Request, content_type: str, content: bytes) -> Answer:
        query = {"uploadType": "media", "name": request.name}
        if not content:  # the emulator takes it in parts only
            query["uploadType"] = "multipart"
            content = b"--0\n\n{}\n--0\nContent-Type: %s\n\n\n--0--" % content_type.encode()
            content_type = "multipart/related; boundary=0"
        path = f"{urllib.parse.urlsplit(request.path).path}?{urllib.parse.urlencode(query)}"
        return self.forward("POST", path, {"host": request.headers["host"], "content-type": content_type}, content)


def _parts_of(headers: dict[str, str], body: bytes) -> tuple[dict[str, str], str, bytes]:
    """Metadata, content type and bytes of an upload of two parts; of another one the metadata alone."""
    content_type = headers.get("content-type", "")
    if not content_type.startswith("multipart/"):
        return json.loads(body), "", b""
    boundary = b"--" + email.message_from_string(f"Content-Type: {content_type}").get_boundary().encode()
    # gcsfs ends lines by LF alone: a CR before it is the object's last byte.
    line_end = b"\r\n" if body.startswith(boundary + b"\r\n") else b"\n"
    metadata, content = [
        part.removeprefix(line_end).partition(line_end * 2)
        for part in body.removeprefix(boundary).split(line_end + boundary)[:2]
    ]
    return json.loads(metadata[2]), email.message_from_bytes(content[0])["Content-Type"], content[2]


class _Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True
    proxy: Proxy

    def handle_error(self, request, client_address):
        """Clients that end a connection are no news here; what else goes wrong is printed."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def handle(self):
        if not self.server.proxy.is_gone():
            with self.server.proxy.connected(self.connection):
                super().handle()

    def handle_one_request(self):
        try:
            super().handle_one_request()
        except Dropped:
            self.close_connection = True

    def _serve(self):
        headers = {key.lower(): value for key, value in self.headers.items()}
        body = self._read_chunks() if "chunked" in headers.get("transfer-encoding", "") else None
        if body is None:
            body = self.rfile.read(int(headers.get("content-length", 0)))
        try:
            (status, kept, content), is_cut = self.server.proxy.answer(self.command, self.path, headers, body)
        except Dropped:
            raise
        except Exception as error:  # of the emulator, or here: not the client's fault, and not to be taken for weather
            traceback.print_exc()
            (status, kept, content), is_cut = (400, {}, repr(error).encode()), False
        self.send_response_only(status)
        for key, value in kept.items():
            self.send_header(key, value)
        if self.command == "HEAD" or status in (204, 304):
            content = b""
        else:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if is_cut else content)
        if is_cut:
            raise Dropped

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _serve

    def _read_chunks(self) -> bytes:
        chunks = []
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():  # trailers
            pass
        return b"".join(chunks)
