"""ONNX Runtime, which does not call home: its telemetry is off before it is imported."""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
