"""Estimators of scikit-learn: its own checks, searches, pipelines, pickles, series, and its errors."""

import pickle
import re

import joblib
import numpy as np
import pytest
import torch
from sklearn import datasets
from sklearn.exceptions import DataConversionWarning, NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils._param_validation import InvalidParameterError
from sklearn.utils.estimator_checks import check_estimator, estimator_checks_generator

import hibana as hb
from hibana.train import network, recipes
from hibana.train.estimators import SpikingClassifier, SpikingRegressor, SpikingRocketClassifier

SHORT = {"layers": "8-skip", "epochs": 4, "batch_size": 32, "learning_rate": 0.03, "random_state": 0}
"""Parameters of a training that takes less than a second."""


@pytest.fixture(scope="module")
def iris():
    return datasets.load_iris(return_X_y=True)


@pytest.fixture(scope="module")
def waves():
    """Forty slow and fast waves of two channels and 30 steps, ``[N, channels, time]``, and their names."""
    generator = np.random.default_rng(0)
    is_fast = np.arange(40) % 2 == 1
    phases = np.arange(30) * np.where(is_fast, 0.9, 0.3)[:, None] + generator.uniform(0, 6, (40, 1))
    series = np.stack([np.sin(phases), np.cos(phases)], axis=1)
    return series + 0.1 * generator.normal(size=series.shape), np.where(is_fast, "fast", "slow")


@pytest.mark.slow
@pytest.mark.parametrize("kind", [SpikingClassifier, SpikingRegressor])
def test_trained_estimators_pass_all_checks_of_scikit_learn(kind):
    check_estimator(kind(**SHORT), on_skip=None)


def test_the_rocket_passes_all_checks_of_scikit_learn():
    check_estimator(SpikingRocketClassifier(), on_skip=None)


@pytest.mark.parametrize("kind", [SpikingClassifier, SpikingRegressor])
def test_trained_estimators_pass_checks_of_fitting_and_predicting(kind):
    names = {"check_estimators_unfitted", "check_estimators_nan_inf", "check_methods_subset_invariance"}
    names |= {"check_estimators_pickle", "check_dict_unchanged", "check_estimator_sparse_array"}
    checks = [
        (estimator, check)
        for estimator, check in estimator_checks_generator(kind(**SHORT))
        if check.func.__name__ in names
    ]
    assert {check.func.__name__ for _, check in checks} == names
    for estimator, check in checks:
        check(estimator)


def test_a_table_is_trained_with_the_recipe_of_the_command(iris):
    X, y = iris
    classifier = SpikingClassifier(epochs=2, random_state=0).fit(X, y)
    settings = classifier.network_.settings
    expected = recipes.OPTIONS_OF_FEW_ROWS | {"epochs": 2}
    assert {name: getattr(settings, name) for name in expected} == expected
    assert settings.kind == "arrays"
    assert len(classifier.history_["validation/loss"]) == 2


def test_labels_are_texts(iris):
    X, y = iris
    names = np.array(["setosa", "versicolor", "virginica"])[y]
    classifier = SpikingClassifier(**SHORT).fit(X, names)
    assert classifier.classes_.tolist() == ["setosa", "versicolor", "virginica"]
    assert classifier.score(X, names) > 0.85
    numbers = SpikingClassifier(**SHORT).fit(X, y)
    assert np.array_equal(numbers.predict_proba(X), classifier.predict_proba(X))
    assert classifier.network_.description.target.classes == ("setosa", "versicolor", "virginica")


def test_probabilities_are_those_of_the_network(iris):
    X, y = iris
    classifier = SpikingClassifier(**SHORT).fit(X, y)
    values = classifier.network_.description.inputs.tensor(X)
    scores = classifier.network_(values)
    assert scores.dtype == torch.float64
    assert np.array_equal(classifier.predict_proba(X), scores.softmax(1).detach().numpy())


def test_a_quantity_is_predicted_in_its_unit():
    X, y = datasets.load_diabetes(return_X_y=True)
    regressor = SpikingRegressor(layers="8-skip", epochs=8, random_state=0).fit(X, 1000 * y)
    assert regressor.score(X, 1000 * y) > 0.3
    assert abs(regressor.predict(X).mean() / (1000 * y.mean()) - 1) < 0.2


def test_a_constant_quantity_is_predicted():
    X = np.random.default_rng(0).normal(size=(20, 3))
    assert np.allclose(SpikingRegressor(**SHORT).fit(X, np.full(20, 7.0)).predict(X), 7, atol=0.5)


