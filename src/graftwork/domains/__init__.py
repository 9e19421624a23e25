"""Domains: one folder a modality; the core never imports one."""

__all__: list[str] = []
