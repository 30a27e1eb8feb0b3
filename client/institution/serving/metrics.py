"""Figures for Prometheus, on loopback: how much and how fast, never who or what."""

from typing import Self

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from protocol.errors import ServiceError

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 120)


class Metrics:
    """The figures of one service; a context manager that serves them where a port is given."""

    def __init__(self, port: int | None) -> None:
        """``port`` on 127.0.0.1, 0 for any that is free; None serves them nowhere."""
        self._port = port
        self.port: int | None = None
        self.registry = all_ = CollectorRegistry()
        self.calls = Counter(
            "blindsight_calls", "Calls by verb and outcome.", ["verb", "code"], registry=all_
        )
        self.seconds = Histogram(
            "blindsight_call_seconds",
            "Seconds of a call.",
            ["verb"],
            buckets=_SECONDS,
            registry=all_,
        )
        self.questions = Counter(
            "blindsight_questions", "Questions that were charged.", registry=all_
        )
        self.items = Counter("blindsight_items", "Items fetched, decoys among them.", registry=all_)
        self.sent = Counter("blindsight_sent_bytes", "Bytes of answers.", registry=all_)
        self.under_way = Gauge("blindsight_calls_under_way", "Calls under way.", registry=all_)
        self.policy_ok = Gauge(
            "blindsight_policy_ok", "0 while policy.toml cannot be read.", registry=all_
        )
        self.epoch = Gauge("blindsight_index_epoch", "The epoch that is served.", registry=all_)
        self.indexed = Gauge("blindsight_index_items", "Items in it.", registry=all_)
        self.policy_ok.set(1)

    def __enter__(self) -> Self:
        if self._port is not None:
            try:
                self._server, self._thread = start_http_server(
                    self._port, "127.0.0.1", self.registry
                )
            except OSError as error:
                raise ServiceError(
                    f"cannot show metrics on 127.0.0.1:{self._port}: {error.strerror}",
                    "Choose another with --metrics-port, or 0 for any that is free.",
                ) from error
            self.port = self._server.server_port
        return self

    def __exit__(self, *_: object) -> None:
        if self.port is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()
