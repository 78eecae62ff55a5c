"""Ctrl-C reaches the tests and the processes that they start, also where a shell has started all of it in the background, without."""

import signal


def pytest_configure():
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
