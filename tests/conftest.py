"""What all tests share: the reasons why a machine cannot run some of them, asked once."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def pytest_configure() -> None:
    """A run in the background of a shell starts with SIGINT ignored, and so would every child: tests send it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def kernel_bpf() -> None:
    """Skips, with the reason, where bpf(2) does not take programs from us."""
    from userbpf.kernel import available

    reason = available()
    if reason is not None:
        pytest.skip(reason)
