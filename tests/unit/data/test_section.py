from bigft.data.section import DataSection, seed_copies


def test_the_seed_of_a_run_is_that_of_its_copies_where_it_has_any() -> None:
    without = DataSection.model_validate({"clean": {"augment": {"copies": 0}}})
    assert seed_copies(without, 3) == without
    plain = DataSection.model_validate({"clean": {"augment": {"copies": 2, "swap": 0.1}}})
    assert seed_copies(plain, 3).clean.augment.seed == 3
    own = DataSection.model_validate({"clean": {"augment": {"copies": 2, "swap": 0.1, "seed": 0}}})
    assert seed_copies(own, 3) == own
