"""Over whatever network: the right bytes under the final name, or one line that says why not."""

import hashlib
import io
import json
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

import harness
from clipcoco.errors import ClipcocoError, DataError, EnvironmentProblem
from clipcoco.events import TaskProgress
from clipcoco.prepare.download import Archive, download
from clipcoco.prepare.network import RetryPolicy
from clipcoco.prepare.single_images import RemoteImage, fetch_images
from harness import file_size_limit, until
from http_server import HTML, Reply, Server

DATA = random.Random(0).randbytes(300_000)
OTHER = random.Random(1).randbytes(300_000)  # another content of the same length
PATH = "/zips/val2017.zip"
CUTS = (1, 17, 4_095, 4_096, 65_536, 100_000, 150_000, 262_144, 299_998, 299_999)
QUICK = RetryPolicy(attempts=4, pause=0.001, timeout=5)
HASTY = RetryPolicy(attempts=2, pause=0.001, timeout=0.1)


@pytest.fixture(autouse=True)
def _plain_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No proxy; and no certificates, which take longer to load than a test."""
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server({PATH: DATA}) as server:
        yield server


FILE = Archive(PATH.removeprefix("/"), len(DATA), hashlib.sha256(DATA).hexdigest())


def quiet(progress: TaskProgress) -> None: ...


def get(server: Server, folder: Path, *urls: str, retries: RetryPolicy = QUICK) -> Path:
    return download(FILE, urls or (server.url + PATH,), folder, quiet, retries)


def one_line(error: pytest.ExceptionInfo[ClipcocoError]) -> str:
    line = str(error.value)
    assert "\n" not in line
    assert "by hand: http" in line
    assert "--source DIR" in line
    return line


def test_a_file_arrives_and_is_never_asked_for_again(server, tmp_path):
    told: list[TaskProgress] = []
    path = download(FILE, (server.url + PATH,), tmp_path / "new", told.append, QUICK)
    assert path.read_bytes() == DATA
    assert told[-1] == TaskProgress("val2017.zip", len(DATA), len(DATA), "bytes", "SHA-256 verified")
    assert server.requests[0].headers["Accept-Encoding"] == "identity"
    assert [file.name for file in path.parent.iterdir()] == ["val2017.zip"]
    get(server, tmp_path / "new")
    assert len(server.requests) == 1


TROUBLES: dict[str, Callable[[int], list[Reply]]] = {
    "cut": lambda k: [Reply(cut=k)],
    "cut twice": lambda k: [Reply(cut=k), Reply(cut=(len(DATA) - k) // 2)],
    "stall": lambda k: [Reply(stall=k)],
    "range ignored": lambda k: [Reply(cut=k), Reply(ignore_range=True)],
    "range ignored and cut": lambda k: [Reply(cut=k), Reply(ignore_range=True, cut=k // 2)],
    "range shifted": lambda k: [Reply(cut=k), Reply(shift=1)],
    "longer than true": lambda k: [Reply(cut=k), Reply(longer=7)],
    "shorter than true": lambda k: [Reply(cut=k), Reply(longer=-1)],
    "chunked, and more than announced": lambda k: [
        Reply(content=DATA + b"more", chunked=True, headers={"Content-Length": str(len(DATA))}),
        Reply(cut=k),
    ],
    "chunked, and less than announced": lambda k: [
        Reply(cut=k, chunked=True),
        Reply(content=DATA[:-1], chunked=True, ignore_range=True, headers={"Content-Length": str(len(DATA))}),
    ],
    "content changed": lambda k: [Reply(cut=k, content=OTHER)],
    "content changed, If-Range ignored": lambda k: [Reply(cut=k, content=OTHER), Reply(ignore_if_range=True)],
    "no such range": lambda k: [Reply(cut=k), Reply(status=416)],
    "page of a portal": lambda k: [Reply(cut=k), Reply(content=HTML, ignore_range=True)],
    "error of the server": lambda k: [Reply(cut=k), Reply(status=503), Reply(status=500)],
    "too many requests": lambda k: [Reply(cut=k), Reply(status=429, headers={"Retry-After": "0"})],
    "when it should be tried again": lambda k: [
        Reply(status=503, headers={"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}),
        Reply(status=503, headers={"Retry-After": "presently"}),
        Reply(cut=k),
    ],
    "wrong content": lambda k: [Reply(content=DATA[:k] + bytes([DATA[k] ^ 1]) + DATA[k + 1 :])],
    "wrong from there on": lambda k: [Reply(cut=k), Reply(content=DATA[:k] + OTHER[k:], ignore_if_range=True)],
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_whatever_happens_the_right_bytes_or_one_line(trouble, server, tmp_path):
    for k in CUTS:
        server.script[PATH] = TROUBLES[trouble](k)
        folder = tmp_path / str(k)
        retries = RetryPolicy(attempts=4, pause=0.001, timeout=0.2) if trouble == "stall" else QUICK
        try:
            path = get(server, folder, retries=retries)
        except DataError:
            assert trouble in ("wrong content", "wrong from there on")
            assert not (folder / "val2017.zip").exists()
            assert (folder / "val2017.zip.bad").stat().st_size == len(DATA)
            assert not (folder / "val2017.zip.part").exists()
            path = get(server, folder)  # as the line says: once more
        assert path.read_bytes() == DATA
        assert not server.script[PATH], "every trouble happened"


@pytest.mark.parametrize("k", CUTS)
def test_what_was_there_is_not_fetched_again(k, server, tmp_path):
    server.always[PATH] = Reply(status=503)
    server.script[PATH] = [Reply(cut=k)]
    with pytest.raises(EnvironmentProblem, match=r"val2017.zip .*503 Service Unavailable.* goes on after") as error:
        get(server, tmp_path)
    one_line(error)
    assert (tmp_path / "val2017.zip.part").read_bytes() == DATA[:k]
    server.always.clear()
    server.requests.clear()
    assert get(server, tmp_path).read_bytes() == DATA
    assert [request.headers["Range"] for request in server.requests] == [f"bytes={k}-"]
    origin = hashlib.sha256(DATA).hexdigest()[:16]
    assert server.requests[0].headers["If-Range"] == f'"{origin}"'


@pytest.mark.parametrize("reply", [Reply(status=416), Reply(shift=1)])
def test_a_server_that_cannot_go_on_is_asked_for_the_whole_file(reply, server, tmp_path):
    server.script[PATH] = [Reply(cut=5000), reply, Reply(status=503)]
    assert get(server, tmp_path).read_bytes() == DATA
    assert [request.headers["Range"] for request in server.requests] == [None, "bytes=5000-", None, None]


ENDLESS = {
    "gone": (Reply(status=404), 1, "404 Not Found"),
    "forbidden": (Reply(status=403), 1, "403 Forbidden"),
    "broken": (Reply(status=500), 4, "500 Internal Server Error"),
    "portal": (Reply(content=HTML, ignore_range=True), 4, "a reply of length 77 where 300000 bytes were to come"),
    "empty": (Reply(cut=0), 4, "peer closed connection"),
    "never further": (Reply(cut=1000, ignore_range=True), 5, "peer closed connection"),
    "no length": (Reply(headers={"Content-Length": ""}, chunked=True), 4, "a reply of length unknown"),
    "longer": (Reply(longer=1), 4, "a reply of length 300001"),
    "shorter": (Reply(longer=-1), 4, "a reply of length 299999"),
    "in circles": (Reply(status=302, headers={"Location": PATH}), 6, "too many redirects"),
    "a redirect to nowhere": (Reply(status=302), 1, "302 Found"),
    "to another host": (
        Reply(status=302, headers={"Location": "http://localhost:9/x"}),
        1,
        "sent on to http://localhost:9/x without https",
    ),
    "to a file": (Reply(status=302, headers={"Location": "file:///etc/passwd"}), 1, "sent on to file://"),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_trouble_without_end_is_one_line_and_leaves_no_file(name, server, tmp_path):
    reply, requests, reason = ENDLESS[name]
    server.always[PATH] = reply
    with pytest.raises(EnvironmentProblem) as error:
        get(server, tmp_path)
    assert reason in one_line(error)
    assert server.url + PATH in str(error.value)
    assert len(server.requests) == requests
    assert not (tmp_path / "val2017.zip").exists()
    server.always.clear()
    assert get(server, tmp_path).read_bytes() == DATA


def test_a_page_of_a_portal_does_not_touch_what_is_here(server, tmp_path):
    server.script[PATH] = [Reply(cut=1000)]
    server.always[PATH] = Reply(content=HTML, ignore_range=True)
    with pytest.raises(EnvironmentProblem):
        get(server, tmp_path)
    assert (tmp_path / "val2017.zip.part").read_bytes() == DATA[:1000]


def test_a_server_that_stalls_or_is_not_there_is_one_line(server, tmp_path):
    server.always[PATH] = Reply(stall=0)
    with pytest.raises(EnvironmentProblem, match=r"no byte for 0\.1 s"):
        get(server, tmp_path, retries=HASTY)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}{PATH}"
        with pytest.raises(EnvironmentProblem, match=r"Connection refused"):
            get(server, tmp_path, url, retries=HASTY)
    with pytest.raises(EnvironmentProblem, match=r"99999/x: no address \(.*port"):
        get(server, tmp_path, "http://127.0.0.1:99999/x", retries=HASTY)
    with pytest.raises(EnvironmentProblem, match=r"http://nowhere\.invalid/x: .*(name|Name)"):
        get(server, tmp_path, "http://nowhere.invalid/x", retries=HASTY)


def test_urls_take_turns(server, tmp_path):
    server.content = {"/a": DATA, "/b": DATA, "/gone": DATA}
    server.always["/gone"] = Reply(status=404)
    server.script = {"/a": [Reply(cut=5000), Reply(status=503)], "/b": [Reply(status=503)]}
    assert get(server, tmp_path, *(server.url + path for path in ("/gone", "/a", "/b"))).read_bytes() == DATA
    asked = [(request.path, request.headers["Range"]) for request in server.requests]
    rest = "bytes=5000-"
    assert asked == [("/gone", None), ("/a", None), ("/a", rest), ("/b", rest), ("/a", rest)]
    assert server.requests[3].headers["If-Range"] is None, "the etag is the other server's"


def test_redirects_on_the_same_host_and_to_https_are_followed(server, tmp_path):
    server.always["/old"] = Reply(status=301, headers={"Location": PATH})
    server.script[PATH] = [Reply(cut=5000)]
    assert get(server, tmp_path, server.url + "/old").read_bytes() == DATA
    assert server.requests[-1].headers["Range"] == "bytes=5000-"
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        secure = f"https://127.0.0.1:{nobody.getsockname()[1]}/x"
        server.always["/old"] = Reply(status=301, headers={"Location": secure})
        with pytest.raises(EnvironmentProblem, match="Connection refused"):  # so it was tried
            get(server, tmp_path / "2", server.url + "/old", retries=HASTY)


def test_a_proxy_of_the_environment_is_heeded(server, tmp_path, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", server.url)
    url = f"http://images.coco.invalid{PATH}"
    assert get(server, tmp_path, url).read_bytes() == DATA
    assert server.requests[0].headers["Host"] == "images.coco.invalid"
    monkeypatch.setenv("HTTP_PROXY", "gopher://127.0.0.1")
    with pytest.raises(EnvironmentProblem, match=r"network settings of the environment .*HTTP_PROXY"):
        get(server, tmp_path / "2", url)


def test_a_password_in_an_address_is_sent_but_not_told(server, tmp_path):
    server.always[PATH] = Reply(status=403)
    with pytest.raises(EnvironmentProblem) as error:
        get(server, tmp_path, server.url.replace("//", "//me:secret@") + PATH)
    assert server.requests[0].headers["Authorization"].startswith("Basic ")
    assert "secret" not in one_line(error)


def test_a_file_of_another_length_under_the_final_name_makes_room(server, tmp_path):
    (tmp_path / "val2017.zip").write_bytes(DATA[:-1])
    assert get(server, tmp_path).read_bytes() == DATA
    assert (tmp_path / "val2017.zip.bad").read_bytes() == DATA[:-1]


@pytest.mark.parametrize("origin", [None, "{", "[]", json.dumps({"url": "u", "etag": "", "size": 7})])
def test_bytes_of_unknown_origin_are_dropped(origin, server, tmp_path):
    (tmp_path / "val2017.zip.part").write_bytes(OTHER[:1000])
    if origin is not None:
        (tmp_path / "val2017.zip.part.json").write_text(origin)
    assert get(server, tmp_path).read_bytes() == DATA


def test_what_had_arrived_whole_is_verified_without_a_request(server, tmp_path):
    (tmp_path / "val2017.zip.part").write_bytes(DATA)
    (tmp_path / "val2017.zip.part.json").write_text(json.dumps({"url": "u", "etag": "", "size": len(DATA)}))
    assert get(server, tmp_path).read_bytes() == DATA
    assert not server.requests


def test_another_content_under_the_name_of_a_whole_file_is_not_taken(server, tmp_path):
    (tmp_path / "val2017.zip").write_bytes(OTHER)  # of the same length
    assert get(server, tmp_path).read_bytes() == DATA
    assert (tmp_path / "val2017.zip.bad").read_bytes() == OTHER
    server.requests.clear()
    assert get(server, tmp_path).read_bytes() == DATA  # the published one is read, not fetched
    assert not server.requests


def test_too_little_room_is_told_with_figures_before_a_request(server, tmp_path):
    file = Archive("zips/train2017.zip", 10**18, "0" * 64)
    with pytest.raises(EnvironmentProblem, match=r"needs 1,000,000,000\.0 GB, [\d,.]+ GB are free .*--root DIR"):
        download(file, (server.url + PATH,), tmp_path, quiet, QUICK)
    assert not server.requests


CHILD = """
import sys
from pathlib import Path
from clipcoco.prepare.download import Archive, download
from clipcoco.prepare.network import RetryPolicy
url, size, sha256, folder = sys.argv[1:]
file, retries = Archive("zips/val2017.zip", int(size), sha256), RetryPolicy(attempts=3, pause=0.01, timeout=60)
download(file, (url,), Path(folder), lambda progress: None, retries)
"""


def child(server: Server, folder: Path) -> subprocess.Popen[str]:
    arguments = (server.url + PATH, str(FILE.size), FILE.sha256, str(folder))
    return subprocess.Popen([sys.executable, "-c", CHILD, *arguments], stdout=subprocess.PIPE, text=True)


def test_ten_kills_cost_nothing_of_what_had_arrived(server, tmp_path):
    server.always[PATH] = Reply(pace=0.005)
    part = tmp_path / "val2017.zip.part"
    for enough in range(25_000, 275_000, 25_000):
        process = child(server, tmp_path)
        until(lambda enough=enough: part.stat().st_size > enough, process)
        process.kill()
        process.communicate()
        assert part.read_bytes() == DATA[: part.stat().st_size]
        here = part.stat().st_size
    server.always.clear()
    assert get(server, tmp_path).read_bytes() == DATA
    starts = [int((request.headers["Range"] or "bytes=0-")[6:-1]) for request in server.requests]
    assert starts == sorted(starts)
    assert starts[-1] == here


def test_a_full_disk_is_one_line_and_the_rest_comes_later(server, tmp_path):
    with file_size_limit(100_000), pytest.raises(EnvironmentProblem) as caught:
        get(server, tmp_path)
    assert harness.one_line(caught.value).startswith("val2017.zip can't be written any further: File too large")
    assert (tmp_path / "val2017.zip.part").read_bytes() == DATA[:100_000]
    assert get(server, tmp_path).read_bytes() == DATA
    assert server.requests[-1].headers["Range"] == "bytes=100000-"


def test_ctrl_c_does_not_wait_for_a_server_that_stalls(server, tmp_path):
    server.always[PATH] = Reply(stall=5000)
    process = child(server, tmp_path)
    part = tmp_path / "val2017.zip.part"
    until(lambda: part.stat().st_size == 5000, process)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)  # the timeout of the download is twice that
    assert process.returncode == -signal.SIGINT
    assert part.read_bytes() == DATA[:5000]


# --- single images ---


def picture(width: int, height: int, kind: str = "JPEG", seed: int = 0) -> bytes:
    noise = random.Random(seed).randbytes(width * height * 3)
    file = io.BytesIO()
    Image.frombytes("RGB", (width, height), noise).save(file, kind)
    return file.getvalue()


@pytest.fixture(scope="module")
def pictures() -> dict[str, bytes]:
    return {f"/val2017/{i:012d}.jpg": picture(24 + i, 32, seed=i) for i in range(40)}


@pytest.fixture
def gallery(pictures) -> Iterator[Server]:
    with Server(dict(pictures)) as server:
        yield server


def remote_images(server: Server, count: int = 40) -> list[RemoteImage]:
    names = [f"val2017/{i:012d}.jpg" for i in range(count)]
    return [RemoteImage(name, (f"{server.url}/{name}",), 24 + i, 32) for i, name in enumerate(names)]


def fetch(images: list[RemoteImage], connections: int = 4, retries: RetryPolicy = QUICK) -> dict[str, bytes]:
    """What was stored; an error's line is there under the error's name."""
    stored: dict[str, bytes] = {}

    def store(image: RemoteImage, data: bytes) -> None:
        assert image.file not in stored
        stored["/" + image.file] = data

    try:
        fetch_images(images, store, quiet, retries, connections)
    except ClipcocoError as error:
        stored[type(error).__name__] = str(error).encode()
    return stored


def test_images_arrive_over_a_bounded_number_of_connections(gallery, pictures):
    gallery.latency = 0.02
    told: list[TaskProgress] = []
    stored: dict[str, bytes] = {}
    threads: set[int] = set()

    def store(image: RemoteImage, data: bytes) -> None:
        threads.add(threading.get_ident())
        stored["/" + image.file] = data

    fetch_images(remote_images(gallery), store, told.append, connections=5, retries=QUICK)
    assert stored == pictures
    assert 1 < gallery.most_in_flight <= 5
    assert len(gallery.requests) == 40
    assert threading.get_ident() not in threads
    assert told[-1] == TaskProgress("val2017", 40, 40, "images")
    assert [progress.done for progress in told] == sorted(progress.done for progress in told)


SMALL_TROUBLES: dict[str, list[Reply]] = {
    "cut": [Reply(cut=100), Reply(cut=0), Reply(cut=7)],
    "stall": [Reply(stall=100)],
    "error of the server": [Reply(status=503), Reply(status=429, headers={"Retry-After": "0"}), Reply(status=500)],
    "page of a portal": [Reply(content=HTML)],
    "too long": [Reply(longer=3)],
    "too short": [Reply(longer=-3)],
    "wrong size of the picture": [Reply(content=picture(9, 9))],
    "damaged": [Reply(content=picture(25, 32)[:-200])],
}


@pytest.mark.parametrize("trouble", SMALL_TROUBLES)
def test_a_passing_trouble_with_an_image_is_tried_again(trouble, gallery, pictures):
    gallery.script["/val2017/000000000001.jpg"] = list(SMALL_TROUBLES[trouble])
    retries = RetryPolicy(attempts=4, pause=0.001, timeout=0.3)
    assert fetch(remote_images(gallery), retries=retries) == pictures


LASTING: dict[str, tuple[Reply, str, int, str]] = {
    "gone": (Reply(status=404), "DataError", 1, "404 Not Found"),
    "portal": (Reply(content=HTML), "DataError", 2, "neither a JPEG nor a PNG image"),
    "bitmap": (Reply(content=picture(25, 32, "BMP")), "DataError", 2, "neither a JPEG nor a PNG image"),
    "resized": (Reply(content=picture(9, 8)), "DataError", 2, "9 x 8 pixels, annotated 25 x 32"),
    "damaged": (Reply(content=picture(25, 32)[:-200]), "DataError", 2, "a damaged image"),
    "cut": (Reply(cut=100), "EnvironmentProblem", 4, "peer closed connection"),
    "broken": (Reply(status=503), "EnvironmentProblem", 4, "503 Service Unavailable"),
    "elsewhere": (
        Reply(status=302, headers={"Location": "http://localhost:9/"}), "EnvironmentProblem", 1, "without https",
    ),
}  # fmt: skip


@pytest.mark.parametrize("trouble", LASTING)
def test_an_image_that_cannot_be_had_is_named_and_the_others_arrive(trouble, gallery, pictures):
    reply, kind, requests, reason = LASTING[trouble]
    path = "/val2017/000000000001.jpg"
    gallery.always[path] = reply
    stored = fetch(remote_images(gallery))
    line = stored.pop(kind).decode()
    assert "\n" not in line
    assert line.startswith("1 of 40 images can't be fetched: val2017/000000000001.jpg (")
    assert line.endswith(f"by hand: {gallery.url}{path}, then --source DIR")
    assert reason in line
    assert "39 are here" in line
    assert stored == {name: data for name, data in pictures.items() if name != path}
    assert sum(request.path == path for request in gallery.requests) == requests


def test_the_second_url_has_what_the_first_has_not(gallery, pictures):
    images = [RemoteImage(i.file, (f"{gallery.url}/empty/{i.file}", *i.urls), i.width, i.height)
              for i in remote_images(gallery)]  # fmt: skip
    assert fetch(images) == pictures


def test_without_a_network_ten_images_are_tried_and_the_reason_is_told():
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}/x.jpg"
        (line,) = fetch([RemoteImage(f"val2017/{i}.jpg", (url,), 1, 1) for i in range(40)], 4, HASTY).items()
    assert line[0] == "EnvironmentProblem"
    assert b"Connection refused" in line[1]
    (line,) = fetch([RemoteImage("x.jpg", ("http://nowhere.invalid/x.jpg",), 1, 1)], 4, HASTY).items()
    assert b"name" in line[1].lower().partition(b"x.jpg: ")[2]


def test_a_png_named_jpg_is_fine(gallery, pictures):
    gallery.content["/val2017/000000000001.jpg"] = png = picture(25, 32, "PNG")
    assert fetch(remote_images(gallery)) == {**pictures, "/val2017/000000000001.jpg": png}


def test_a_wrong_mirror_ends_it_early(gallery):
    gallery.content = {}
    (line,) = fetch(remote_images(gallery), connections=1).values()
    assert line.startswith(b"10 of 40 images can't be fetched: val2017/000000000000.jpg (http")
    assert b"and 7 others. 0 are here" in line
    assert len(gallery.requests) == 10


def test_an_error_of_storing_stops_all_and_is_raised(gallery):
    def store(image: RemoteImage, data: bytes) -> None:
        raise EnvironmentProblem("the disk is full")

    with pytest.raises(EnvironmentProblem, match="the disk is full"):
        fetch_images(remote_images(gallery), store, quiet, QUICK, 2)
    assert len(gallery.requests) <= 6


IMAGES_CHILD = """
import sys
from pathlib import Path
from clipcoco.prepare.single_images import RemoteImage, fetch_images
url, folder = sys.argv[1:]
images = [RemoteImage(f"val2017/{i:012d}.jpg", (f"{url}/val2017/{i:012d}.jpg",), 24 + i, 32) for i in range(40)]
def store(image, data):
    (Path(folder) / Path(image.file).name).write_bytes(data)
assert "torch" not in sys.modules
fetch_images(images, store, lambda progress: None)
"""


def test_ctrl_c_stops_all_connections_at_once(gallery, pictures, tmp_path):
    for i in range(20, 40):
        gallery.always[f"/val2017/{i:012d}.jpg"] = Reply(stall=i)
    process = subprocess.Popen([sys.executable, "-c", IMAGES_CHILD, gallery.url, str(tmp_path)], stderr=subprocess.PIPE)
    until(lambda: len(gallery.requests) >= 36 and gallery.in_flight == 16)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)  # the timeout of a stalled connection is twice that
    assert process.returncode == -signal.SIGINT
    assert errors.decode().strip().endswith("KeyboardInterrupt")
    assert {f"/val2017/{path.name}": path.read_bytes() for path in tmp_path.iterdir()} == dict(
        list(pictures.items())[:20]
    )
