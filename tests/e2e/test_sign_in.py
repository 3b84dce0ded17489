"""A sign-in by OpenID Connect, with a provider on this machine that lets in whom the test names."""

import base64
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import pytest
from playwright.sync_api import Browser, expect

from snows.runs.store import RunStore
from tests.app import helpers
from tests.e2e.conftest import free_port, serve

pytestmark = pytest.mark.e2e


class Provider(ThreadingHTTPServer):
    """OpenID Connect as far as a sign-in by code needs it; `person` is whoever sits before the browser."""

    def __init__(self) -> None:
        from joserfc.jwk import RSAKey

        super().__init__(("127.0.0.1", 0), Handler)
        self.address = f"http://localhost:{self.server_port}"
        self.key = RSAKey.generate_key(2048, {"kid": "one", "use": "sig", "alg": "RS256"})
        self.person = ""
        self.waiting: dict[str, dict[str, Any]] = {}  # what an ID token has to say, by the code that it is had for

    def token(self, form: dict[str, str], authorization: str) -> dict[str, Any]:
        from joserfc import jwt

        assert authorization == "Basic " + base64.b64encode(b"snows:hush").decode()
        asked = self.waiting.pop(form["code"])
        if challenge := asked.pop("challenge"):
            digest = hashlib.sha256(form["code_verifier"].encode()).digest()
            assert base64.urlsafe_b64encode(digest).decode().rstrip("=") == challenge
        claims = {"iss": self.address, "aud": "snows", "iat": int(time.time()), "exp": int(time.time()) + 600, **asked}
        signed = jwt.encode({"alg": "RS256", "kid": "one"}, claims, self.key)
        return {"access_token": "any", "token_type": "Bearer", "expires_in": 600, "id_token": signed}


class Handler(BaseHTTPRequestHandler):
    server: Provider

    def do_GET(self) -> None:
        place, asked = urlsplit(self.path), dict(parse_qsl(urlsplit(self.path).query))
        provider = self.server
        match place.path:
            case "/.well-known/openid-configuration":
                self._answer(
                    {
                        "issuer": provider.address,
                        "authorization_endpoint": f"{provider.address}/authorize",
                        "token_endpoint": f"{provider.address}/token",
                        "jwks_uri": f"{provider.address}/keys",
                        "id_token_signing_alg_values_supported": ["RS256"],
                    }
                )
            case "/keys":
                self._answer({"keys": [provider.key.as_dict(private=False)]})
            case "/authorize":
                name = provider.person
                code = f"code-{len(name)}-{time.time_ns()}"
                of_person = {"sub": f"number-of-{name}", "name": name, "email": f"{name}@example.org"}
                provider.waiting[code] = of_person | {"nonce": asked["nonce"], "challenge": asked.get("code_challenge")}
                self.send_response(302)
                self.send_header("Location", f"{asked['redirect_uri']}?{urlencode({'code': code, 'state': asked['state']})}")
                self.send_header("Content-Length", "0")
                self.end_headers()

    def do_POST(self) -> None:
        form = dict(parse_qsl(self.rfile.read(int(self.headers["Content-Length"])).decode()))
        self._answer(self.server.token(form, self.headers["Authorization"]))

    def _answer(self, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def provider() -> Iterator[Provider]:
    with Provider() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("is_public", [True, False], ids=["public", "shared"])
def test_who_signs_in_sees_what_is_theirs(
    browser: Browser, store: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_public: bool
) -> None:
    pytest.importorskip("authlib", reason="needs Authlib: install requirements.txt")
    port = free_port()
    of_everybody = helpers.write_run(store, "finished")
    with provider() as oidc:
        settings = {
            "redirect_uri": f"http://localhost:{port}/oauth2callback",
            "cookie_secret": "not-to-be-guessed-0123456789abcdef",
            "client_id": "snows",
            "client_secret": "hush",
            "server_metadata_url": f"{oidc.address}/.well-known/openid-configuration",
        }
        secrets = tmp_path / "secrets.toml"
        secrets.write_text("[auth]\n" + "".join(f'{name} = "{value}"\n' for name, value in settings.items()))
        monkeypatch.setenv("STREAMLIT_SECRETS_FILES", str(secrets))
        monkeypatch.setenv("SNOWS_PUBLIC", "1" if is_public else "0")
        monkeypatch.setenv("SNOWS_WORKERS", "0")
        with serve(store.root, tmp_path / "server.log", port) as address:
            anna, bert = browser.new_context().new_page(), browser.new_context().new_page()

            # Before the sign-in there is nothing of the app, at any address.
            anna.goto(f"{address}/runs?run={of_everybody.id}")
            expect(anna.get_by_role("button", name="Sign in")).to_be_visible()
            expect(anna.get_by_role("heading")).to_have_text(["SNOWS Explorer"])
            expect(anna.get_by_test_id("stTopNavLink")).to_have_count(0)

            for page, name in ((anna, "Anna"), (bert, "Bert")):
                oidc.person = name
                page.goto(address)
                page.get_by_role("button", name="Sign in").click()
                expect(page.get_by_role("heading", level=1)).to_contain_text("before it forgets?")
                page.goto(f"{address}/runs")
                expect(page.get_by_role("button", name=name)).to_be_visible()

            # A run that Anna starts is hers where the app is public, and everybody's where it is not.
            anna.goto(f"{address}/prune?num_calibration=16&num_evaluation=200&k_steps=0")
            anna.get_by_role("button", name="Start").click()
            anna.wait_for_url("**/prune?run=*")
            run = next(run for run in store.list() if run.id != of_everybody.id)
            assert bool(run.owner()) == is_public
            for page, sees in ((anna, True), (bert, not is_public)):
                page.goto(f"{address}/runs?run={run.id}")
                found = page.get_by_role("button", name="Cancel", exact=True) if sees else page.get_by_text("There is no run")
                expect(found.first).to_be_visible()

            # Out, and in again: the same person.
            anna.get_by_role("button", name="Anna").click()
            anna.get_by_role("button", name="Sign out").click()
            expect(anna.get_by_role("button", name="Sign in")).to_be_visible()
            oidc.person = "Anna"
            anna.get_by_role("button", name="Sign in").click()
            expect(anna.get_by_role("heading", level=1)).to_contain_text("before it forgets?")
            anna.goto(f"{address}/runs?run={run.id}")
            expect(anna.get_by_role("button", name="Cancel", exact=True).first).to_be_visible()
