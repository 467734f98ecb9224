"""One family of errors: each says what is wrong, where, and what to do next, and carries its exit code."""

from __future__ import annotations


class BinarizeError(Exception):
    """Base of every error a user can cause or meet.

    Args:
        what: one sentence, what is wrong, with the offending value.
        where: the file, node or tensor it concerns.
        fix: what the user can do next.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        self.what, self.where, self.fix = what, where, fix
        super().__init__(str(self))

    def __str__(self) -> str:
        """The whole message on one line: where, what, what next."""
        head = f"{self.where}: {self.what}" if self.where else self.what
        return f"{head} {self.fix}" if self.fix else head


class GateFailed(BinarizeError):
    """A check the user asked for did not hold (exit 1)."""

    exit_code = 1


class UsageError(BinarizeError):
    """The call itself is wrong: options that contradict or cannot be read (exit 2)."""

    exit_code = 2


class ModelError(BinarizeError):
    """The model or the data cannot be read or is not supported (exit 3)."""

    exit_code = 3


class NothingMatched(BinarizeError):
    """The model is fine, and nothing in it is ours to convert (exit 4)."""

    exit_code = 4


class RuntimeUnavailable(BinarizeError):
    """onnxruntime or the kernel library is missing, too old, or cannot do what was asked (exit 5)."""

    exit_code = 5


def one_line(error: BaseException) -> str:
    """The words of an error on one line; its kind where it has none."""
    return " ".join(str(error).split()) or type(error).__name__