@pytest.mark.parametrize("kind", [SpikingClassifier, SpikingRocketClassifier])
def test_series_have_channels_and_time(waves, kind):
    X, y = waves
    options = (
        {"layers": "16w5b", "epochs": 12, "steps": 30, "batch_size": 8, "learning_rate": 0.02}
        if kind is SpikingClassifier
        else {}
    )
    estimator = kind(random_state=0, **options).fit(X[:30], y[:30])
    assert estimator.score(X[30:], y[30:]) > 0.8
    assert (estimator.n_features_in_, estimator.n_timepoints_in_) == (2, 30)
    assert estimator.network_.settings.kind == "sequences"


def test_series_are_stretched_to_the_steps_and_spike_trains_are_not(waves):
    X, y = waves
    options = {"layers": "8", "epochs": 1, "random_state": 0}
    assert SpikingClassifier(**options).fit(X, y).network_.settings.steps == 64
    assert SpikingClassifier(**options).fit(1.0 * (X > 0.8), y).network_.settings.steps == 30
    assert SpikingRocketClassifier(steps=20).fit(X, y).network_.settings.layers.startswith("rocket20")


def test_the_rocket_takes_series_of_one_channel_with_and_without_an_axis(waves):
    X, y = waves
    flat = SpikingRocketClassifier(random_state=0).fit(X[:, 0], y)
    assert np.array_equal(
        flat.predict_proba(X[:, 0]),
        SpikingRocketClassifier(random_state=0).fit(X[:, :1], y).predict_proba(X[:, :1]),
    )
    assert 0.9 < flat.accuracy_ <= 1.0


@pytest.mark.parametrize("period", [0, 3, np.int64(2)])
def test_the_rocket_has_the_requested_refractory_period(waves, period):
    X, y = waves
    rocket = SpikingRocketClassifier(refractory_period=period).fit(X, y)
    assert rocket.network_.settings.layers == ("rocket30" if period == 0 else f"rocket30r{period}")


def test_the_random_state_determines_the_result_and_other_random_numbers_are_unchanged(iris, waves):
    for data, make in [
        (iris, lambda seed: SpikingClassifier(**SHORT | {"random_state": seed})),
        (waves, lambda seed: SpikingRocketClassifier(random_state=seed)),
    ]:
        torch.manual_seed(5)
        np.random.seed(5)  # noqa: NPY002 - the generator that scikit-learn uses
        expected = torch.rand(3), np.random.rand(3)  # noqa: NPY002 - as above
        torch.manual_seed(5)
        np.random.seed(5)  # noqa: NPY002 - as above
        first, same, other = (make(seed).fit(*data).predict_proba(data[0]) for seed in (1, 1, 2))
        assert np.array_equal(first, same)
        assert not np.array_equal(first, other)
        assert torch.equal(torch.rand(3), expected[0])
        assert np.array_equal(np.random.rand(3), expected[1])  # noqa: NPY002 - as above


def test_a_prediction_does_not_depend_on_other_samples(waves):
    X, y = waves
    for estimator in (
        SpikingRocketClassifier(random_state=0),
        SpikingClassifier(layers="16w5", epochs=1, random_state=0),
    ):
        together = estimator.fit(X, y).predict_proba(X)
        alone = np.concatenate([estimator.predict_proba(X[index : index + 1]) for index in range(len(X))])
        np.testing.assert_allclose(together, alone, rtol=1e-9)


def test_a_rocket_predicts_as_many_samples_at_once_as_fit_in_memory(waves, monkeypatch):
    X, y = waves
    rocket = SpikingRocketClassifier(refractory_period=0).fit(X, y)
    expected = rocket.predict_proba(X)
    monkeypatch.setattr(network, "MAX_SPIKES", 3 * 30 * rocket.network_.net.neurons)
    counts = []
    rocket.network_.net.register_forward_pre_hook(lambda _, inputs: counts.append(inputs[0].shape[1]))
    assert np.allclose(rocket.predict_proba(X), expected)
    assert counts == [3] * 13 + [1]


def test_pickles_and_joblib_restore_an_estimator(iris, waves, tmp_path):
    for estimator, (X, y) in [
        (SpikingClassifier(**SHORT), iris),
        (SpikingRegressor(**SHORT), iris),
        (SpikingRocketClassifier(random_state=0), waves),
    ]:
        expected = estimator.fit(X, y).predict(X)
        joblib.dump(estimator, tmp_path / "estimator.joblib")
        for restored in (pickle.loads(pickle.dumps(estimator)), joblib.load(tmp_path / "estimator.joblib")):
            assert np.array_equal(restored.predict(X), expected)


