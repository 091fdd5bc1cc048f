"""Learning online: gradients step by step, in memory that does not grow with time.

Rules other than backpropagation through time, each derived from the step of the cell that it is used with.
"""

from hibana.learn.explain import explain
from hibana.learn.online import Online, online
from hibana.learn.rules import DRTRL, OTTT, EProp, PPProp, Rule

__all__ = ["DRTRL", "EProp", "OTTT", "Online", "PPProp", "Rule", "explain", "online"]
