"""What went wrong, as OpenAI's clients expect to be told: {"error": {"message", "type", "param", "code"}}."""

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from app.api.invalid import fault
from app.requests import Busy, Cancelled, Expired

log = logging.getLogger("mm_rwkv7.server")

LONGEST = 500  # characters of a message
LONGEST_PARAM = 200
TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class ErrorFields(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """How the interface describes its refusals; `Refused.body` is one."""

    error: ErrorFields


class Refused(Exception):  # noqa: N818 - the request's fault or the moment's, not always an error
    """An answer other than 2xx. `param` is the field at fault, `code` a word for programs."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        kind = TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        param = None if self.param is None else self.param[:LONGEST_PARAM]
        return {"error": {"message": self.message[:LONGEST], "type": kind, "param": param, "code": self.code}}

    @property
    def response(self) -> JSONResponse:
        return JSONResponse(self.body, self.status, self.headers)


@contextmanager
def refusals(own_state: bool = False, param: str | None = None) -> Iterator[None]:
    """Whatever the engine raises, as a `Refused`. With `own_state` a state of the client's is involved, which may be
    what breaks the model's numbers. `param` is the field that is at fault where what was sent cannot be read."""
    try:
        yield
    except Refused:
        raise
    except ValueError as error:
        raise Refused(400, str(error), param) from error
    except Busy as error:
        wait = str(math.ceil(error.retry_after_s))
        raise Refused(429, str(error), code="busy", headers={"Retry-After": wait}) from error
    except (Expired, TimeoutError) as error:
        raise Refused(503, "there was no time for it; try again later", code="timeout") from error
    except Cancelled as error:
        raise Refused(503, "the request was cancelled", code="cancelled") from error
    except FloatingPointError as error:
        if own_state:
            raise Refused(400, "the model finds no numbers after this state", "state") from error
        log.exception("the model's logits are no numbers")
        raise Refused(500, "the model has failed; the server's log says how") from error
    except RuntimeError as error:  # the engine is closed, or there is no memory
        log.exception("the engine cannot answer")
        raise Refused(503, "the server cannot answer now; its log says why", code="unavailable") from error


def add_handlers(app: FastAPI) -> None:
    """Give every error of `app` the common shape."""

    def refused(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, Refused)
        return error.response

    def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return Refused(400, *fault(error)).response

    def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return Refused(error.status_code, str(error.detail), headers=error.headers).response

    def failed(request: Request, error: Exception) -> JSONResponse:
        return Refused(500, "the server has failed; its log says how").response

    app.add_exception_handler(Refused, refused)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, failed)
