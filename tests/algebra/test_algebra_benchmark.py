from benchmarks.algebra import case, line


def test_both_ways_are_timed_and_agree():
    found = case(90, 70, 8, 2)
    assert found["case"] == "truncate-90x70-r8"
    assert found["factors_ms"] > 0 < found["dense_ms"]
    assert found["apart"] < 1e-12
    assert "times; the results are" in line(found)
