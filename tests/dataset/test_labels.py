import pytest
from hypothesis import given
from hypothesis import strategies as st

from crackvae.dataset import labels
from crackvae.errors import ExitCode, InputError, UsageError
from crackvae.schema import Label

COMMON = labels.vocabulary([], [])


def of(*paths, root="survey", names=COMMON, required=False, optional=False):
    of_folder = labels.FolderLabels(root, names, required=required, optional=optional)
    found = [of_folder.add(path) for path in paths]
    of_all, label = of_folder.of_all()
    return [label] * len(found) if of_all else found


@pytest.mark.parametrize(
    ("normal", "crack"),
    [
        ("Negative", "Positive"),
        ("non-crack", "crack"),
        ("NonCrack", "Crack"),
        ("no_crack", "cracks"),
        ("normal", "crack"),
        ("uncracked", "cracked"),
        ("Un Cracked", "CRACKED"),
        ("UD", "CD"),
        ("UP", "CP"),
        ("UW", "CW"),
        ("undamaged", "damaged"),
    ],
)
def test_common_folder_names_label_their_files(normal, crack):
    assert of(f"{normal}/1.jpg", f"{crack}/1.jpg") == ["normal", "crack"]
    assert of(f"Data/{crack}/day 1/1.jpg", f"Data/{normal}/1.jpg") == ["crack", "normal"]


def test_the_nearest_folder_decides():
    assert of("crack/normal/1.jpg", "normal/crack/2.jpg") == ["normal", "crack"]


def test_the_name_of_the_file_means_nothing():
    assert of("bridge/crack.jpg", "normal.jpg") == [None, None]


def test_the_root_labels_all_files_where_no_folder_in_it_does():
    assert of("1.jpg", "bridge/2.jpg", root="Positive") == ["crack", "crack"]
    assert of("normal/1.jpg", root="crack") == ["normal"]


def test_a_survey_without_labels_is_fine():
    assert of("1.jpg", "bridge/2.jpg") == [None, None]
    assert of() == []


def test_an_unknown_folder_among_labelled_ones_is_an_error_that_lists_the_names_found():
    with pytest.raises(InputError) as caught:
        of("crack/1.jpg", "what?\n/1.jpg", "what?\n/2.jpg", "3.jpg", "normal/1.jpg")
    message = str(caught.value)
    assert message.startswith(r"survey: some folders mean no label: 'what?\n' (2), '.' (1);")
    assert "--normal NAME or --crack NAME" in message
    assert "\n" not in message
    assert caught.value.exit_code == ExitCode.INPUT


def test_a_long_list_of_unknown_folders_is_cut():
    with pytest.raises(InputError, match=r"'folder-0' \(1\), .* \.\.\.;") as caught:
        of("crack/1.jpg", *(f"folder-{index}/1.jpg" for index in range(20)))
    assert "folder-9" not in str(caught.value)


def test_given_names_stand_in_for_the_common_ones():
    names = labels.vocabulary(["gut", "Sehr Gut"], ["Riß"])
    assert of("gut/1.jpg", "sehr-gut/1.jpg", "riß/1.jpg", names=names) == [
        "normal",
        "normal",
        "crack",
    ]
    with pytest.raises(InputError, match=r"mean no label: 'crack' \(1\)"):
        of("gut/1.jpg", "crack/1.jpg", names=names)


def test_given_names_that_no_folder_has_are_an_error_that_lists_the_names_found():
    with pytest.raises(InputError, match=r"no folder is named gut; found 'crack' \(1\)"):
        of("crack/1.jpg", names=labels.vocabulary(["gut"], []), required=True)


def test_a_name_given_for_both_labels_is_wrong_usage():
    with pytest.raises(UsageError, match="--normal 'no crack' and --crack 'No-Crack'"):
        labels.vocabulary(["good", "no crack"], ["No-Crack"])


def test_numbered_folders_can_be_labels():
    names = labels.vocabulary(["0"], ["1"])
    assert of("0/1.jpg", "1/1.jpg", names=names) == ["normal", "crack"]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 1, None], ["normal", "crack", None]),
        ([0.0, 1.0], ["normal", "crack"]),
        (["0", "1", ""], ["normal", "crack", None]),
        (["0.0", "1.0"], ["normal", "crack"]),
        ([False, True], ["normal", "crack"]),
        (["Non-Crack", "CRACK"], ["normal", "crack"]),
    ],
)
def test_a_column_holds_numbers_truths_names_or_nothing(values, expected):
    assert labels.from_column(values, "table.csv", COMMON) == expected


@pytest.mark.parametrize("value", ["maybe", -1, "-1", 2, 0.5, "0.1", float("nan"), "a\nb"])
def test_a_value_that_means_no_label_is_an_error_of_one_line(value):
    with pytest.raises(InputError, match=r"^table.csv: label .* is unknown; use ") as caught:
        labels.from_column([0, value], "table.csv", COMMON)
    assert repr(value) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_given_values_come_before_what_numbers_commonly_mean():
    names = labels.vocabulary(["1"], ["0"])
    assert labels.from_column([1, "0"], "table.csv", names) == ["normal", "crack"]
    names = labels.vocabulary(["1"], ["-1"])  # as scikit-learn has it
    assert labels.from_column([1, -1], "table.csv", names) == ["normal", "crack"]


@given(st.sampled_from(sorted(COMMON)), st.randoms(use_true_random=False))
def test_case_and_punctuation_of_a_name_do_not_matter(name, random):
    spelled = "".join(
        random.choice((letter, letter.upper())) + random.choice(("", "", "-", "_", " ")) for letter in name
    )
    assert of(f"{spelled}/1.jpg") == [COMMON[name]]
    assert labels.from_column([spelled], "table.csv", COMMON) == [Label(COMMON[name])]


def test_labels_that_are_optional_are_none_where_only_some_folders_mean_one(caplog):
    assert of("up/1.jpg", "down/1.jpg", optional=True) == [None, None]
    assert "some folders mean no label: 'down' (1); so none is taken for one" in caplog.text
    assert of("up/1.jpg", "cp/1.jpg", optional=True) == ["normal", "crack"]
