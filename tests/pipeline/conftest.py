"""Keeps what training caches out of the user's cache."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDEDGE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
