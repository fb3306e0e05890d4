"""Only the page's own files are served without a key, and the page runs no script of another host."""

import re
from pathlib import Path

from starlette.testclient import TestClient

from vmr_ray.serve.api import make_api
from vmr_ray.serve.auth import new_key
from vmr_ray.serve.models import ServeArgs


def test_the_page_and_its_files_need_no_key(tmp_path: Path):
    new_key("ann", tmp_path / "keys")
    settings = ServeArgs(index=str(tmp_path), auth="keys", key_file=str(tmp_path / "keys"))
    http = TestClient(make_api(settings, None))  # type: ignore[arg-type]
    page = http.get("/")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    files = re.findall(r'(?:src|href)="(?!data:)([^"]+)"', page.text)
    assert len(files) >= 2
    for name in files:
        assert http.get(f"/{name}").status_code == 200, name
    assert not re.search(r"<script>|<style>|style=|\son\w+=", page.text)
    assert http.get("/page/none.js").status_code == 404
    assert http.get("/page/%2e%2e/api.py").status_code in (401, 404)
    assert http.get("/v1/videos").status_code == 401
