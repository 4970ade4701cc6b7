"""Code on a SandboxFusion server, which runs plain scripts."""

from __future__ import annotations

import ast
import http.client
import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

from focusft.evaluation.sandbox.interface import (
    DEFAULT_LIMITS,
    KILLED,
    MIB,
    Limits,
    Result,
    SandboxError,
)
from focusft.evaluation.sandbox.output import cut_middle, one_line

_MOST_ANSWER_BYTES = 64 * MIB


@dataclass(frozen=True)
class SandboxFusion:
    """A SandboxFusion server, which isolates the code by its own means.

    Attributes:
        url: Address of the server, for instance http://localhost:8080.
        limits: `output_bytes` is the only one that is kept here.
    """

    url: str
    limits: Limits = DEFAULT_LIMITS

    def run(self, code: str, *, timeout_s: float = 30, memory_mb: int = 2048) -> Result:
        """Run code on the server; see the function `run`."""
        request = {
            "code": show_last_expression(code),
            "language": "python",
            "run_timeout": timeout_s,
            "memory_limit_MB": memory_mb,
        }
        answer = self._post(json.dumps(request).encode(), timeout_s)
        outcome = answer.get("run_result")
        if not isinstance(outcome, dict):
            reason = one_line(str(answer.get("message") or answer))[:200]
            raise SandboxError(f"{self.url}: the SandboxFusion server ran nothing ({reason})")
        timed_out = outcome.get("status") == "TimeLimitExceeded"
        status = outcome.get("return_code")
        return Result(
            cut_middle(str(outcome.get("stdout") or ""), self.limits.output_bytes),
            cut_middle(str(outcome.get("stderr") or ""), self.limits.output_bytes),
            status if isinstance(status, int) else KILLED if timed_out else 1,
            timed_out,
            "time" if timed_out else "",
        )

    def _post(self, body: bytes, timeout_s: float) -> dict[str, Any]:
        address = self.url.rstrip("/") + "/run_code"
        try:
            request = urllib.request.Request(
                address, data=body, headers={"Content-Type": "application/json"}
            )
            # The server may queue the run, so it gets more time than the code.
            with urllib.request.urlopen(request, timeout=timeout_s + 60) as response:
                answer = json.loads(response.read(_MOST_ANSWER_BYTES))
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise SandboxError(
                f"{address}: no SandboxFusion server answers ({one_line(str(error))}); "
                "check the address"
            ) from error
        if not isinstance(answer, dict):
            raise SandboxError(f"{address}: the answer is not SandboxFusion's; check the address")
        return answer


def show_last_expression(code: str) -> str:
    """Rewrite code so that it prints the value of its last expression as a notebook does.

    For servers that run a plain script. Code that does not parse, or is nested too deeply to be
    written again, comes back unchanged.
    """
    try:
        tree = ast.parse(code)
        if not tree.body or not isinstance(tree.body[-1], ast.Expr):
            return code
        value = tree.body[-1].value
        hook = ast.parse("__import__('sys').displayhook(0)").body[0]
        assert isinstance(hook, ast.Expr) and isinstance(hook.value, ast.Call)
        hook.value.args = [value]
        tree.body[-1] = hook
        return ast.unparse(ast.fix_missing_locations(tree))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return code
