"""The verifier: sound abstract interpretation, with facts for code generators and diagnoses for people."""

from __future__ import annotations

from .diagnosis import Diagnosis, PathStep, RejectedError
from .explore import verify
from .facts import Call, Facts, Kind, Mem, Stats, Verified
from .limits import DEFAULT, Limits

__all__ = [
    "DEFAULT",
    "Call",
    "Diagnosis",
    "Facts",
    "Kind",
    "Limits",
    "Mem",
    "PathStep",
    "RejectedError",
    "Stats",
    "Verified",
    "verify",
]
