from __future__ import annotations

import pickle

import pytest
from files import three, vote

from medrm import read_cases
from medrm.data.case_set import read_set
from medrm.data.labels import LabelRules
from medrm.errors import ConfigError, DataError
from medrm.schema import PairLabel, RankingLabel


def test_votes_become_shares_in_order_of_appearance(votes_file):
    path = votes_file(
        vote("c2", "a1", image="images/2.png", votes={"accuracy": "B", "overall": None}),
        vote("c1", "a1", organ="GI tract", modality="CT"),
        vote("c1", "a2", organ="GI tract", modality="CT", votes={"accuracy": "tie", "mine": "B"}),
        vote("c1", "a3", organ="GI tract", modality="CT"),
    )
    second, first = read_cases(path)
    assert (first.case_id, second.case_id) == ("c1", "c2")
    assert first.labels["accuracy"] == PairLabel((2 / 3, 1 / 3, 0.0), 3)
    assert first.labels["accuracy"].choice == 0
    assert first.labels["mine"] == PairLabel((0.0, 0.0, 1.0), 1)
    assert second.labels == {"accuracy": PairLabel((0.0, 0.0, 1.0), 1)}
    assert first.groups == {"organ": "gastrointestinal_tract", "modality": "CT"}
    assert first.answers == ("A mass.", "Nothing.")
    image = pickle.loads(pickle.dumps(first.images[0]))
    assert image.read() == (path.parent / "images/1.png").read_bytes()


def test_set_knows_its_dimensions_and_digest_whatever_the_order(votes_file):
    rows = [
        vote("c1", votes={"own": "A", "overall": "A"}),
        vote("c2", votes={"creativity": "A", "accuracy": "tie"}),
    ]
    forward = read_set(str(votes_file(*rows)))
    backward = read_set(str(votes_file(*rows[::-1])))
    other = read_set(str(votes_file(rows[0], vote("c2", votes={"accuracy": "A"}))))
    assert forward.dimensions == ("accuracy", "creativity", "overall", "own")
    assert forward.digest == backward.digest != other.digest
    assert [c.cluster for c in forward.cases] == [c.cluster for c in backward.cases][::-1]


def test_several_images_and_text_only(votes_file):
    path = votes_file(
        vote("c1", image=..., images=["images/1.png", "images/2.png"]),
        vote("c2", image=..., images=[]),
    )
    both, none = read_cases(path)
    assert [ref.name for ref in both.images] == ["images/1.png", "images/2.png"]
    assert none.images == ()


def test_rankings_of_more_answers(votes_file):
    more = {"answer_a": ..., "answer_b": ..., "answers": ["x", "y", "z"]}
    path = votes_file(
        vote("c1", "a1", **more, votes={"overall": [[2, 0], 1]}),
        vote("c1", "a2", **more, votes={"overall": [1, 2, 0]}),
        vote("c2", "a1", **(more | {"answers": ["x", "y"]}), votes={"overall": [1, 0]}),
        vote("c3", "a1", **(more | {"answers": ["x", "y"]}), votes={"overall": [[0, 1]]}),
    )
    three, second, tie = read_cases(path)
    assert three.labels["overall"] == RankingLabel((((0, 2), (1,)), ((1,), (2,), (0,))))
    assert second.labels["overall"].choice == 1
    assert tie.labels["overall"].choice == "tie"


def test_all_problems_are_raised_together(votes_file):
    path = votes_file(
        vote("c1", votes={"accuracy": "C", "overall": "a"}),
        vote("c2", "a1"),
        vote("c2", "a1"),
        vote("c2", "a2", question="Another?"),
        vote("c3", votes={"Accuracy": "A"}),
        vote("c4", answer_b=..., answers=["only"], answer_a=...),
        vote("c5", answers=["x", "y", "z"], answer_a=..., answer_b=..., votes={"overall": [0, 1]}),
        vote("c6", question=3),
    )
    with path.open("a") as file:
        file.write('{broken\n[1]\n{"question": "\\ud83d"}\n')
    with pytest.raises(DataError) as raised:
        read_cases(path)
    message = str(raised.value)
    for part in (
        "line 1 (case 'c1'): 'accuracy' is 'C'; accepted are 'A', 'B', 'tie' or null",
        "'overall' is 'a'",
        "line 3: annotator 'a1' votes twice on 'accuracy' of case 'c2'",
        "line 4: case 'c2' has other question than on line 2",
        "dimension 'Accuracy' is not accepted; write 'accuracy'",
        "line 6 (case 'c4'): answers must be two texts or more",
        "names each of 0 to 2 once",
        "'question' is 3",
        "line 9: no valid JSON",
        "line 10: list in place of an object",
        "line 11: no valid JSON in UTF-8",
    ):
        assert part in message
    assert str(path) in message


