"""``hb.sklearn``: estimators of scikit-learn that train with the recipes of ``hibana train``.

Inputs are tables ``[samples, features]``, or series of equal length ``[samples, channels, time]`` as in aeon
and sktime. The estimators work in pipelines, in searches over parameters with processes, and in pickles.

A network is trained in ``float32`` and evaluated in ``float64``. The order of sums depends on the number of
samples in a batch: in ``float32``, rounding could change a sample's spikes if other samples are left out.
"""

import tempfile
from dataclasses import replace
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
import torch

from hibana import data
from hibana.data.user_data.samples import VALIDATION, draw_parts
from hibana.data.user_data.target import Target
from hibana.runtime.extras import explain_import_error
from hibana.train.recipes import MIN_VALIDATION_ROWS, REFRACTORY_PERIOD, rocket

with explain_import_error("hibana.sklearn"):
    from lightning.pytorch.utilities.seed import isolate_rng
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.utils import check_random_state
    from sklearn.utils._param_validation import Interval, StrOptions
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, validate_data

    from hibana.train import series
    from hibana.train.network import MAX_BATCH, Network, load
    from hibana.train.prediction import Answers, predict
    from hibana.train.run import fit
    from hibana.train.settings import CELLS, FILE_OPTIONS, IN_MEMORY, UNIT_CODINGS, Settings

__all__ = ["SpikingClassifier", "SpikingRegressor", "SpikingRocketClassifier"]

Array = np.ndarray[Any, Any]

_COUNT = [Interval(Integral, 1, None, closed="left"), None]
_POSITIVE = [Interval(Real, 0, None, closed="neither"), None]
_NOT_NEGATIVE = [Interval(Real, 0, None, closed="left"), None]


class _Estimator(BaseEstimator):  # type: ignore[misc] # scikit-learn has no types
    """The inputs and predictions of all estimators."""

    random_state: Any
    network_: Network
    n_timepoints_in_: int | None
    """Steps of the series in :meth:`fit`; None for a table."""

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags

    def _check(self, X: Any, *, reset: bool = False, **options: Any) -> Any:
        """`X` as ``float64``, and the labels if `options` contain `y`, after the checks of scikit-learn.

        Args:
            X: ``[N, features]`` or ``[N, channels, time]``.
            reset: store the shape of `X`; else compare it with the stored one.
            options: further arguments of ``validate_data``.

        Raises:
            ValueError: if `X` has another shape, or a number is not finite.
        """
        checked = validate_data(self, X, reset=reset, dtype=np.float64, allow_nd=True, **options)
        name, shape = type(self).__name__, (checked[0] if "y" in options else checked).shape
        dimensions = (2, 3) if reset else (2 if self.n_timepoints_in_ is None else 3,)
        if len(shape) not in dimensions:
            expected = " or ".join(map(str, dimensions))
            raise ValueError(f"Found array with dim {len(shape)}. {name} expected {expected}.")
        steps = shape[2] if len(shape) == 3 else None
        if reset:
            self.n_timepoints_in_ = steps
        elif steps != self.n_timepoints_in_:
            raise ValueError(
                f"X has {steps} time points, but {name} is expecting {self.n_timepoints_in_} time points as "
                f"input."
            )
        return checked

    def _seed(self) -> int:
        """A seed for one fit."""
        return int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))

    def _predict(self, X: Any) -> Answers:
        """Predictions for `X`; they leave the global random numbers unchanged."""
        check_is_fitted(self)
        X = self._check(X)
        with isolate_rng(include_cuda=False):
            return predict(self.network_, _time_first(X))


class _Classifier(ClassifierMixin, _Estimator):  # type: ignore[misc] # scikit-learn has no types
    """The labels and probabilities of a classifier."""

    classes_: Array

    def _check_labels(self, X: Any, y: Any) -> tuple[Array, Target, torch.Tensor]:
        """The checked inputs, the classes, and the index of each sample's class; sets `classes_`."""
        X, y = self._check(X, reset=True, y=y, ensure_min_samples=2)
        check_classification_targets(y)
        self.classes_, labels, counts = np.unique(y, return_inverse=True, return_counts=True)
        if len(counts) < 2:
            raise ValueError(
                f"{type(self).__name__} needs samples of at least 2 classes in the data, but the data "
                f"contains only one class: {self.classes_[0]!r}"
            )
        target = Target("class", tuple(map(str, self.classes_)), tuple(counts.tolist()), 0.0, 1.0)
        return X, target, torch.from_numpy(labels)

    def predict(self, X: Any) -> Array:
        """The most probable class of each sample, ``[N]``."""
        indices = self.predict_proba(X).argmax(1)
        labels: Array = self.classes_[indices]
        return labels

    def predict_proba(self, X: Any) -> Array:
        """The probability of each class, ``[N, classes]``, in the order of `classes_`."""
        return np.array(self._predict(X).probabilities)


