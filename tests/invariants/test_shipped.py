"""`nsam verify` of every shipped system."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from nsam.dsl.checked import Unit
from nsam.verification import verify_unit

Shipped = Callable[..., Unit]
ZOO = (
    "linear_attention", "retnet", "gated_deltanet", "oja", "miras_lp", "atlas", "titans_memory", "transformer_block",
    "nested_cms", "independent_cms", "hyper", "detached", "comba", "mesa", "lact", "moneta", "gated_slots",
)  # fmt: skip


@pytest.mark.parametrize("system", ZOO)
def test_zoo(shipped: Shipped, system: str) -> None:
    report = verify_unit(shipped("zoo", system, dim=8), stability_tokens=2048)
    assert report.ok, report.text


def test_linear_attention_that_only_adds_outgrows_its_start(shipped: Shipped) -> None:
    """A dot product has no minimum: with a retention of 0.999 the memory settles at about 28 times its first norm."""
    report = verify_unit(shipped("zoo", "ada_transformer_block", dim=8))
    assert {row.check for row in report.failed} == {"stability"}
    assert {row.subject.split(", ")[1] for row in report.failed} == {"largest norm of 1 memory by the first"}


def test_titans(shipped: Shipped) -> None:
    report = verify_unit(shipped("hope", "titans", dim=8, chunk=4, slow=8), stability_tokens=1024)
    assert report.ok, report.text


def test_cms(shipped: Shipped) -> None:
    report = verify_unit(shipped("hope", "cms", dim=8), stability_tokens=1024)
    assert report.ok, report.text


@pytest.mark.slow
@pytest.mark.parametrize(("chunk", "slow", "tokens"), [(1, 1, 512), (5, 7, 2048)])
def test_titans_at_other_periods(shipped: Shipped, chunk: int, slow: int, tokens: int) -> None:
    """As many tokens as boundaries allow: what a long sequence costs is these. Its own periods come with `hope`."""
    report = verify_unit(shipped("hope", "titans", dim=8, chunk=chunk, slow=slow), stability_tokens=tokens)
    assert report.ok, report.text


@pytest.mark.slow
def test_hope(shipped: Shipped) -> None:
    report = verify_unit(shipped("hope", "hope", dim=8, layers=1), stability_tokens=4096)
    assert report.ok, report.text


@pytest.mark.parametrize(
    ("system", "why"),
    [("detached", "`direct` transfer into `m`"), ("transformer_block", "no fast memory"), ("nested_cms", None)],
)
def test_what_does_not_apply_is_a_row_of_its_own(shipped: Shipped, system: str, why: str | None) -> None:
    report = verify_unit(shipped("zoo", system, dim=8), stability_tokens=64)
    skipped = [row for row in report.rows if row.result == "skipped"]
    assert all(row.note for row in skipped)
    assert bool(skipped) == (why is not None)
    assert why is None or any(why in row.note for row in skipped)


def test_periods_beyond_the_reference_are_told(shipped: Shipped) -> None:
    report = verify_unit(shipped("hope", "titans", dim=8, chunk=4, slow=64), lengths=20, stability_tokens=128)
    assert report.ok, report.text
    assert any(row.subject == "period 64" and row.result == "skipped" for row in report.rows)


def test_the_text_is_a_table(shipped: Shipped) -> None:
    report = verify_unit(shipped("zoo", "detached", dim=4), stability_tokens=64)
    lines = report.text.splitlines()
    assert lines[0] == "detached"
    assert len(lines) == 3 + len(report.rows)
    assert lines[-1] == report.summary
    assert {line.index("≤") for line in lines if "≤" in line} == {lines[1].index("limit")}