def test_missing_and_misspelt_columns_are_named_once(votes_file):
    rows = [
        vote(f"c{i}", answer_b=..., answer_B="x", patients="p", remark="fine") for i in range(30)
    ]
    with pytest.raises(DataError) as raised:
        read_cases(votes_file(*rows))
    message = str(raised.value)
    assert "line 1 and 29 more: column 'answer_b' is missing. Did you mean 'answer_B'?" in message
    assert "column 'patients' is not known. Did you mean 'patient'?" in message
    assert "remark" not in message


@pytest.mark.parametrize(
    "written", ["../secret.png", "images/../../secret.png", "/etc/hostname", ""]
)
def test_paths_outside_the_folder_are_refused(votes_file, written):
    with pytest.raises(DataError, match="leads outside the data folder"):
        read_cases(votes_file(vote(image=written), vote("c2")))


def test_links_out_of_the_folder_are_refused_and_inside_it_followed(votes_file, tmp_path_factory):
    path = votes_file(vote(image="images/link.png"))
    link = path.parent / "images" / "link.png"
    link.symlink_to(path.parent / "images" / "1.png")
    assert read_cases(path)[0].images[0].problem is None
    outside = tmp_path_factory.mktemp("outside") / "secret.png"
    outside.write_bytes(b"x")
    link.unlink()
    link.symlink_to(outside)
    with pytest.raises(DataError, match="leads outside the data folder"):
        read_cases(path)


def test_missing_image_is_kept_with_its_problem(votes_file):
    (case,) = read_cases(votes_file(vote(image="images/none.png")))
    assert case.images[0].digest == ""
    assert "there is no file" in case.images[0].problem


def test_empty_and_unknown_sources_are_refused(votes_file, tmp_path):
    with pytest.raises(DataError, match="holds no case"):
        read_cases(votes_file())
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"neither pair_gt_all/ nor votes\.jsonl"):
        read_cases(tmp_path / "empty")
    with pytest.raises(DataError, match="Did you mean 'phantom'"):
        read_cases("phantm")
    (tmp_path / "cases.csv").write_text("a,b")
    with pytest.raises(DataError, match="no data file"):
        read_cases(tmp_path / "cases.csv")


def test_department_comes_from_data_or_the_users_map_alone(votes_file, tmp_path):
    path = votes_file(
        vote("c1", organ="brain"),
        vote("c2", organ="brain", department="oncology"),
        vote("c3", organ="knee"),
    )
    assert "department" not in read_cases(path)[0].groups
    mapping = tmp_path / "departments.yaml"
    mapping.write_text("head: neurology\n")
    cases = read_set(str(path), department_map=mapping).cases
    assert [case.groups.get("department") for case in cases] == ["neurology", "oncology", None]
    assert cases[2].groups["organ"] == "knee"
    mapping.write_text("- neurology\n")
    with pytest.raises(ConfigError, match="no mapping of names"):
        read_set(str(path), department_map=mapping)
    with pytest.raises(ConfigError, match="there is no such file"):
        read_set(str(path), department_map=tmp_path / "none.json")


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (LabelRules(), PairLabel((0.25, 0.5, 0.25), 4)),
        (LabelRules(ties="split"), PairLabel((0.5, 0.0, 0.5), 4)),
        (LabelRules(ties="drop"), PairLabel((0.5, 0.0, 0.5), 2)),
        (
            LabelRules(weights={"a0": 5.0, "a1": 1.0, "a2": 1.0, "a3": 3.0}),
            PairLabel((0.5, 0.2, 0.3), 4),
        ),
    ],
)
def test_label_rules(votes_file, rules, expected):
    (case,) = read_set(str(votes_file(*three("A", "tie", "tie", "B"))), rules).cases
    label = case.labels["overall"]
    assert label.shares == pytest.approx(expected.shares)
    assert label.votes == expected.votes


