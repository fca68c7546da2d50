"""What device-hours cost, for all commands that say so."""

from __future__ import annotations

from ldm.errors import UserError


def check_price(price: float | None) -> None:
    """Of a device and hour; None where none was told.

    Raises:
        UserError: nothing could cost that.
    """
    if price is not None and not 0 <= price < float("inf"):
        raise UserError(f"--price should be what a device costs for an hour, got {price}")


def money_of(device_hours: float | None, price: float | None) -> float | None:
    """The cost of so many hours of one device; None where either is not known."""
    return None if device_hours is None or price is None else device_hours * price


def money_in_words(device_hours: float | None, price: float | None) -> str | None:
    """As a line to print; None where there is nothing to say."""
    money = money_of(device_hours, price)
    return None if money is None else f"money: {money:,.2f}, at {price:g} for a device and hour"
