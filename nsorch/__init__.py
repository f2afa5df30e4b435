"""Asynchronous orchestration of Linux namespaces."""
