"""A store for all tests, and this process connected to it, or to a flaky proxy of it."""

import os

import pytest
from faults import flaky_store
from object_store import server

from crackvae import listing, object_store


@pytest.fixture(scope="session")
def store():
    """URL of a server with an empty bucket."""
    with server.running() as url:
        yield url


@pytest.fixture
def connect(monkeypatch):
    """Points this process at a server: a function of its URL."""

    def forget():
        object_store._filesystem.cache_clear()
        object_store._s3.cache_clear()
        listing._s3_client.cache_clear()
        listing._session.cache_clear()

    def connect(url):
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        for name, value in server.environment(url).items():
            monkeypatch.setenv(name, value)
        forget()

    yield connect
    forget()


@pytest.fixture
def place(request, store, connect):
    """A folder of a test's own in the store, to which this process is connected: a URI."""
    connect(store)
    return f"s3://{server.BUCKET}/{request.node.name.partition('[')[0][:60]}-{abs(hash(request.node.name))}"


@pytest.fixture
def flaky(store, connect):
    """Puts a `FlakyStore` between this process and the store: a function of its options."""
    proxies = []

    def start(**options):
        proxies.append(flaky_store.flaky(store, **options))
        proxy = proxies[-1].__enter__()
        connect(proxy.url)
        return proxy

    yield start
    for proxy in proxies:
        proxy.__exit__(None, None, None)
