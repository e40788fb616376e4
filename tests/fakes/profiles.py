"""What one system does and another does not: each difference is a switch, with its source. Data only.

The fake kernel plays Windows unless it is told otherwise. What is not a switch is the same on both, or open on both, and
then the seed decides it.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Profile:
    """One system.

    Attributes:
        name: for messages.
        a_cancel_ends_all_receives: CancelIoEx of one receive on a TCP socket ends all that wait on it, each with
            ERROR_OPERATION_ABORTED (https://github.com/dotnet/corefx/issues/36516, found by .NET's tests on Windows).
    """

    name: str
    a_cancel_ends_all_receives: bool


WINDOWS = Profile("Windows", a_cancel_ends_all_receives=True)
WINE_8 = Profile("Wine 8", a_cancel_ends_all_receives=False)
PROFILES = {"windows": WINDOWS, "wine8": WINE_8}
