"""What the OpenAPI document says beyond what FastAPI knows."""

from __future__ import annotations

from typing import Any

from vmr_ray.serve.auth import is_open
from vmr_ray.serve.models import AddRequest

_SECURITY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "an API key: `Authorization: Bearer KEY`"},
    "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "an API key"},
}


def complete_openapi(schema: dict[str, Any], with_keys: bool) -> None:
    """Add to the document, in place, what the routes do not declare.

    Args:
        with_keys: the service asks for API keys: document how to send one, for the routes that need it.
    """
    components = schema["components"]
    # POST /v1/videos reads its body itself.
    components["schemas"]["AddRequest"] = AddRequest.model_json_schema(
        ref_template="#/components/schemas/{model}"
    )
    if not with_keys:
        return
    components["securitySchemes"] = _SECURITY_SCHEMES
    for path, operations in schema["paths"].items():
        if not is_open(path):
            for operation in operations.values():
                operation["security"] = [{name: []} for name in _SECURITY_SCHEMES]  # either is enough
