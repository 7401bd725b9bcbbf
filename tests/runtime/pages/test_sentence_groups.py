"""Sentences that differ in numbers, brackets and the scan's own name are one kind."""

from __future__ import annotations

from covidseg_runtime.pages.sentence_groups import SentenceGroup, group_sentences


def test_sentences_that_differ_in_numbers_are_one_and_what_they_share_stays() -> None:
    said = [
        ("a.nii", "Slices are 6 mm apart; above 5 mm small lesions are missed."),
        ("b.nii", "Slices are 7.5 mm apart; above 5 mm small lesions are missed."),
        ("c.nii", "The network found no lung."),
    ]
    assert group_sentences(said) == (
        SentenceGroup("Slices are … mm apart; above 5 mm small lesions are missed.", ("a.nii", "b.nii")),
        SentenceGroup("The network found no lung.", ("c.nii",)),
    )


def test_what_stands_in_brackets_and_the_name_of_the_scan_may_differ() -> None:
    said = [
        ("ward/p1.nii.gz", "p1.nii.gz is not a whole gzip file (Not a gzipped file (b'no')); copy it again."),
        ("p2.nii.gz", "p2.nii.gz is not a whole gzip file (CRC check failed); copy it again."),
        ("p3.nii.gz", "p3.nii.gz is not a whole gzip file; copy it again."),
    ]
    first, second, third = group_sentences(said[:1]), group_sentences(said[1:2]), group_sentences(said[2:])
    assert [group.sentence for (group,) in (first, second, third)] == [
        "… is not a whole gzip file (Not a gzipped file (b'no')); copy it again.",
        "… is not a whole gzip file (CRC check failed); copy it again.",
        "… is not a whole gzip file; copy it again.",
    ]
    border = "The lungs touch the border of the scan ({}): parts are missing."
    (group,) = group_sentences([("a.nii", border.format("feet, head")), ("b.nii", border.format("head"))])
    assert group == SentenceGroup("The lungs touch the border of the scan …: parts are missing.", ("a.nii", "b.nii"))


def test_a_name_is_left_out_as_a_whole_word_only() -> None:
    (group,) = group_sentences([("i.nii", "The scan ai.nii differs from i.nii: see i.nii.")])
    assert group.sentence == "The scan ai.nii differs from …: see …."


def test_the_largest_group_comes_first() -> None:
    said = [("a", "One."), ("b", "Two."), ("c", "Two.")]
    assert [len(group.scans) for group in group_sentences(said)] == [2, 1]


def test_nothing_said_is_no_group() -> None:
    assert group_sentences([]) == ()
