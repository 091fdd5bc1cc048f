"""The playground's fields without a browser: what is told when answers come late."""

import pytest

pytest.importorskip("bokeh", reason="the extra play is not installed")

from bokeh.document import Document
from bokeh.models import Div, TextInput

from hibana.cli.play import neuron
from hibana.cli.play.source import Trouble
from hibana.cli.play.view.look import Look
from hibana.cli.play.view.neuron import NeuronView


class Asked:
    """A pump that answers when it is told to."""

    def __init__(self):
        self.questions = []

    def ask(self, function, then, /, **question):
        self.questions.append((function, then, question))

    def answer(self, number, answer=None):
        function, then, question = self.questions[number]
        then(getattr(neuron, function.removeprefix("neuron."))(**question) if answer is None else answer)


def test_a_late_answer_does_not_hide_what_is_wrong_with_what_was_typed_since():
    pump = Asked()
    view = NeuronView(Document(), Look(), pump)
    pump.answer(0)
    (threshold,) = (
        each for each in view.controls.select({"type": TextInput}) if "text-threshold" in each.css_classes
    )
    (trouble,) = (each for each in view.controls.select({"type": Div}) if "trouble" in each.css_classes)
    threshold.value = "-1"
    threshold.value = "spam"
    assert trouble.text == "threshold must be a number, got 'spam'"
    pump.answer(-1, Trouble("threshold must be positive"))  # to -1
    assert trouble.text == "threshold must be a number, got 'spam'"
    threshold.value = "1"
    assert trouble.text == "threshold must be a number, got 'spam'"
    pump.answer(-1)
    assert trouble.text == ""