class _Trained(_Estimator):
    """Training by gradient descent with Lightning."""

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "layers": [str, None],
        "cell": [StrOptions(set(CELLS)), None],
        "steps": _COUNT,
        "epochs": _COUNT,
        "patience": _NOT_NEGATIVE,
        "batch_size": _COUNT,
        "learning_rate": _POSITIVE,
        "weight_decay": _NOT_NEGATIVE,
        "settings": [dict, None],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        *,
        layers: str | None = None,
        cell: str | None = None,
        steps: int | None = None,
        epochs: int | None = None,
        patience: int | None = None,
        batch_size: int | None = None,
        learning_rate: float | None = None,
        weight_decay: float | None = None,
        settings: dict[str, Any] | None = None,
        random_state: Any = None,
    ) -> None:
        self.layers = layers
        self.cell = cell
        self.steps = steps
        self.epochs = epochs
        self.patience = patience
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.settings = settings
        self.random_state = random_state

    def _train(self, X: Array, target: Target, labels: torch.Tensor) -> Self:
        """Trains a network on `X` and the encoded `labels` of `target`."""
        further = self.settings or {}
        refused = {*FILE_OPTIONS, "root", "download"} - {"class_weights"}
        if names := sorted(refused & set(further)):
            raise ValueError(f"settings must not contain options of files, got {', '.join(names)}")
        parameters = {name: getattr(self, name) for name in self._parameter_constraints}
        del parameters["settings"], parameters["random_state"]
        options = {
            name: value.item()
            if isinstance(value, np.generic)
            else value  # a search may pass NumPy's numbers
            for name, value in parameters.items()
            if value is not None
        }
        seed = self._seed()
        samples: data.UserData
        if X.ndim == 2:
            samples = data.Arrays(X, seed=seed)
        else:
            samples = data.Sequences(_time_first(X), steps=self.steps, seed=seed)
            samples.read(samples.source)  # trains of spikes keep their length
            options["steps"] = samples.steps
        settings = Settings(IN_MEMORY, kind=samples.kind, seed=seed, **options, **further)
        samples.unit = settings.coding in UNIT_CODINGS
        rows = [*range(len(X))]
        parts: tuple[list[int], list[int]] = rows, []
        if settings.patience or round(len(X) * VALIDATION) >= MIN_VALIDATION_ROWS:
            texts = [*map(str, labels.tolist())]
            parts = draw_parts(texts, seed, stratified=max(target.counts, default=0) > 2, has_test=False)[:2]
        settings = settings.on(_split(samples, target, labels, *parts))
        if settings.epochs == 0:
            raise ValueError(f"layers {self.layers} need epochs; SpikingRocketClassifier fits without epochs")
        if not settings.patience:  # all samples are trained, and some of them are also evaluated
            parts = rows, rows[:MAX_BATCH]
        with isolate_rng(include_cuda=False), tempfile.TemporaryDirectory() as folder:
            _, outcome = fit(settings, folder, samples=_split(samples, target, labels, *parts))
            self.network_ = load(outcome.checkpoint).double()
        self.history_ = outcome.history
        return self


class SpikingClassifier(_Classifier, _Trained):
    """A spiking network that classifies, trained by gradient descent.

    Parameters that are None have the default of ``hibana train`` for tables or series of this size
    (:mod:`hibana.train.recipes`). Each feature or channel is scaled to mean 0 and deviation 1. Training on
    a table of fewer than 2,000 rows stops early: a tenth of its rows, if at least ten, is held out for that.

    Args:
        layers: the network, such as ``32-skip`` or ``512,512``; see ``hibana train --layers``.
        cell: cell of the hidden neurons, such as ``LIF``.
        steps: time steps: 8 for tables; series are stretched to 64, trains of spikes keep their length.
        epochs: passes over the training samples.
        patience: epochs without a smaller validation loss after which training stops. 0: all samples are
            trained for all `epochs`.
        batch_size: samples in a batch.
        learning_rate: peak of the one-cycle schedule.
        weight_decay: weight decay of AdamW.
        settings: further options of :class:`hibana.train.Settings`, such as ``{"rate_penalty": 0.3}``, but no
            options of files.
        random_state: an integer for the same result at each call.

    Attributes:
        classes_: the labels, sorted.
        network_: the trained :class:`hibana.train.Network`, for ``hb.convert`` and other functions.
        history_: loss, accuracy and firing rates of each epoch.
        n_features_in_: number of features or channels.
        n_timepoints_in_: length of the series; None for tables.

    Raises:
        ValueError: if a parameter, the inputs or the labels are not valid. The classes of errors are those of
            scikit-learn. All methods raise it.

    >>> import hibana as hb
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> classifier = hb.sklearn.SpikingClassifier(layers="8-skip", epochs=4, random_state=0).fit(X, y)
    >>> classifier.score(X, y) > 0.7
    True
    """

    def fit(self, X: Any, y: Any) -> Self:
        """Trains a network.

        Args:
            X: ``[N, features]`` or ``[N, channels, time]``.
            y: labels, numbers or texts, ``[N]``.
        """
        self._validate_params()
        return self._train(*self._check_labels(X, y))


