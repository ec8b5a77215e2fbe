"""What a hostile page, name, path or body meets: every request here must be refused."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from viewer_stores import CHANGE, new_store, viewing

from coverslip.errors import InvalidConfig
from coverslip.viewer import answers, safety
from coverslip.viewer.safety import Access, new_token

SLIDE = "/api/slides/CMU-1-Small-Region"
TOKEN = "a-token-of-some-length"


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory, small_slide: Path) -> Path:
    folder = tmp_path_factory.mktemp("safety")
    (folder / "secret.txt").write_text("hidden")
    new_store(folder / "out", small_slide)
    return folder / "out"


@pytest.fixture(scope="module")
def client(output: Path, small_slide: Path) -> Iterator[TestClient]:
    with viewing([small_slide], output) as found:
        yield found


@pytest.fixture
def stranger(output: Path, small_slide: Path) -> Iterator[TestClient]:
    """A client of a viewer that other machines reach."""
    access = Access("0.0.0.0", TOKEN, frozenset({"slides.example"}))
    with viewing([small_slide], output, access=access) as found:
        yield found


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8080", "localhost:8080", "localhost", "LOCALHOST:9000", "[::1]:8080"]
)
def test_this_machine_by_its_names(client: TestClient, host: str) -> None:
    assert client.get("/api/slides", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "localhost.evil.example",
     "192.168.1.7:8080", "evil.example@127.0.0.1", "127.0.0.1, evil.example", "", "0.0.0.0:8080"],
)  # fmt: skip
def test_a_name_that_was_pointed_here_is_refused(client: TestClient, host: str) -> None:
    for path in ("/", "/api/slides", f"{SLIDE}/tiles/original/5/0_0.jpg", "/static/x.js"):
        answer = client.get(path, headers={"host": host})
        assert answer.status_code == 421
        assert "viewer" in answer.json()["error"]


def test_two_hosts_are_one_too_many(client: TestClient) -> None:
    headers = [("host", "127.0.0.1"), ("host", "evil.example")]
    assert client.get("/api/slides", headers=headers).status_code == 400


def test_names_of_a_viewer_that_others_reach(stranger: TestClient) -> None:
    cookie = {"cookie": f"coverslip={Access('0.0.0.0', TOKEN).cookie}"}
    for host, status in (
        ("192.168.1.7:8080", 200), ("slides.example", 200), ("SLIDES.example:443", 200),
        ("evil.example", 421),
    ):  # fmt: skip
        answer = stranger.get("/api/slides", headers={**cookie, "host": host})
        assert answer.status_code == status, host


# ---------------------------------------------------------------- tokens


def test_other_addresses_need_a_token() -> None:
    for host in ("0.0.0.0", "::", "192.168.1.7", "slides.example"):
        with pytest.raises(InvalidConfig, match="token"):
            Access(host)
    for host in ("127.0.0.1", "127.0.0.53", "::1", "localhost"):
        assert Access(host).local
    with pytest.raises(InvalidConfig, match="16 characters"):
        Access("0.0.0.0", "short")
    assert len({new_token() for _ in range(10)}) == 10
    assert TOKEN not in repr(Access("0.0.0.0", TOKEN))


def test_nothing_is_told_without_the_token(stranger: TestClient) -> None:
    for path in ("/", "/api/slides", f"{SLIDE}/tiles/original/5/0_0.jpg", "/static/app.js",
                 f"{SLIDE}/label.jpg", "/api/jobs/x", "/?token=", "/?token=wrong-wrong-wrong",
                 f"/?token={TOKEN}x", "/nowhere"):  # fmt: skip
        answer = stranger.get(path, follow_redirects=False)
        assert answer.status_code == 401, path
        assert "CMU" not in answer.text
    for cookie in ("coverslip=", "coverslip=x", f"coverslip={TOKEN}", f"other={TOKEN}", ";;=", "é"):
        headers = {"cookie": cookie.encode()}
        assert stranger.get("/api/slides", headers=headers).status_code == 401
    # a change cannot bring the token along in its address
    answer = stranger.post(f"{SLIDE}/run?token={TOKEN}", json={}, headers=CHANGE)
    assert answer.status_code == 401


def test_the_token_once_then_a_cookie(stranger: TestClient) -> None:
    answer = stranger.get(f"/api/slides?token={TOKEN}&slide=a%26b", follow_redirects=False)
    assert answer.status_code == 303
    assert answer.headers["location"] == "/?slide=a%26b"
    cookie = answer.headers["set-cookie"]
    assert re.search(r"; HttpOnly; SameSite=Strict$", cookie)
    assert TOKEN not in cookie
    assert stranger.get("/api/slides").status_code == 200


def test_the_way_on_never_leads_elsewhere(stranger: TestClient) -> None:
    for path in ("//evil.example", "/\\evil.example", "/%0d%0aset-cookie:%20x=y"):
        answer = stranger.get(f"{path}?token={TOKEN}", follow_redirects=False)
        assert answer.headers.get("location", "/") == "/"


def test_tokens_are_compared_in_constant_time(
    stranger: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def compare(given: bytes, wanted: bytes) -> bool:
        compared.append((given, wanted))
        return False

    monkeypatch.setattr(safety.hmac, "compare_digest", compare)
    stranger.get("/?token=some")
    stranger.get("/", headers={"cookie": "coverslip=other"})
    assert [given for given, _ in compared] == [b"some", b"other"]


# ---------------------------------------------------------------- other sites' pages


@pytest.mark.parametrize("path", ["run", "click", "similar", "prompt"])
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 403),
        ({"x-coverslip": "0"}, 403),
        ({**CHANGE, "origin": "https://evil.example"}, 403),
        ({**CHANGE, "origin": "null"}, 403),
        ({**CHANGE, "origin": "http://127.0.0.1:9999"}, 403),
        ({**CHANGE, "sec-fetch-site": "cross-site"}, 403),
        ({**CHANGE, "sec-fetch-site": "same-site"}, 403),
        ({**CHANGE, "content-type": "text/plain"}, 415),
        ({**CHANGE, "content-type": "application/x-www-form-urlencoded"}, 415),
        ({**CHANGE, "content-type": "multipart/form-data"}, 415),
    ],
)
def test_changes_asked_for_by_other_pages(
    client: TestClient, path: str, headers: dict[str, str], status: int
) -> None:
    sent = {"content-type": "application/json", **headers}
    assert client.post(f"{SLIDE}/{path}", content=b"{}", headers=sent).status_code == status


def test_annotations_and_jobs_are_guarded_alike(client: TestClient) -> None:
    assert client.put(f"{SLIDE}/annotations", json={}).status_code == 403
    assert client.delete("/api/jobs/1", headers={"content-type": "text/plain"}).status_code == 403
    for method in ("TRACE", "CONNECT", "PATCH", "PROPFIND"):
        assert client.request(method, f"{SLIDE}/annotations").status_code == 405
    own = {**CHANGE, "origin": "http://127.0.0.1:8080", "sec-fetch-site": "same-origin"}
    assert client.post(f"{SLIDE}/click", json={}, headers=own).status_code == 400


def test_other_pages_cannot_read(client: TestClient) -> None:
    answer = client.get("/api/slides", headers={"origin": "https://evil.example"})
    assert not [name for name in answer.headers if name.startswith("access-control-")]
    cross = client.get("/api/slides", headers={"sec-fetch-site": "cross-site"})
    assert cross.status_code == 403
    # a link to the page itself may stand anywhere
    assert client.get("/", headers={"sec-fetch-site": "cross-site"}).status_code != 403


def test_every_answer_tells_the_browser_what_it_must_not_do(
    client: TestClient, stranger: TestClient
) -> None:
    asked = [
        client.get("/"),
        client.get("/api/slides"),
        client.get(f"{SLIDE}/tiles/original/5/0_0.jpg"),
        client.get("/nowhere"),
        client.get("/", headers={"host": "evil.example"}),
        client.post(f"{SLIDE}/run"),
        stranger.get("/"),
    ]
    for answer in asked:
        headers = answer.headers
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'self'; img-src 'self' blob: data:;")
        assert "unsafe" not in policy
        assert "*" not in policy
        assert "frame-ancestors 'none'" in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cross-origin-resource-policy"] == "same-origin"


# ---------------------------------------------------------------- paths


@pytest.mark.parametrize(
    "path",
    ["../secret.txt", "%2e%2e/secret.txt", "..%2fsecret.txt", "..%5csecret.txt",
     "%252e%252e%252fsecret.txt", "/etc/passwd", "%2fetc%2fpasswd", "a%00.js", "%00",
     "....//secret.txt", "page/../../app.py", "C:%5cWindows", "~root", "%c0%ae%c0%ae/secret.txt"],
)  # fmt: skip
def test_no_path_leads_out(client: TestClient, path: str) -> None:
    for url in (f"/static/{path}", f"/api/slides/{path}", f"/api/slides/{path}/thumbnail.jpg",
                f"/api/slides/{path}/annotations", f"/api/slides/{path}/tiles/original/0/0_0.jpg",
                f"{SLIDE}/nuclei/{path}/0/0_0.bin", f"{SLIDE}/heat/{path}/0/0_0.png",
                f"{SLIDE}/tiles/{path}/0/0_0.jpg", f"/api/jobs/{path}"):  # fmt: skip
        answer = client.get(url)
        assert answer.status_code == 404, url
        assert "hidden" not in answer.text
        assert "root:" not in answer.text


def test_the_pages_files_and_no_others(tmp_path: Path, small_slide: Path) -> None:
    from starlette.testclient import TestClient

    from coverslip.viewer.app import viewer_app
    from coverslip.viewer.viewer import Viewer

    page = tmp_path / "page"
    (page / "js").mkdir(parents=True)
    (page / "index.html").write_text(
        '<script src="/static/js/app.js"></script><img src="/static/none.png">'
    )
    (page / "js" / "app.js").write_text("1")
    (tmp_path / "secret.js").write_text("hidden")
    (page / "link.js").symlink_to(tmp_path / "secret.js")
    viewer = Viewer([(str(small_slide), "a")], None, Access())
    with TestClient(viewer_app(viewer, page), base_url="http://127.0.0.1:8080") as client:
        index = client.get("/").text
        (url,) = re.findall(r'src="(/static/js/app\.js\?v=\w+)"', index)
        assert '"/static/none.png"' in index
        lasting, checked = client.get(url), client.get("/static/js/app.js")
        assert lasting.text == checked.text == "1"
        assert lasting.headers["content-type"].startswith("text/javascript")
        assert "immutable" in lasting.headers["cache-control"]
        assert "no-cache" in checked.headers["cache-control"]
        assert client.get("/static/link.js").status_code == 404
        assert client.get("/static/js").status_code == 404
        (page / "js" / "app.js").write_text("2")
        assert client.get(url).text == "2"
        assert "immutable" not in client.get(url).headers["cache-control"]


def test_labels_are_served_only_when_asked_to(
    client: TestClient, output: Path, small_slide: Path, address_slide: Path
) -> None:
    assert client.get(f"{SLIDE}/label.jpg").status_code == 403
    assert client.get(SLIDE).json()["label"] is False
    for name in ("label", "macro", "associated/label", "macro.jpg"):
        assert client.get(f"{SLIDE}/{name}").status_code == 404
    with viewing([small_slide, address_slide], output, show_label=True) as other:
        answer = other.get(f"{SLIDE}/label.jpg")
        assert (answer.status_code, answer.content[:2]) == (200, b"\xff\xd8")
        assert answer.headers["cache-control"] == "no-store"
        assert other.get(SLIDE).json()["label"] is True
        assert other.get("/api/slides/address/label.jpg").status_code == 404


# ---------------------------------------------------------------- bodies


def test_long_bodies_are_cut_off(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    headers = {**CHANGE, "content-type": "application/json"}
    read: list[int] = []

    def endless() -> Iterator[bytes]:
        for _ in range(1000):
            read.append(1)
            yield b" " * 65536

    answer = client.post(f"{SLIDE}/click", content=endless(), headers=headers)
    assert answer.status_code == 413
    claimed = {**headers, "content-length": str(10**12)}
    assert client.post(f"{SLIDE}/click", content=b"{}", headers=claimed).status_code == 413
    big = {**headers, "if-match": '"none"'}
    answer = client.put(f"{SLIDE}/annotations", content=b" " * ((16 << 20) + 1), headers=big)
    assert answer.status_code == 413
    assert answers.MOST_JSON < 16 << 20


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{", b"null", b'"x"', b"\xff\xfe", b'{"points": "x"}', b'{"points": [[1]]}',
     b'{"points": [[1, "2"]]}', b'{"points": [[1, true]]}', b'{"points": [[1e400, 1]]}',
     b'{"points": [[NaN, 1]]}', b'{"points": []}', b'{"points": [[1, 1]], "squiggle": 1}',
     b"[" * 100_000],
)  # fmt: skip
def test_nonsense_is_named(client: TestClient, body: bytes) -> None:
    headers = {**CHANGE, "content-type": "application/json"}
    answer = client.post(f"{SLIDE}/click", content=body, headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"]


def test_text_that_looks_like_markup_stays_text(client: TestClient) -> None:
    answer = client.get("/api/slides/<script>alert(1)</script>")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/json"
    answer = client.get(f"{SLIDE}/tiles/<img onerror=x>/0/0_0.jpg")
    assert answer.headers["content-type"] == "application/json"


def test_a_fault_of_ours_is_told_without_its_inside(
    output: Path, small_slide: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    with viewing([small_slide], output) as client:
        monkeypatch.setattr("coverslip.viewer.slide_routes.thumbnail_jpeg", lambda opened: 1 / 0)
        unraising = TestClient(client.app, base_url=client.base_url, raise_server_exceptions=False)
        answer = unraising.get(f"{SLIDE}/thumbnail.jpg")
    assert answer.status_code == 500
    assert "ZeroDivisionError" in answer.json()["error"]
    assert "Traceback" not in answer.text
    assert "thumbnail_jpeg" in caplog.text or "1 / 0" in caplog.text
