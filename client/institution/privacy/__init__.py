"""Differential privacy for an institution's records: docs/security.md says what it promises."""
