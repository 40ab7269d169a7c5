"""The HTTP service of a student: ``build_service`` makes the application. ``docs/how-to/serving.md`` describes its use.

Routes answer by the student that ``Students`` chooses; ``Gate`` has checked who asks before a route is called.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from pydantic_core import ErrorDetails
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse

from fed_distill.errors import DataError
from fed_distill.serving.api_keys import KeyRing, OwnBucket
from fed_distill.serving.api_models import (
    ApiRequest,
    ChangedAnswer,
    DeleteProductsRequest,
    ErrorCode,
    ExplainAnswer,
    ExplainRequest,
    FoundProduct,
    HealthAnswer,
    PutProductsRequest,
    RankAnswer,
    RankRequest,
    ReadyAnswer,
    RecommendRequest,
    ReloadAnswer,
    ScoreAnswer,
    ScoreRequest,
    SearchAnswer,
    SearchRequest,
    WordAnswer,
)
from fed_distill.serving.batching import Overloaded
from fed_distill.serving.exported_folder import WEB
from fed_distill.serving.gate import Gate, Refused, Rules
from fed_distill.serving.openapi import VERSION_HEADER, describe
from fed_distill.serving.page import mount_page, page_files, student_paths
from fed_distill.serving.product_changes import ProductChanges
from fed_distill.serving.scorer import Ranked, checked_bm25, ranked_with
from fed_distill.serving.served_student import ServedStudent
from fed_distill.serving.service_config import LimitsTable, ServeConfig
from fed_distill.serving.service_metrics import ServiceMetrics
from fed_distill.serving.shared_rates import shared_buckets
from fed_distill.serving.students import Students
from fed_distill.serving.watch import Watch
from fed_distill.validation import described

_RULES: Rules = {
    "/score": "score",
    "/rank": "rank",
    "/recommend": "recommend",
    "/search": "search",
    "/explain": "explain",
    "/products": "index",
    "/products/delete": "index",
    "/metrics": "metrics",
    "/admin/reload": "admin",
    "/health": None,
    "/ready": None,
    "/openapi.json": None,
    **dict.fromkeys(page_files()),
    **dict.fromkeys(student_paths(), "rank"),
}
"""The scope that each route requires of a key; None: none."""
_CODES: dict[int, ErrorCode] = {404: "not_found", 405: "method_not_allowed"}


def build_service(
    config: ServeConfig, folder: Path | None = None, rates: Path | None = None, replaces: bool = False
) -> FastAPI:
    """Return the application; it loads its students when it starts, and is not ready until then.

    :param config: content of ``serve.toml``
    :param folder: folder of that file, whose keys are read again when it changes
    :param rates: folder in which the workers of a service share the rates of keys; None: there is one process
    :param replaces: whether this worker starts after others have served (``shared_buckets``)
    :raises ConfigError: anybody on the network could use the service, or a package is missing
    """
    config.check_access()
    metrics = ServiceMetrics()
    keys = KeyRing(config.key, bucket=OwnBucket.full if rates is None else shared_buckets(rates, replaces))
    students = Students(config, folder, keys, metrics)
    watch = Watch(config, students, metrics)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(students.watch()), asyncio.create_task(watch.run())]
        yield
        for task in tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        watch.close()
        students.close()

    app = FastAPI(
        title="fed-distill",
        description="Scores, rankings and recommendations of a student.",
        lifespan=lifespan,
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.students, app.state.metrics = students, metrics
    app.state.draining = False  # True: a stop has been asked for, and a balancer should send requests elsewhere
    app.state.reload_others = lambda: None  # a worker tells the other workers of its service
    app.state.index_changed = lambda: None  # likewise
    local_only = config.loopback and not (keys.required or config.service.open)
    app.add_middleware(
        Gate,
        rules=_RULES,
        keys=keys,
        limits=config.limits,
        metrics=metrics,
        local_only=local_only,
        access_log=config.service.access_log,
    )
    _add_errors(app)
    _add_routes(app, students, config.limits, metrics, watch)
    if keys.required:  # nobody changes an index without a key that may
        _add_changes(app, ProductChanges(config, students, lambda: app.state.index_changed()), config.limits)
    _add_state(app, students, metrics, watch)
    web = config.service.student / WEB
    mount_page(app, web if web.is_dir() else None)
    describe(app, _RULES, config.limits, keys.required, local_only)
    return app


def _add_routes(app: FastAPI, students: Students, limits: LimitsTable, metrics: ServiceMetrics, watch: Watch) -> None:
    async def chosen(asked: ApiRequest, request: Request) -> ServedStudent:
        session = b""
        if students.has_canary:
            session = await request.body() if asked.session is None else asked.session.encode()
        student = students.chosen(session)
        if student is None:
            raise Refused(503, "not_ready", "no student is loaded yet: see /ready", {"Retry-After": "1"})
        metrics.answered(student.version)
        return student

    @app.post("/score", response_model=ScoreAnswer)
    async def score(asked: ScoreRequest, request: Request) -> Response:
        """Return class probabilities of texts, or of pairs of texts."""
        _check_count(limits, "texts", asked.texts)
        student = await chosen(asked, request)
        found = await student.predict(asked.texts, asked.pairs)
        watch.scored(student, asked, found)
        classes = list(student.student.classes)
        return _answer(ScoreAnswer(classes=classes, probabilities=found.tolist()), student)

    @app.post("/rank", response_model=RankAnswer)
    async def rank(asked: RankRequest, request: Request) -> Response:
        """Rank titles, or products of the index, for a query by expected gain, or by that and a search by words."""
        _check_count(limits, "titles", asked.titles or [])
        _check_count(limits, "products", asked.products or [])
        student = await chosen(asked, request)
        if asked.products is not None:
            found = await student.rank_products(asked.query, asked.products)
        else:
            found = await student.rank(asked.query, asked.titles or [])
        watch.ranked(student, asked, found)
        if asked.bm25 is not None:
            found = ranked_with(found, checked_bm25(asked.bm25, asked.bm25_weight, len(found.scores)))
        return _answer(_ranking(found), student)

    @app.post("/recommend", response_model=RankAnswer)
    async def recommend(asked: RecommendRequest, request: Request) -> Response:
        """Rank titles for a shopper by the probability that they are recommended."""
        _check_count(limits, "history", asked.history)
        _check_count(limits, "titles", asked.titles)
        student = await chosen(asked, request)
        found = await student.recommend(asked.history, asked.titles)
        watch.recommended(student, asked, found)
        return _answer(_ranking(found), student)

    @app.post("/search", response_model=SearchAnswer)
    async def search(asked: SearchRequest, request: Request) -> Response:
        """Search the index: the nearest products by their vectors, ranked by expected gain."""
        student = await chosen(asked, request)
        found = await student.search(asked.query, asked.k, asked.candidates)
        watch.searched(student, asked, found)
        return _answer(SearchAnswer(hits=[FoundProduct(**hit._asdict()) for hit in found]), student)

    @app.post("/explain", response_model=ExplainAnswer)
    async def explain(asked: ExplainRequest, request: Request) -> Response:
        """Tell what each word of a query and a title adds to their score."""
        student = await chosen(asked, request)
        found = await student.explain(asked.query, asked.title)
        words = {
            name: [WordAnswer(**word._asdict()) for word in getattr(found, name)]
            for name in ("query_words", "title_words")
        }
        numbers = {name: getattr(found, name) for name in ("query", "title", "score", "baseline", "residual")}
        return _answer(ExplainAnswer(**numbers, **words), student)


def _add_changes(app: FastAPI, changes: ProductChanges, limits: LimitsTable) -> None:
    @app.put("/products")
    async def put_products(asked: PutProductsRequest) -> ChangedAnswer:
        """Add products to the index, or replace the titles of those that it has; either all or none."""
        _check_count(limits, "products", asked.products)
        found = await changes.put([one.id for one in asked.products], [one.title for one in asked.products])
        return ChangedAnswer(**found._asdict())

    @app.post("/products/delete")
    async def delete_products(asked: DeleteProductsRequest) -> ChangedAnswer:
        """Delete products from the index. Their ids are in the body, since proxies log addresses."""
        _check_count(limits, "products", asked.products)
        return ChangedAnswer(**(await changes.delete(asked.products))._asdict())


def _check_count(limits: LimitsTable, name: str, texts: Sequence[object]) -> None:
    if len(texts) > limits.titles:
        raise Refused(422, "invalid", f"{name} has {len(texts):,} entries: send at most {limits.titles:,}")


def _add_state(app: FastAPI, students: Students, metrics: ServiceMetrics, watch: Watch) -> None:
    @app.get("/health")
    async def health() -> HealthAnswer:
        """Tell that the process lives."""
        return HealthAnswer()

    @app.get("/ready", response_model=ReadyAnswer, responses={503: {"model": ReadyAnswer}})
    async def ready() -> Response:
        """Tell whether requests are answered, and by which students."""
        serving = students.ready and not app.state.draining
        answer = ReadyAnswer(
            ready=serving,
            students=dict(students.versions),
            refused=sorted(students.problems),
            drift_not_measured=watch.unmeasured,
        )
        return Response(answer.model_dump_json(), status_code=200 if serving else 503, media_type="application/json")

    @app.get("/metrics", response_class=PlainTextResponse)
    async def prometheus() -> Response:
        """Return metrics in Prometheus' text format."""
        metrics.waiting.set(students.waiting)
        watch.show()
        return Response(metrics.text(), media_type="text/plain; version=1.0.0; charset=utf-8")

    @app.post("/admin/reload")
    async def reload() -> ReloadAnswer:
        """Load the students and keys again; one that is refused leaves the one before in service."""
        app.state.reload_others()
        problems = await students.reload(force=True)
        return ReloadAnswer(students=dict(students.versions), problems=problems)


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return _refusal(request, Refused(422, "invalid", _problem(error.errors()[0])))

    @app.exception_handler(DataError)
    async def unfit(request: Request, error: DataError) -> Response:
        return _refusal(request, Refused(422, "invalid", str(error)))

    @app.exception_handler(Overloaded)
    async def overloaded(request: Request, error: Overloaded) -> Response:
        return _refusal(request, Refused(503, "overloaded", "too much is waiting: try again", {"Retry-After": "1"}))

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:
        return _refusal(request, error)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        # FastAPI answers 400 to a body that its parser cannot read, such as one nested too deeply.
        status = 422 if error.status_code == 400 else error.status_code
        return _refusal(request, Refused(status, _CODES.get(status, "invalid"), str(error.detail), error.headers))


def _problem(problem: ErrorDetails) -> str:
    """Describe what is wrong with a body, without anything that it says."""
    where = ".".join(map(str, problem["loc"][1:]))
    if problem["type"] == "json_invalid" or (not where and problem["type"] != "value_error"):
        return "the body must be a JSON object, sent with Content-Type: application/json"
    if problem["type"] == "extra_forbidden":  # the key's name is the client's, and may be personal
        return "the body has a key that this route does not have: see /openapi.json"
    shown = problem.copy()
    shown["input"] = None
    return described(where, shown)


def _refusal(request: Request, refused: Refused) -> Response:
    return Response(refused.body(request.state.request_id), refused.status, refused.headers, "application/json")


def _answer(content: BaseModel, student: ServedStudent) -> Response:
    return Response(content.model_dump_json(), 200, {VERSION_HEADER: student.version}, "application/json")


def _ranking(found: Ranked) -> RankAnswer:
    return RankAnswer(order=found.order.tolist(), scores=found.scores.tolist())
