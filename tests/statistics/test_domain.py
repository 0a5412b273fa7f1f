import numpy as np

from crackvae.statistics import domain


def _features(count, seed=0):
    generator = np.random.default_rng(seed)
    texture_N = generator.normal(1.5, 0.8, count)
    return np.column_stack(
        [
            generator.normal(150, 20, count),
            texture_N,
            texture_N + generator.normal(0.5, 0.1, count),
            generator.normal([126, 131], 2, (count, 2)),
        ]
    )


def test_it_contains_what_it_learned_from_and_what_is_like_it():
    learnt = domain.fit(_features(2000))
    assert learnt.contains(_features(2000)).mean() == 0.999
    assert learnt.contains(_features(2000, seed=1)).mean() > 0.99


def test_other_light_color_and_focus_are_outside_and_named():
    learnt = domain.fit(_features(2000))
    names = ("brightness", "fine texture", "coarse texture", "blue", "red")
    others = {
        "higher brightness": [180, 0, 0, 0, 0],
        "lower brightness": [-180, 0, 0, 0, 0],
        "lower fine texture": [0, -2.5, 0, 0, 0],  # blurred: the coarse texture is still there
        "higher blue": [0, 0, 0, 35, 0],
        "lower red": [0, 0, 0, 0, -35],
    }
    for name, change in others.items():
        other_NF = _features(200, seed=2) + change
        assert learnt.contains(other_NF).mean() < 0.05, name
        assert learnt.strangest(other_NF, names) == name


def test_training_images_that_are_all_alike_still_allow_for_other_light():
    same_NF = np.tile(_features(1), (50, 1))
    learnt = domain.fit(same_NF)
    assert np.isfinite(learnt.precision_FF).all()
    assert learnt.contains(same_NF).all()
