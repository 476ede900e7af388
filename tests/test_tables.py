"""Text tables that are wider than a screen."""

import re

from ofdft_norm.tables import WIDTH, format_rows


def test_names_that_make_a_table_wider_than_a_screen_are_cut_in_their_middle():
    table = format_rows(["molecule", "energy"], [["m" * 120 + "end", "-1.5"], ["short", "2"]])
    long, short = table.splitlines()[1:]
    assert len(long) == WIDTH
    assert re.fullmatch(r"m+\.\.\.m+end  +-1\.5", long)
    assert short.split() == ["short", "2"]
