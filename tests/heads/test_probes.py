import numpy as np

from deo_cube.heads.probes import choose_cases, knn, linear_probe


def blobs(n, seed=0, noise=0.4):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(5).normal(size=(4, 12))
    y = rng.integers(0, 4, n)
    return (centres[y] + noise * rng.normal(size=(n, 12))).astype("float32"), y


def test_choose_draws_each_class_evenly_and_reproducibly():
    y = np.repeat([0, 1, 2], [50, 8, 20])
    a = choose_cases(y, 10, 0)
    assert np.bincount(y[a]).tolist() == [10, 8, 10]
    assert (choose_cases(y, 10, 0) == a).all()
    assert (choose_cases(y, 10, 1) != a).any()
    assert len(set(a)) == len(a)


def test_probes_find_what_is_there_and_not_what_is_not():
    (x, y), (t, u) = blobs(400), blobs(400, 1)
    assert (knn(x, y, t) == u).mean() > 0.97
    assert (linear_probe(x, y).predict(t) == u).mean() > 0.97
    noise = np.random.default_rng(3).normal(size=(400, 12)).astype("float32")
    assert (linear_probe(noise, y).predict(noise[::-1]) == y).mean() < 0.4


def test_neighbours_do_not_mind_the_scale_of_a_feature():
    (x, y), (t, _) = blobs(300), blobs(300, 1)
    scale = np.logspace(-3, 3, 12).astype("float32")
    np.testing.assert_array_equal(knn(x * scale, y, t * scale), knn(x, y, t))


def test_strength_is_chosen_on_groups():
    """Within a group cases repeat, so that only a choice across groups sees the overfit."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(30), 20)
    y = rng.integers(0, 2, 30)[groups]
    x = np.repeat(rng.normal(size=(30, 200)), 20, axis=0) + 0.01 * rng.normal(size=(600, 200))
    x[:, 0] += 2 * y
    alone = linear_probe(x, y)
    grouped = linear_probe(x, y, groups=groups)
    assert grouped[-1].C <= alone[-1].C
    assert grouped[-1].C < 1


def test_a_single_case_of_a_class_is_no_obstacle():
    x, y = blobs(40)
    y[:] = 0
    y[0] = 1
    assert set(linear_probe(x, y).predict(x)) <= {0, 1}
