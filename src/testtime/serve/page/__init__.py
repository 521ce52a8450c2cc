"""A page for people that shows what the streams of a server do, with rollback and pause; it needs ``testtime[serve]``."""

from testtime.serve.page.routes import ROUTER

__all__ = ["ROUTER"]
