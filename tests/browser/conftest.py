"""The fixtures of lab_pages.py, for the tests here."""

from lab_pages import browser, lab, opened  # noqa: F401