class SpikingRegressor(RegressorMixin, _Trained):  # type: ignore[misc] # scikit-learn has no types
    """A spiking network that predicts a quantity, trained by gradient descent on the squared error.

    Parameters and attributes are those of :class:`SpikingClassifier`, without `classes_`. `score` is R².
    """

    def fit(self, X: Any, y: Any) -> Self:
        """Trains a network.

        Args:
            X: ``[N, features]`` or ``[N, channels, time]``.
            y: quantities, ``[N]``.
        """
        self._validate_params()
        X, y = self._check(X, reset=True, y=y, ensure_min_samples=2, y_numeric=True)
        y = y.astype(np.float64)
        mean, deviation = float(y.mean()), float(y.std()) or 1.0
        labels = torch.from_numpy((y - mean) / deviation).float()
        return self._train(X, Target("quantity", (), (), mean, deviation), labels)

    def predict(self, X: Any) -> Array:
        """The quantity of each sample, ``[N]``."""
        return np.array(self._predict(X).answers)


class SpikingRocketClassifier(_Classifier):
    """The spiking Rocket, :func:`hibana.models.rocket`, fitted to series in closed form.

    Series are ``[N, channels, time]``, or ``[N, time]`` of one channel. Each channel is scaled to mean 0 and
    deviation 1. Memory of a fit grows with the square of the number of samples up to 6,720 samples, and time
    with its cube.

    Args:
        steps: the length to which series are stretched. Default: their own length, at most 1,500.
        refractory_period: steps without a spike after each spike; ``"auto"`` compares 0 and 3 by their
            leave-one-out error.
        random_state: an integer for the same result at each call.

    Attributes:
        classes_: the labels, sorted.
        network_: the fitted :class:`hibana.train.Network`.
        accuracy_: the fraction of the training samples that are classified correctly when left out.
        n_features_in_: number of channels, or the length of series ``[N, time]``.
        n_timepoints_in_: length of series ``[N, channels, time]``; else None.

    Raises:
        ValueError: as :class:`SpikingClassifier`.

    >>> import numpy as np, hibana as hb
    >>> pace = np.array([0.3, 0.9] * 10)
    >>> series = np.sin(np.arange(40) * pace[:, None] + np.arange(20)[:, None])
    >>> hb.sklearn.SpikingRocketClassifier(random_state=0).fit(series, pace > 0.5).score(series, pace > 0.5)
    1.0
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "steps": _COUNT,
        "refractory_period": [StrOptions({"auto"}), Interval(Integral, 0, None, closed="left")],
        "random_state": ["random_state"],
    }

    def __init__(
        self, *, steps: int | None = None, refractory_period: int | str = "auto", random_state: Any = None
    ) -> None:
        self.steps = steps
        self.refractory_period = refractory_period
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> Self:
        """Fits the Rocket.

        Args:
            X: ``[N, channels, time]`` or ``[N, time]``.
            y: labels, numbers or texts, ``[N]``.
        """
        self._validate_params()
        X, target, labels = self._check_labels(X, y)
        steps = self.steps or min(X.shape[-1], series.MAX_ROCKET_STEPS)
        seed = self._seed()
        sequences = data.Sequences(_time_first(X), steps=steps, seed=seed)
        samples = _split(sequences, target, labels, [*range(len(X))], [])
        settings = Settings(IN_MEMORY, kind="sequences", layers=f"rocket{steps}", steps=steps, seed=seed)
        period = self.refractory_period
        periods = [0, REFRACTORY_PERIOD] if isinstance(period, str) else [period]
        with isolate_rng(include_cuda=False):
            candidates = [
                series.fit_candidate(replace(settings, **rocket(steps, period)), samples)
                for period in periods
            ]
        best = min(candidates, key=lambda candidate: candidate.error)
        self.network_, self.accuracy_ = best.model.double().eval(), best.accuracy
        return self


def _time_first(X: Array) -> Array:
    """Series ``[N, channels, T]`` as ``[N, T, channels]``; tables ``[N, F]`` unchanged."""
    return X if X.ndim == 2 else X.transpose(0, 2, 1)


def _split(
    samples: data.UserData, target: Target, labels: torch.Tensor, training: list[int], validation: list[int]
) -> data.UserData:
    """The `samples`, encoded, with these rows as parts; the validation part is also the test part."""
    raw = samples.read(samples.source)
    inputs = samples.learn(raw, training)
    description = data.Description(samples.kind, inputs, target)
    split = type(samples)(samples.source, seed=samples.seed, description=description)
    tensors = inputs.tensor(raw.values), labels
    split.training = data.InMemory(*(tensor[training] for tensor in tensors))
    split.validation = split.test = data.InMemory(*(tensor[validation] for tensor in tensors))
    return split
