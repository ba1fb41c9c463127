"""The worked example of docs/order.md gives what the page prints."""

import doctest
from pathlib import Path


def test_examples_of_the_order_page_print_what_it_says():
    page = Path(__file__).resolve().parents[3] / "docs" / "order.md"
    results = doctest.testfile(str(page), module_relative=False)
    assert results.failed == 0
    assert results.attempted > 10