def test_dropping_ties_can_leave_no_label(votes_file):
    (case,) = read_set(str(votes_file(*three("tie", "tie"))), LabelRules(ties="drop")).cases
    assert case.labels == {}


@pytest.mark.filterwarnings("ignore::DeprecationWarning:crowdkit")
def test_dawid_skene_trusts_who_agrees_with_the_others(votes_file):
    """Annotator 3 contradicts the others on nine cases; on the tenth they are one against one."""
    rows = [
        vote(f"c{i}", f"a{a}", votes={"overall": "AB"[(i + (a == 3)) % 2]})
        for i in range(9)
        for a in (1, 2, 3)
    ]
    rows += [vote("last", "a1", votes={"overall": "A"}), vote("last", "a3", votes={"overall": "B"})]
    path = str(votes_file(*rows))
    counted = read_set(path).cases[-1].labels["overall"]
    fitted = read_set(path, LabelRules(aggregation="dawid_skene")).cases[-1].labels["overall"]
    assert counted.shares == (0.5, 0.0, 0.5)
    assert fitted.shares[0] > 0.9
    assert sum(fitted.shares) == pytest.approx(1)


def test_rules_that_do_not_fit_are_refused(votes_file):
    path = str(votes_file(*three("A", "B")))
    with pytest.raises(ConfigError, match="three annotators or more on a dimension; overall has 2"):
        read_set(path, LabelRules(aggregation="dawid_skene"))
    with pytest.raises(ConfigError, match="no weight is given for a1"):
        read_set(path, LabelRules(weights={"a0": 1.0}))
    with pytest.raises(ConfigError, match="positive"):
        LabelRules(weights={"a0": 0.0})
    with pytest.raises(ConfigError, match="exclude each other"):
        LabelRules(weights={"a0": 1.0}, aggregation="dawid_skene")
    ranked = {"answer_a": ..., "answer_b": ..., "answers": ["x", "y", "z"]}
    ranking = str(votes_file(vote(**ranked, votes={"overall": [0, 1, 2]})))
    with pytest.raises(ConfigError, match="are for pairs"):
        read_set(ranking, LabelRules(ties="split"))


def test_agreement_by_hand(votes_file):
    """Two annotators, four cases, values AA, AA, BB, AB.

    Raw: (1 + 1 + 1 + 0) / 4. Alpha = 1 - D_o / D_e with n = 8 values, 5 A and 3 B: D_o = 2 / 8 (the
    coincidences off the diagonal), D_e = 2 * 5 * 3 / (8 * 7); alpha = 1 - 0.25 * 56 / 30 = 8 / 15.
    """
    pairs = ["AA", "AA", "BB", "AB"]
    rows = [
        vote(f"c{i}", f"a{j}", votes={"overall": value, "relevance": "A"})
        for i, pair in enumerate(pairs)
        for j, value in enumerate(pair)
    ]
    agreement = read_set(str(votes_file(*rows))).agreement
    assert agreement["overall"].raw == pytest.approx(0.75)
    assert agreement["overall"].alpha == pytest.approx(8 / 15)
    assert (agreement["overall"].units, agreement["overall"].annotators) == (4, 2)
    assert agreement["relevance"].alpha is None
    assert agreement["relevance"].raw == 1.0


def test_agreement_of_rankings_counts_each_pair_of_answers(votes_file):
    """Rankings 0 > 1 > 2 and 0 > 2 > 1 agree on two of three pairs."""
    ranked = {"answer_a": ..., "answer_b": ..., "answers": ["x", "y", "z"]}
    rows = [
        vote("c1", name, **ranked, votes={"overall": ranking})
        for name, ranking in (("a1", [0, 1, 2]), ("a2", [0, 2, 1]))
    ]
    agreement = read_set(str(votes_file(*rows))).agreement["overall"]
    assert (agreement.units, agreement.raw) == (3, pytest.approx(2 / 3))


def test_one_annotator_has_no_agreement(votes_file):
    assert read_set(str(votes_file(vote("c1"), vote("c2", "a2")))).agreement == {}
