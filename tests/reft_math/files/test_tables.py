from reft_math.files.tables import markdown


def test_tables_under_their_titles() -> None:
    assert markdown({"one": [["k", "base"], ["0", "1 %"]], "two": [["k"]]}) == (
        "one\n\n| k | base |\n| --- | --- |\n| 0 | 1 % |\n\ntwo\n\n| k |\n| --- |\n"
    )


def test_a_cell_ends_where_it_ends() -> None:
    assert markdown({"one": [["k"], ["a | b\n| c"]]}).endswith("| a \\| b \\| c |\n")
