"""How the report writes figures: a dash for what was not measured, units with narrow spaces."""

from __future__ import annotations

from base64 import b64encode
from datetime import datetime

from simulations.report.charts import DASH, finite

_THIN = "\u202f"  # a narrow space that does not break


def number(value: object) -> str:
    """Show a count with separators, or any other number with four significant digits."""
    found = finite(value)
    if found is None:
        return DASH
    whole = found == int(found) or abs(found) >= 1000
    return f"{found:,.0f}" if whole and abs(found) < 1e15 else f"{found:.4g}"


def percent(value: object) -> str:
    """Show a share; only exactly all is 100 %, and only exactly nothing is 0 %."""
    found = finite(value)
    if found is None:
        return DASH
    if 0 < found < 0.0005:
        return f"<0.1{_THIN}%"
    if 0.9995 <= found < 1:
        return f">99.9{_THIN}%" if found >= 0.99995 else f"{100 * found:.2f}{_THIN}%"
    return f"{100 * found:.{0 if found in (0, 1) else 1}f}{_THIN}%"


def milliseconds(value: object) -> str:
    """Show a time given in milliseconds."""
    found = finite(value)
    if found is None:
        return DASH
    if found >= 10_000:
        return duration(found / 1000)
    return f"{found:,.{0 if found >= 100 else 1}f}{_THIN}ms"


def duration(value: object) -> str:
    """Show a time given in seconds."""
    found = finite(value)
    if found is None:
        return DASH
    if found < 59.95:
        return f"{found:.1f}{_THIN}s"
    minutes, rest = divmod(round(found), 60)
    return f"{minutes:,}{_THIN}min {rest}{_THIN}s"


def size(value: object) -> str:
    """Show a number of bytes in decimal units."""
    found = finite(value)
    if found is None:
        return DASH
    for unit in ("B", "kB", "MB", "GB"):
        if abs(found) < (1000 if unit == "B" else 999.5):
            digits = 0 if unit == "B" or abs(found) >= 99.95 else 1
            return f"{found:.{digits}f}{_THIN}{unit}"
        found /= 1000
    return f"{found:,.1f}{_THIN}TB"


def score(value: object) -> str:
    """Show a similarity to three places."""
    found = finite(value)
    return DASH if found is None else f"{found:.3f}"


def tiny(value: object) -> str:
    """Show a small error as a power of ten."""
    found = finite(value)
    if not found:
        return number(value)
    mantissa, exponent = f"{found:.1e}".split("e")
    raised = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{mantissa}{_THIN}\u00d7{_THIN}10{raised}"


def when(value: object) -> str:
    """Show an ISO 8601 time as people write it, and anything else as it is."""
    try:
        moment = datetime.fromisoformat(str(value))
    except ValueError:
        return str(value or DASH)
    return f"{moment.day} {moment:%B %Y, %H:%M} {moment.tzname() or ''}".rstrip()


def plain(value: object) -> str:
    """Show a setting of any kind."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(plain(one) for one in value) or DASH
    if isinstance(value, float) and finite(value) is None:
        return DASH
    return DASH if value in (None, "") else str(value)


def picture(data: object) -> str | None:
    """Return a data address for JPEG, PNG or WebP bytes, and None for anything else."""
    if not isinstance(data, bytes | bytearray | memoryview):
        return None
    raw = bytes(data)
    if raw.startswith(b"\xff\xd8\xff"):
        kind = "jpeg"
    elif raw.startswith(b"\x89PNG\r\n\x1a\n"):
        kind = "png"
    elif raw[:4] == b"RIFF" and raw[8:12] == b"WEBP":
        kind = "webp"
    else:
        return None
    return f"data:image/{kind};base64,{b64encode(raw).decode('ascii')}"
