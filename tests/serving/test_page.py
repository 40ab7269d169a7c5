"""The search page in a browser: search, explanation, ranking in the browser, keyboard, narrow screens, hostile titles.

Requires a Chromium, which ``FED_DISTILL_CHROMIUM`` names unless it is on the path, and ``fed-distill[browser-test]``.
"""

import os
import re
import shutil
import subprocess
import sys
import threading
from dataclasses import asdict
from pathlib import Path

import pytest
import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from fastapi.testclient import TestClient

from fed_distill import seeds
from fed_distill.data.student_description import StudentDescription
from fed_distill.data.tasks import RELEVANCE
from fed_distill.errors import ConfigError
from fed_distill.models import build_student
from fed_distill.models.student_folder import save_student
from fed_distill.serving.explain import explain
from fed_distill.serving.index import Product, ProductIndex
from fed_distill.serving.page import mount_page, page_files, student_paths
from fed_distill.serving.student import load_student
from fed_distill.serving.web_export import write_web

KEY = "fdk_correct"
HOSTILE = "<script>document.title = 'run'</script><img src=x onerror=\"document.title = 'run'\"> hub"
TITLES = ("Anker 555 USB-C Hub", "HDMI cable 2 m", "手机壳 iphone15", HOSTILE, "hub " + "x" * 50, "red shoe")
QUERY = "usb-c hub"


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """A two-tower student whose weights are drawn, and its export for the browser."""
    folder = tmp_path_factory.mktemp("page")
    with seeds.scope(0, "student of the page"):
        model = build_student("two-tower", {"rows": 512, "width": 8, "head_width": 8}, RELEVANCE)
    save_student(folder / "student", model, StudentDescription(RELEVANCE, 120))
    loaded = load_student(folder / "student")
    write_web(folder / "web", loaded, folder / "student", "float32")
    return loaded, folder / "web"


@pytest.fixture(scope="module")
def application(student):
    """The routes that the page calls, with answers of the library."""
    loaded, web = student
    index = ProductIndex.build(loaded, [Product(str(place), title) for place, title in enumerate(TITLES)])
    app = FastAPI()
    mount_page(app, web)

    @app.middleware("http")
    async def check_key(request: Request, call_next):
        protected = {"/search", "/explain", *student_paths()}
        if request.url.path in protected and request.headers.get("authorization") != f"Bearer {KEY}":
            return JSONResponse({"error": "unauthorized", "detail": "send a valid access key"}, 401)
        return await call_next(request)

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException):
        return JSONResponse({"error": "invalid", "detail": error.detail}, error.status_code)

    @app.post("/search")
    def search(asked: dict):
        if asked["query"] == "nothing":
            return {"hits": []}
        if asked["query"] == "refused":
            raise HTTPException(422, "query has <b>no</b> words: write one")
        return {"hits": [hit._asdict() for hit in index.search(asked["query"], asked["k"])]}

    @app.post("/explain")
    def why(asked: dict):
        found = asdict(explain(loaded, asked["query"], asked["title"]))
        words = {name: [word._asdict() for word in found[name]] for name in ("query_words", "title_words")}
        return {**found, **words}

    return app


def test_files_have_a_policy_that_allows_no_other_script(application):
    client = TestClient(application)
    for path, (content, media_type) in page_files().items():
        answer = client.get(path)
        assert (answer.status_code, answer.content) == (200, content)
        assert answer.headers["content-type"].startswith(media_type)
        policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert answer.headers["x-content-type-options"] == "nosniff"
        # A file names no other host, and no sink of markup.
        assert not re.findall(rb"https?://(?!shop\.example)|innerHTML|outerHTML|insertAdjacent|eval\(", content)
    page = page_files()["/"][0].decode()
    assert not re.search(r"<script(?![^>]* src=)|<style| style=| on[a-z]+=", page)