def test_early_stopping_is_off_with_patience_0_and_few_samples():
    X, y = datasets.load_iris(return_X_y=True)
    options = {"layers": "skip-4", "epochs": 3, "settings": {"rate_penalty": 0.0}, "random_state": 0}
    for rows, patience, expected in [(150, 0, 0), (150, 2, 2), (60, None, 0)]:
        chosen = np.random.default_rng(0).permutation(150)[:rows]
        classifier = SpikingClassifier(patience=patience, **options).fit(X[chosen], y[chosen])
        assert classifier.network_.settings.patience == expected
        counts = classifier.network_.description.inputs.scale  # fitted to the training part
        has_all = np.allclose(counts.shift, X[chosen].mean(0))
        assert has_all == (expected == 0)


def test_settings_pass_on_further_options(iris):
    X, y = iris
    settings = {"surrogate": "ATan", "class_weights": "balanced", "coding": "population"}
    classifier = SpikingClassifier(**SHORT | {"epochs": 1}, settings=settings).fit(X[30:], y[30:])
    assert classifier.network_.objective.weights[0] > 1 > classifier.network_.objective.weights[1]
    assert classifier.network_.settings.coding == "population"
    assert classifier.predict(X).shape == (150,)


@pytest.mark.slow
def test_a_grid_search_over_a_pipeline_runs_in_processes(iris):
    X, y = iris
    pipeline = make_pipeline(StandardScaler(), SpikingClassifier(**SHORT))
    grid = {
        "spikingclassifier__learning_rate": np.array([1e-6, 0.03]),
        "spikingclassifier__epochs": np.array([3]),
    }
    search = GridSearchCV(pipeline, grid, cv=2, n_jobs=2, error_score="raise").fit(X, y)
    assert search.best_params_["spikingclassifier__learning_rate"] == 0.03
    low, high = search.cv_results_["mean_test_score"]
    assert low < high > 0.8
    assert search.predict(X[:1]).shape == (1,)


def test_the_parameters_of_a_search_may_be_numpy_numbers(iris):
    X, y = iris
    options = SHORT | {"epochs": np.int64(1), "learning_rate": np.float32(0.01), "batch_size": np.int32(32)}
    assert SpikingClassifier(**options).fit(X, y).network_.settings.batch_size == 32


TABLE, CLASSES = np.random.default_rng(0).normal(size=(12, 3)), np.arange(12) % 2
SERIES = np.random.default_rng(0).normal(size=(12, 2, 10))
NAN = np.where(np.arange(36).reshape(12, 3) == 7, np.nan, TABLE)


def fit_mistake(X=TABLE, y=CLASSES, kind=SpikingClassifier, **parameters):
    return kind(**parameters).fit(X, y)


