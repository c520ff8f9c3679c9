"""One small program per rule: our verdict, and the kernel's beside it."""

from __future__ import annotations

import pytest
from corpus import CASES, Case
from kernel_oracle import Oracle

from userbpf.errors import VerifierError
from userbpf.verifier import Limits, RejectedError, Verified, verify

LIMITS = Limits(visited=20_000)
"""Small, so that the program that is too complex is quick to be so."""


def verdict(case: Case, limits: Limits = LIMITS) -> str:
    try:
        result = verify(case.program(), limits=limits)
    except RejectedError as error:
        assert isinstance(error, VerifierError)
        text = str(error)
        assert text.startswith(f"error[{error.diagnosis.code}]: ")
        assert "help:" in text, "a rejection says what to do"
        return error.diagnosis.code
    assert isinstance(result, Verified)
    return "ok"


def test_corpus_is_large_and_names_are_unique() -> None:
    names = [case.name for case in CASES]
    assert len(names) == len(set(names))
    assert len(names) >= 150
    assert sum(case.accepted for case in CASES) >= 80


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_verdict_is_as_the_rules_demand(case: Case) -> None:
    assert verdict(case) == case.verdict


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_verdict_does_not_depend_on_the_states_kept(case: Case) -> None:
    """Pruning at every chance must not hide a mistake, and must not invent one."""
    assert verdict(case, Limits(visited=20_000, store_often=True)) == case.verdict


def test_every_rejection_code_has_a_remedy() -> None:
    from userbpf.verifier.remedies import REMEDIES

    assert {case.verdict for case in CASES} - {"ok"} <= set(REMEDIES)


@pytest.mark.usefixtures("kernel_bpf")
def test_we_agree_with_the_kernel() -> None:
    oracle = Oracle()
    table = {"both accept": 0, "both reject": 0, "we are stricter": 0, "we are looser": 0}
    wrong = []
    for case in (case for case in CASES if case.kernel_accepts is not None):
        ours = verdict(case) == "ok"
        kernel, log = oracle.verdict(case.program())
        row = ("both accept" if kernel else "we are looser") if ours else "we are stricter" if kernel else "both reject"
        table[row] += 1
        if kernel != case.kernel_accepts:
            wrong.append(f"{case.name}: {row}; {log}")
        if row == "we are looser":
            assert case.differs == "looser" and case.note, f"{case.name}: looser than the kernel without an argument"
    print("\n" + "\n".join(f"{count:5} {row}" for row, count in table.items()))
    assert not wrong, "\n".join(wrong)
