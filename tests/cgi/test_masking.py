"""What is masked in the records of runs."""

from __future__ import annotations

import pytest
from poolsrv_cgi.programs.masking import MASK, Masking

SECRETS = """
HTTP_COOKIE HTTP_AUTHORIZATION HTTP_PROXY_AUTHORIZATION HTTP_X_API_TOKEN DB_PASSWORD PGPASSWORD client_secret
AWS_ACCESS_KEY_ID GPG_PASSPHRASE http_x_pin HTTP_X_SESSION MY_PRIVATE_THING
"""


@pytest.mark.parametrize("name", SECRETS.split())
def test_names_of_secrets(name: str) -> None:
    masking = Masking(["X-Pin", "http-x-session", "*private*"])
    assert masking.environment({name: "s3", "PATH": "/bin"}) == ({name: MASK, "PATH": "/bin"}, [name])


def test_others_stay_and_the_original_too() -> None:
    environment = {"PATH": "/bin", "HTTP_HOST": "a", "PIN": "1", "QUERY_STRING": "page=3&tok%65n=abc&x=1"}
    clean, masked = Masking().environment(environment)
    assert clean == environment | {"QUERY_STRING": f"page=3&tok%65n={MASK}&x=1"}
    assert masked == ["QUERY_STRING"]
    assert environment["QUERY_STRING"].endswith("abc&x=1")


@pytest.mark.parametrize(
    ("line", "clean"),
    [
        ("GET /a?token=abc HTTP/1.1", f"GET /a?token={MASK} HTTP/1.1"),
        ("GET /a?b=1;api-key=x&c HTTP/1.1", f"GET /a?b=1;api-key={MASK}&c HTTP/1.1"),
        ("GET /a?token=&x=2 HTTP/1.1", "GET /a?token=&x=2 HTTP/1.1"),
        ("GET /a?secret=a=b HTTP/1.1", f"GET /a?secret={MASK} HTTP/1.1"),
        ("GET /a?pass%77ord=\udcff HTTP/1.1", f"GET /a?pass%77ord={MASK} HTTP/1.1"),
        ("http://a/?next=/login?token=x?y&z=1", f"http://a/?next=/login?token={MASK}&z=1"),
        ("token=a", f"token={MASK}"),
        ("=a&&;=?", "=a&&;=?"),
        ("GET /plain HTTP/1.1", "GET /plain HTTP/1.1"),
    ],
)
def test_parameters_of_a_query(line: str, clean: str) -> None:
    assert Masking().parameters(line) == clean


@pytest.mark.parametrize("text", ["a" * 10**6 + "&b=1", "=" * 10**6, "a=1&" * 10**5, "?" * 10**6, "%41" * 10**5 + "=1"])
def test_a_hostile_text_takes_no_longer_than_others(text: str) -> None:
    assert Masking().parameters(text) == text  # a square of the length would take hours


def test_a_name_is_no_expression() -> None:
    masking = Masking(["a.b*", "(x"])
    assert masking.hides("A.BC")
    assert masking.hides("(x")
    assert not masking.hides("AXBC")