@pytest.mark.parametrize(
    ("mistake", "error", "sentence"),
    [
        ({"X": NAN}, ValueError, "Input X contains NaN."),
        ({"X": np.where(np.isnan(NAN), np.inf, NAN)}, ValueError, "Input X contains infinity or a value"),
        ({"y": CLASSES * np.nan}, ValueError, "Input y contains NaN."),
        (
            {"y": np.zeros(12)},
            ValueError,
            "needs samples of at least 2 classes in the data, but the data conta",
        ),
        ({"y": CLASSES + 0.5}, ValueError, "Unknown label type: continuous."),
        ({"y": np.stack([CLASSES, CLASSES], 1)}, ValueError, "y should be a 1d array, got an array of shape"),
        (
            {"y": CLASSES[:9]},
            ValueError,
            "Found input variables with inconsistent numbers of samples: [12, 9]",
        ),
        ({"y": None}, ValueError, "requires y to be passed, but the target y is None"),
        (
            {"y": ["a", "b"] * 6, "kind": SpikingRegressor},
            ValueError,
            "could not convert string to float: ",
        ),
        ({"X": TABLE[0]}, ValueError, "Expected 2D array, got 1D array instead"),
        (
            {"X": TABLE[:1], "y": [0]},
            ValueError,
            "Found array with 1 sample(s) (shape=(1, 3)) while a minimum",
        ),
        (
            {"X": TABLE[:0], "y": []},
            ValueError,
            "Found array with 0 sample(s) (shape=(0, 3)) while a minimum",
        ),
        (
            {"X": TABLE[:, :0]},
            ValueError,
            "Found array with 0 feature(s) (shape=(12, 0)) while a minimum of 1",
        ),
        ({"X": SERIES[..., None]}, ValueError, "Found array with dim 4. SpikingClassifier expected 2 or 3."),
        ({"X": np.full((12, 3), "text")}, ValueError, "could not convert string to float: "),
        ({"X": TABLE + 1j}, ValueError, "Complex data not supported"),
        ({"X": [[1.0, 2.0], [3.0]] * 6}, ValueError, "setting an array element with a sequence."),
        (
            {"epochs": 0},
            InvalidParameterError,
            "The 'epochs' parameter of SpikingClassifier must be an int in",
        ),
        (
            {"learning_rate": -1.0},
            InvalidParameterError,
            "The 'learning_rate' parameter of SpikingClassifier",
        ),
        ({"batch_size": 1.5}, InvalidParameterError, "must be an int in the range [1, inf) or None. Got 1.5"),
        (
            {"cell": "lif"},
            InvalidParameterError,
            "The 'cell' parameter of SpikingClassifier must be a str among",
        ),
        (
            {"random_state": "x"},
            InvalidParameterError,
            "The 'random_state' parameter of SpikingClassifier must",
        ),
        (
            {"kind": SpikingRocketClassifier, "refractory_period": "3"},
            InvalidParameterError,
            "The 'refractory_period' parameter of SpikingRocketClassifier must be a str among {'auto'} or an",
        ),
        ({"layers": "32x"}, ValueError, "layers must be a row such as 512,512"),
        ({"layers": "rocket10", "X": SERIES}, ValueError, "SpikingRocketClassifier fits without epochs"),
        ({"settings": {"rate": 1}}, TypeError, "there is no setting 'rate'"),
        (
            {"settings": {"epochs": 1}, "epochs": 2},
            TypeError,
            "multiple values for keyword argument 'epochs'",
        ),
        ({"settings": {"label": "y"}}, ValueError, "settings must not contain options of files, got label"),
        ({"patience": 3, "X": TABLE[:2], "y": CLASSES[:2]}, ValueError, "samples must be enough to train"),
    ],
)
def test_mistakes_in_a_fit_raise_the_usual_errors(mistake, error, sentence):
    with pytest.raises(error, match=re.escape(sentence)):
        fit_mistake(**mistake)


@pytest.mark.parametrize("method", ["predict", "predict_proba", "score"])
@pytest.mark.parametrize("kind", [SpikingClassifier, SpikingRegressor, SpikingRocketClassifier])
def test_an_estimator_that_is_not_fitted_says_so(kind, method):
    if method == "predict_proba" and kind is SpikingRegressor:
        pytest.skip("a regressor has no probabilities")
    arguments = (TABLE, CLASSES) if method == "score" else (TABLE,)
    with pytest.raises(NotFittedError, match=f"This {kind.__name__} instance is not fitted yet."):
        getattr(kind(), method)(*arguments)


@pytest.mark.parametrize(
    ("X", "sentence"),
    [
        (SERIES[:, :1], "X has 1 features, but SpikingRocketClassifier is expecting 2 features as input."),
        (
            SERIES[..., :7],
            "X has 7 time points, but SpikingRocketClassifier is expecting 10 time points as in",
        ),
        (TABLE[:, :2], "Found array with dim 2. SpikingRocketClassifier expected 3."),
        (SERIES * np.nan, "Input X contains NaN."),
    ],
)
def test_inputs_of_another_shape_than_in_the_fit_are_refused(X, sentence):
    rocket = SpikingRocketClassifier(refractory_period=0).fit(SERIES, CLASSES)
    with pytest.raises(ValueError, match=re.escape(sentence)):
        rocket.predict(X)


def test_names_of_columns_must_be_those_of_the_fit():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(TABLE, columns=["a", "b", "c"])
    rocket = SpikingRocketClassifier(refractory_period=0).fit(frame, CLASSES)
    assert rocket.feature_names_in_.tolist() == ["a", "b", "c"]
    with pytest.raises(ValueError, match="The feature names should match those that were passed during fit"):
        rocket.predict(frame[["c", "b", "a"]])
    with pytest.warns(DataConversionWarning, match="A column-vector y was passed"):
        rocket.fit(frame, CLASSES[:, None])


def test_the_module_is_public_and_names_its_estimators():
    assert hb.sklearn.__all__ == ["SpikingClassifier", "SpikingRegressor", "SpikingRocketClassifier"]
    assert hb.sklearn.SpikingClassifier is SpikingClassifier