def test_the_students_files_are_served_and_nothing_else(application, tmp_path):
    client = TestClient(application, headers={"Authorization": f"Bearer {KEY}"})
    assert {client.get(path).status_code for path in student_paths()} == {200}
    for path in ("/page/student/model.json", "/page/student/..%2f..%2fetc%2fpasswd", "/page/page.py"):
        assert client.get(path).status_code == 404
    with pytest.raises(ConfigError, match=r"has no student\.json: pass the folder web of an export"):
        mount_page(FastAPI(), tmp_path)


def test_the_page_imports_no_torch():
    code = (
        "import sys; from fed_distill.serving.page import page_files; print('torch' in sys.modules, len(page_files()))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.split() == ["False", str(len(page_files()))]


@pytest.fixture(scope="module")
def address(application):
    """Where the application listens."""
    server = uvicorn.Server(uvicorn.Config(application, port=0, log_level="warning"))
    started = threading.Event()
    startup = server.startup

    async def start(sockets=None):
        await startup(sockets)
        started.set()

    server.startup = start
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert started.wait(60)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}/"
    server.should_exit = True
    thread.join(60)


@pytest.fixture(scope="module")
def chromium():
    """A headless Chromium."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    path = os.environ.get("FED_DISTILL_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip("no Chromium is on the path: install one, or name it by FED_DISTILL_CHROMIUM")
    api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install 'fed-distill[browser-test]'"
    )
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--no-zygote"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium, address):
    """A function that opens the page, in a context with the options given; no script may fail in it."""
    problems, contexts = [], []

    def get(**options):
        contexts.append(chromium.new_context(**options))
        page = contexts[-1].new_page()
        page.set_default_timeout(120_000)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text) if "Security Policy" in message.text else None)
        page.goto(address)
        page.get_by_label("Access key").fill(KEY)
        return page

    yield get
    for context in contexts:
        context.close()
    assert problems == []


def search(page, query=QUERY):
    page.get_by_label("Query").fill(query)
    page.get_by_role("button", name="Search").click()
    page.locator("#results[aria-busy=false]").wait_for(state="attached")


def shown(page):
    """Return titles and scores of the results."""
    titles, scores = (page.locator(f"#results .{name}").all_text_contents() for name in ("title", "score"))
    return titles, [float(score.removeprefix("score ")) for score in scores]


def test_results_are_ranked_with_scores(open_page, student):
    page = open_page()
    assert "Enter a query" in page.get_by_role("status").inner_text()
    search(page)
    expected = student[0].rank(QUERY, TITLES)
    titles, scores = shown(page)
    assert titles == [TITLES[place] for place in expected.order]
    assert scores == pytest.approx(expected.scores[expected.order], abs=6e-5)
    assert page.get_by_role("status").inner_text() == "6 products, best first. Choose one to see why."
    search(page, "nothing")
    assert shown(page) == ([], [])
    assert page.get_by_role("status").inner_text() == "No products were found."


def test_a_chosen_product_shows_what_each_word_adds(open_page, student):
    page = open_page()
    search(page)
    page.get_by_role("button", name="Anker 555 USB-C Hub").click()
    region = page.get_by_role("group", name="Why this score?")
    region.locator(".word").first.wait_for()
    expected = explain(student[0], QUERY, TITLES[0])
    words = [*expected.query_words, *expected.title_words]
    found = [text.replace("−", "-").rsplit(" ", 1) for text in region.locator(".word").all_text_contents()]
    assert [text for text, _ in found] == [word.text for word in words]
    assert [float(number) for _, number in found] == pytest.approx([word.contribution for word in words], abs=6e-5)
    assert f"Score {expected.score:.4f} = {expected.baseline:.4f} without words" in region.inner_text()
    colors = region.locator(".word").evaluate_all("all => all.map(one => getComputedStyle(one).backgroundColor)")
    opacity = [float(re.split("[,/ )]+", color)[-2]) if "a(" in color else 1.0 for color in colors]
    largest = max(range(len(words)), key=lambda place: abs(words[place].contribution))
    assert opacity[largest] == max(opacity) > min(opacity)
    page.get_by_role("button", name="Anker 555 USB-C Hub").click()
    assert not region.is_visible()


def test_the_keyboard_alone_searches_and_explains(open_page):
    page = open_page()
    page.keyboard.press("Tab")
    page.keyboard.type(QUERY)
    page.keyboard.press("Enter")
    first = page.locator("#results button").first
    first.wait_for()
    for _ in range(4):  # number of results, submit, toggle, first result
        page.keyboard.press("Tab")
    assert first.evaluate("one => one === document.activeElement && one.matches(':focus-visible')")
    assert first.evaluate("one => getComputedStyle(one).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    page.locator(".word").first.wait_for()
    assert first.get_attribute("aria-expanded") == "true"
    page.keyboard.press("Space")
    assert first.get_attribute("aria-expanded") == "false"


def test_controls_have_names_and_results_are_announced(open_page):
    page = open_page()
    search(page)
    page.get_by_label("Rank in the browser").check()
    unnamed = page.locator("input, select, textarea").evaluate_all(
        "all => all.filter(one => !one.labels.length).map(one => one.id)"
    )
    assert unnamed == []
    assert page.locator("#status").get_attribute("aria-live") == "polite"
    assert page.get_by_label("Titles, one per line").is_visible()


def test_a_narrow_screen_needs_no_horizontal_scrolling(open_page):
    page = open_page(viewport={"width": 390, "height": 800})
    search(page)
    for line in page.locator("#results button").all():
        line.click()
    page.locator("#results li:last-child .word").first.wait_for()
    page.get_by_label("Rank in the browser").focus()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.get_by_label("Rank in the browser").check()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_texts_of_products_and_errors_are_no_markup(open_page):
    page = open_page()
    page.evaluate("document.title = 'safe'")
    search(page)
    page.get_by_role("button", name="<script>").click()
    page.locator(".word").first.wait_for()
    assert HOSTILE in shown(page)[0]
    text = page.locator("li:has(.title:text('onerror')) .explained").last.inner_text()
    assert "<" in text and "script" in text
    page.get_by_label("Rank in the browser").check()
    page.get_by_label("Titles").fill(HOSTILE)
    page.get_by_role("button", name="Rank").click()
    page.locator("#results .product").wait_for()
    assert shown(page)[0] == [HOSTILE]
    assert page.locator("main img, main script").count() == 0
    page.get_by_label("Rank in the browser").uncheck()
    search(page, "refused")
    assert page.get_by_role("alert").inner_text() == "query has <b>no</b> words: write one (invalid)"
    assert page.title() == "safe"


def test_errors_say_what_the_service_says(open_page):
    page = open_page()
    page.get_by_label("Access key").fill("wrong")
    search(page)
    assert page.get_by_role("alert").inner_text() == "send a valid access key (unauthorized)"
    page.get_by_label("Access key").fill("手 1")
    search(page)
    assert "ASCII characters and no blanks" in page.get_by_role("alert").inner_text()
    page.get_by_label("Access key").fill(f" {KEY} ")
    search(page)
    assert not page.get_by_role("alert").is_visible()
    page.route("**/search", lambda route: route.fulfill(status=502, body="<html>bad gateway</html>"))
    search(page)
    assert page.get_by_role("alert").inner_text() == "The service gave no reason. (HTTP 502)"
    page.unroute("**/search")
    page.route("**/search", lambda route: route.fulfill(status=200, body="<html>log in</html>"))
    search(page)
    assert "The answer is not the service's" in page.get_by_role("alert").inner_text()
    page.unroute("**/search")
    page.route("**/search", lambda route: route.abort())
    search(page)
    assert "could not be sent" in page.get_by_role("alert").inner_text()
    page.unroute("**/search")
    page.route("**/explain", lambda route: route.abort())
    search(page)
    assert not page.get_by_role("alert").is_visible()
    first = page.locator("#results button").first
    first.click()
    page.get_by_text("No explanation: The request could not be sent").wait_for()
    page.unroute("**/explain")
    first.click()
    first.click()
    page.locator(".word").first.wait_for()


def test_without_a_student_for_browsers_the_page_says_so_and_tries_again(open_page):
    page = open_page()
    page.route("**/student.json", lambda route: route.fulfill(status=404, body="{}"))
    page.get_by_label("Rank in the browser").check()
    page.get_by_label("Query").fill(QUERY)
    page.get_by_role("button", name="Rank").click()
    page.get_by_role("alert").wait_for()
    assert "has no student for browsers" in page.get_by_role("alert").inner_text()
    assert "HTTP 404" in page.get_by_role("alert").inner_text()
    page.unroute("**/student.json")
    page.get_by_role("button", name="Rank").click()
    page.get_by_text("Enter titles to rank.").wait_for()
    assert not page.get_by_role("alert").is_visible()


def test_an_answer_that_was_overtaken_is_not_shown(open_page):
    page = open_page()
    held = []
    page.route("**/search", lambda route: held.append(route) if not held else route.continue_())
    page.get_by_label("Query").fill("red shoe")
    with page.expect_request("**/search"):
        page.get_by_role("button", name="Search").click()
    assert page.get_by_role("status").inner_text() == "Searching …"
    search(page, "nothing")
    held[0].abort()
    assert shown(page) == ([], [])
    assert not page.get_by_role("alert").is_visible()


def test_titles_are_ranked_without_a_request(open_page, student):
    page = open_page()
    requests = []
    page.on("request", lambda request: requests.append(request))
    page.get_by_label("Rank in the browser").check()
    page.get_by_label("Query").fill(QUERY)
    page.get_by_label("Titles").fill("\n".join(TITLES[::-1]))
    page.get_by_role("button", name="Rank").click()
    page.locator("#results .product").first.wait_for()
    assert {request.method for request in requests} == {"GET"}
    assert len(requests) == 2  # the student's files
    page.context.set_offline(True)
    for query in ("red shoe", "手机"):
        page.get_by_label("Query").fill(query)
        page.get_by_role("button", name="Rank").click()
        page.locator("#results[aria-busy=false]").wait_for(state="attached")
        titles, scores = shown(page)
        expected = student[0].rank(query, TITLES[::-1])
        assert titles == [TITLES[::-1][place] for place in expected.order]
        assert scores == pytest.approx(expected.scores[expected.order], abs=6e-5)
    assert len(requests) == 2
    page.get_by_label("Titles").fill("x" * 121)
    page.get_by_role("button", name="Rank").click()
    page.locator("#results[aria-busy=false]").wait_for(state="attached")
    assert "titles[0] has 121 characters" in page.get_by_role("alert").inner_text()


def test_the_access_key_is_in_a_header_and_nowhere_else(open_page):
    page = open_page()
    requests = []
    page.on("request", lambda request: requests.append(request))
    search(page)
    assert requests[0].headers["authorization"] == f"Bearer {KEY}"
    assert all(KEY not in request.url and KEY not in (request.post_data or "") for request in requests)
    assert KEY not in page.url
    assert page.evaluate("localStorage.length + sessionStorage.length + document.cookie.length") == 0
    page.reload()
    assert page.get_by_label("Access key").input_value() == ""


def test_colours_and_motion_follow_the_system(open_page):
    background = "getComputedStyle(document.body).backgroundColor"
    light, dark = open_page(color_scheme="light"), open_page(color_scheme="dark", reduced_motion="reduce")
    assert light.evaluate(background) != dark.evaluate(background)
    search(dark)
    assert dark.locator(".bar").first.evaluate("one => getComputedStyle(one).transitionDuration") == "0s"
