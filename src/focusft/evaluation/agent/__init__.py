"""A model that answers questions with a tool, and how well it does.

`run_episodes` lets a model and its tool talk: the model's text is searched for calls, each call is
made (or answered with what is wrong with it), and the results go back until the model answers
without a call or a budget is spent. The transcripts are plain messages that any chat template
takes. `summarise` turns scored episodes into pass@k with intervals, and into the rates that say
why a score is what it is.

Where this differs from the published evaluation (docs/deviations.md): a call that cannot be read
is answered instead of ending the episode, several calls in one turn are all made, and pass@k is
the unbiased estimate.
"""

from focusft.evaluation.agent.episodes import run_episodes
from focusft.evaluation.agent.interface import Backend, Budget, Episode, Reply, Tool, ToolOutput
from focusft.evaluation.agent.letters import extract_lenient, extract_strict
from focusft.evaluation.agent.pass_rate import Estimate, pass_at_k, pass_at_k_estimate
from focusft.evaluation.agent.python_tool import code_interpreter, describe
from focusft.evaluation.agent.scores import evaluate, summarise

__all__ = [
    "Backend",
    "Budget",
    "Episode",
    "Estimate",
    "Reply",
    "Tool",
    "ToolOutput",
    "code_interpreter",
    "describe",
    "evaluate",
    "extract_lenient",
    "extract_strict",
    "pass_at_k",
    "pass_at_k_estimate",
    "run_episodes",
    "summarise",
]
