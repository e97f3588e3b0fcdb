"""Bootstrap intervals against scipy and against what they promise."""

import numpy as np
import pytest

from codiffuse.errors import InputError
from codiffuse.metrics import bootstrap_ci, paired_difference, paired_share


def test_interval_equals_scipys_bootstrap():
    from scipy.stats import bootstrap

    values = np.random.default_rng(1).gamma(2.0, size=60)
    mean, lo, hi = bootstrap_ci(values, num_resamples=20000)
    expected = bootstrap((values,), np.mean, n_resamples=20000, method="percentile").confidence_interval
    assert mean == pytest.approx(values.mean())
    assert (lo, hi) == pytest.approx((expected.low, expected.high), abs=0.02)
    narrow = bootstrap_ci(values, level=0.5)
    assert lo < narrow.lo < mean < narrow.hi < hi


def test_interval_covers_the_true_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    intervals = [bootstrap_ci(rng.normal(3.0, 1.0, size=50), num_resamples=500) for _ in range(300)]
    covered = np.mean([lo <= 3.0 <= hi for _, lo, hi in intervals])
    assert 0.90 < covered < 0.98


def test_missing_values_are_skipped_and_the_seed_fixes_the_interval():
    assert bootstrap_ci([1.0, None, 2.0, float("nan"), 4.0]) == bootstrap_ci([1.0, 2.0, 4.0])
    assert bootstrap_ci([1.0, 2.0, 4.0], num_resamples=50) != bootstrap_ci([1.0, 2.0, 4.0], num_resamples=50, seed=1)


def test_intervals_of_one_and_of_no_value():
    assert bootstrap_ci([7.0, None]) == (7.0, 7.0, 7.0)
    assert np.isnan(bootstrap_ci([None, None])).all()
    assert np.isnan(bootstrap_ci([])).all()


def test_pairing_sees_a_difference_that_images_hide():
    rng = np.random.default_rng(2)
    difficulty = rng.normal(25, 5, size=30)
    a, b = difficulty + 0.3 + rng.normal(0, 0.2, 30), difficulty + rng.normal(0, 0.2, 30)
    mean, lo, hi = paired_difference(a, b)
    assert mean == pytest.approx((a - b).mean())
    assert 0 < lo < mean < hi < 1
    assert bootstrap_ci(a).lo < bootstrap_ci(b).hi  # unpaired, the two overlap
    assert paired_difference([1.0, None, 3.0], [0.0, 5.0, None]) == (1.0, 1.0, 1.0)
    with pytest.raises(InputError, match="same images"):
        paired_difference([1.0, 2.0], [1.0])


def test_a_share_is_that_of_the_means_and_its_interval_is_paired():
    rng = np.random.default_rng(3)
    b = rng.gamma(2.0, 2.0, size=40)
    a = 0.7 * b + rng.normal(0, 0.2, 40)
    share, lo, hi = paired_share(a, b)
    assert share == pytest.approx(a.mean() / b.mean())
    assert lo < share < hi
    assert hi - lo < 0.05  # the delta method: 2 * 1.96 * std(a - 0.7 b) / (sqrt(n) mean b); unpaired about 0.4
    assert hi - lo == pytest.approx(2 * 1.96 * (a - share * b).std() / np.sqrt(40) / b.mean(), rel=0.15)
    assert paired_share([1.0, None, 3.0], [2.0, 5.0, None]) == (0.5, 0.5, 0.5)
    assert np.isnan(paired_share([None], [1.0])).all()
    with pytest.raises(InputError, match="same images"):
        paired_share([1.0, 2.0], [1.0])
