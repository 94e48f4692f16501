"""Requests made up from the server's own OpenAPI schema: right ones, and wrong ones."""

from typing import Any

import hypothesis
import pytest

from tests.app.servers import error_of

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")

EXAMPLES = 40  # of each route, right and wrong ones each


@pytest.mark.slow
def test_requests_made_up_from_the_schema_never_break_it(url: str, seed: int) -> None:
    schema = schemathesis.openapi.from_url(f"{url}/v1/openapi.json")
    statuses: set[int] = set()
    routes = 0
    for found in schema.get_all_operations():
        operation = found.ok()
        routes += 1
        for mode in schemathesis.GenerationMode:

            @hypothesis.seed(seed)
            @hypothesis.settings(
                max_examples=EXAMPLES,
                deadline=None,
                database=None,
                suppress_health_check=list(hypothesis.HealthCheck),
            )
            @hypothesis.given(operation.as_strategy(generation_mode=mode))
            def check(case: Any) -> None:
                response = case.call(base_url=f"{url}/v1")
                statuses.add(response.status_code)
                assert response.status_code < 500, f"seed {seed}: {case.as_curl_command()}"
                if response.status_code >= 400 and case.method != "HEAD":
                    error_of(response)

            try:
                check()
            except hypothesis.errors.Unsatisfiable:  # nothing can be wrong about this route
                assert mode is schemathesis.GenerationMode.NEGATIVE
    assert routes >= 11
    assert {200, 400, 404} <= statuses, f"seed {seed}: {statuses}"
