"""Where a Redis is: every form, and what is wrong with the others."""

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
def test_each_form_is_read(setting: str, address: RedisAddress) -> None:
    """As the README has them."""
    assert is_redis(setting)
    assert parse_redis(setting) == address


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("redis:", "no host"),
        ("redis://a,b", "several hosts"),
        ("redis://a/x", "the database is 'x'"),
        ("redis://a/1/2", "behind the hosts"),
        ("redis://a:99999", "99999 is no port"),
        ("redis://a:b", "the port is no number"),
        ("redis://a?x=1", "unknown option 'x'"),
        ("redis://a?x", "bad query"),
        ("redis://a?replicas=-1", "replicas is '-1'"),
        ("redis+sentinel://a", "no service"),
        ("redis+cluster://a/1", "behind the hosts"),
        ("redis://u:word@", "no host"),
        ("redis://[a", "is no host"),
        ("redis://a..b", "'a..b' is no host"),
        (f"redis://{'a' * 64}.b", "is no host"),
        ("redis://a?ca=x", "ca= is for TLS, and that is rediss; expected rediss://"),
        ("rediss+cluster://a?key=x", "key= without cert=; expected rediss+cluster:"),
    ],
)
def test_what_is_none_is_told_with_the_form(setting: str, problem: str) -> None:
    """And without the password."""
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
def test_a_password_that_is_not_encoded_is_not_told(setting: str) -> None:
    """The text ends up in logs, and the password in it would still be the right one."""
    with pytest.raises(ValueError, match=r"; expected redis") as caught:
        parse_redis(setting)

    assert "hunter2" not in str(caught.value)


def test_a_password_of_the_sentinels_may_hold_an_at() -> None:
    """Behind the question mark it is a sign like any other."""
    address = parse_redis("redis+sentinel://a/main?sentinel_password=p@w")

    assert address.sentinel_password == "p@w"


@pytest.mark.parametrize(
    "text",
    ["redis://h:1/2", "rediss+sentinel://a:1,[::1]:2/main/4", "redis+cluster://a:1"],
)
def test_it_is_shown_without_its_secrets(text: str) -> None:
    """In logs, errors and the console."""
    assert str(parse_redis(text)) == text
    assert str(parse_redis(text.replace("://", "://u:p@"))) == text


def test_other_stores_are_not_redis() -> None:
    """The setting has other values."""
    assert not any(map(is_redis, ("sqlite:redis", "memory:", "", "redisx://a")))
