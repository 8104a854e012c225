"""Addresses of Redis: every form, and the errors for malformed ones."""

import pytest

from bridge.core.redis_address import Host, RedisAddress, is_redis, parse_redis


@pytest.mark.parametrize(
    ("setting", "address"),
    [
        ("redis://h", RedisAddress("server", (Host("h", 6379),))),
        ("redis://h:1/2", RedisAddress("server", (Host("h", 1),), db=2)),
        (
            "rediss://u:p%40@[::1]:2?ca=/ca.pem&cert=c&key=k",
            RedisAddress(
                "server",
                (Host("::1", 2),),
                has_tls=True,
                user="u",
                password="p@",
                ca_file="/ca.pem",
                cert_file="c",
                key_file="k",
            ),
        ),
        (
            "redis+sentinel://:p@a,b:3/main/4?replicas=1&sentinel_password=s",
            RedisAddress(
                "sentinel",
                (Host("a", 26379), Host("b", 3)),
                password="p",
                db=4,
                service="main",
                replicas=1,
                sentinel_password="s",
            ),
        ),
        (
            "rediss+cluster://a,b",
            RedisAddress("cluster", (Host("a", 6379), Host("b", 6379)), has_tls=True),
        ),
    ],
)
def test_each_form_is_parsed(setting: str, address: RedisAddress) -> None:
    """As docs/settings.md documents them."""
    assert is_redis(setting)
    assert parse_redis(setting) == address


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("redis:", "no host"),
        ("redis://a,b", "several hosts"),
        ("redis://a/x", "the database is 'x'"),
        ("redis://a/1/2", "after the hosts"),
        ("redis://a:99999", "99999 is not a port"),
        ("redis://a:b", "the port is not a number"),
        ("redis://a?x=1", "unknown option 'x'"),
        ("redis://a?x", "bad query"),
        ("redis://a?replicas=-1", "replicas is '-1'"),
        ("redis+sentinel://a", "no service"),
        ("redis+cluster://a/1", "after the hosts"),
        ("redis://u:word@", "no host"),
        ("redis://[a", "is not a host"),
        ("redis://a..b", "'a..b' is not a host"),
        (f"redis://{'a' * 64}.b", "is not a host"),
        ("redis://a?ca=x", "ca= is for TLS, and that is rediss; expected rediss://"),
        ("rediss+cluster://a?key=x", "key= without cert=; expected rediss+cluster:"),
    ],
)
def test_an_error_names_the_problem_and_the_expected_form(
    setting: str, problem: str
) -> None:
    """It never contains the password."""
    with pytest.raises(ValueError, match=r"; expected redis") as caught:
        parse_redis(setting)

    assert problem in str(caught.value)
    assert "word@" not in str(caught.value)


@pytest.mark.parametrize(
    "setting",
    [
        "redis://u:hunter2",
        "redis://u:hunter2/x@host",
        "redis://u:1234/hunter2@host",
        "redis://:hunter2?x@host:6379/0",
        "redis://:x?hunter2@host",
        "redis+cluster://u:hunter2/@host",
        "redis+sentinel://u:1/hunter2@host/main",
    ],
)
def test_a_password_that_is_not_encoded_is_not_shown(setting: str) -> None:
    """The text ends up in logs, and the password in it may be the real one."""
    with pytest.raises(ValueError, match=r"; expected redis") as caught:
        parse_redis(setting)

    assert "hunter2" not in str(caught.value)


def test_the_password_of_the_sentinels_may_contain_an_at_sign() -> None:
    """After the question mark it has no special meaning."""
    address = parse_redis("redis+sentinel://a/main?sentinel_password=p@w")

    assert address.sentinel_password == "p@w"


@pytest.mark.parametrize(
    "text",
    ["redis://h:1/2", "rediss+sentinel://a:1,[::1]:2/main/4", "redis+cluster://a:1"],
)
def test_an_address_is_shown_without_its_secrets(text: str) -> None:
    """It appears in logs, errors and the console."""
    assert str(parse_redis(text)) == text
    assert str(parse_redis(text.replace("://", "://u:p@"))) == text


def test_other_values_of_the_setting_are_not_redis() -> None:
    """Other stores, and schemes that only look similar."""
    assert not any(map(is_redis, ("sqlite:redis", "memory:", "", "redisx://a")))
