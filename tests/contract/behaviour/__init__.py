"""One body, two loops: what must be the same on ours and on the standard library's ProactorEventLoop."""
