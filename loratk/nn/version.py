"""Whether anything about modules has changed since something was prepared from them.

Every attribute that is set on a module or deleted, and every new array or freezing of a parameter, makes a new version of all. So
what was prepared from modules (`chain.Route`) is as good as asking them again while the version is the same; steps that only compute
and update parameters in place change none.
"""


class Version:
    """The version now: an object of its own, so that two are never taken for one."""

    __slots__ = ("now",)

    def __init__(self) -> None:
        self.now = object()

    def change(self) -> None:
        """Call it after a change, so that nobody prepares the old state under the new version."""
        self.now = object()


version = Version()
