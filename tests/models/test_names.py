"""What messages say of many names, against the words themselves."""

from s4nd.models.names import counted, listed


def test_as_many_as_are_shown_are_all_there_and_of_more_the_others_are_counted():
    assert listed([]) == ""
    assert listed(list("abcd")) == "a, b, c, d"
    assert listed(list("abcdef")) == "a, b, c, d, and 2 more"
    assert listed(list("abc"), shown=2) == "a, b, and 1 more"


def test_kinds_without_a_name_are_not_mentioned():
    assert counted({"missing": list("abc"), "unknown": [], "of another shape": ["d"]}, shown=2) == (
        "3 missing: a, b, and 1 more; 1 of another shape: d"
    )
    assert counted({"missing": [], "unknown": []}) == ""
