"""The search page of the service: static files that need no internet, and a student that the browser itself can run.

The page holds no data. It is served without an access key, and sends the key that a person enters with each request.
Its headers let it load and call nothing but this service, run no script but its own files, and insert no markup.
"""

from importlib.resources import files
from pathlib import Path

from fastapi import FastAPI, HTTPException, Response
from fastapi.responses import FileResponse

from fed_distill.errors import ConfigError
from fed_distill.serving.exported_folder import WEB_FILES

PAGE = "/"
ASSETS = "/page/"
STUDENT = "/page/student/"

_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
"""Headers of every file of the page."""


def page_files() -> dict[str, tuple[bytes, str]]:
    """Return content and media type of the page's files by path: ``/``, ``/page/page.js`` and others."""
    found = {}
    for file in files("fed_distill.serving").joinpath("web").iterdir():
        path = PAGE if file.name == "index.html" else ASSETS + file.name
        found[path] = file.read_bytes(), _TYPES[Path(file.name).suffix]
    return found


def student_paths() -> tuple[str, ...]:
    """Return the paths of the browser's student, which are for holders of an access key that may rank."""
    return tuple(STUDENT + name for name in WEB_FILES)


def mount_page(app: FastAPI, student: Path | None = None) -> None:
    """Add the page to ``app``, which has the routes ``/search`` and ``/explain``.

    ``page_files`` are public; the application must protect ``student_paths``, as it does its own routes.

    :param student: folder ``web`` of an export, for "Rank in the browser"; None: the page says that there is none
    :raises ConfigError: the folder is not that of a web export
    """
    for path, (content, media_type) in page_files().items():
        _add_file(app, path, content, media_type)
    if student is None:
        return
    for name in WEB_FILES:
        if not (student / name).is_file():
            raise ConfigError(
                f"{student} has no {name}: pass the folder web of an export that was written with --web int8"
            )

    @app.get(STUDENT + "{name}", include_in_schema=False)
    def student_file(name: str) -> FileResponse:
        if name not in WEB_FILES:
            raise HTTPException(404, "the student has no such file")
        return FileResponse(student / name, headers=HEADERS)


def _add_file(app: FastAPI, path: str, content: bytes, media_type: str) -> None:
    @app.get(path, include_in_schema=False)
    def page_file() -> Response:
        return Response(content, media_type=media_type, headers=HEADERS)
